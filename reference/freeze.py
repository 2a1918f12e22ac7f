"""Which attention weights are frozen: the lowest entropies of every head (paper, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eamsim.errors import UserError


@dataclass(frozen=True, eq=False)
class FrozenMap:
    """Frozen attention weights of one block: where `mask` is set, `mean` replaces the computed weight (Eq. 15).

    mask: bool [heads, tokens, tokens]; mean: float32, same shape, in [0, 1], the mean map A^mu of all weights.
    """

    mask: np.ndarray
    mean: np.ndarray


def freeze(entropy: Sequence[np.ndarray], mean: Sequence[np.ndarray], tau: float) -> list[FrozenMap]:
    """Freeze the `round(tau * tokens^2)` attention weights of least entropy in every head of every layer (Eq. 15's epsilon_tau).

    entropy, mean: one float [heads, tokens, tokens] per layer. Equal entropies are frozen in the order of their index, and a
    half is rounded to even, so that the count is exact. Raises UserError unless 0 <= tau <= 1.
    """
    if not 0 <= tau <= 1:
        raise UserError(f"tau: must be a fraction in [0, 1], got {tau}; write 0.2 to freeze 20 % of every head's attention weights")
    return [
        FrozenMap(lowest(layer_entropy, tau), np.asarray(layer_mean, np.float32))
        for layer_entropy, layer_mean in zip(entropy, mean, strict=True)
    ]


def lowest(entropy: np.ndarray, tau: float) -> np.ndarray:
    """Mask of the `round(tau * tokens^2)` lowest values of every head; entropy [heads, tokens, tokens] -> bool, same shape."""
    flat = entropy.reshape(len(entropy), -1)
    order = np.argsort(flat, axis=1, kind="stable")
    mask = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(mask, order[:, : round(tau * flat.shape[1])], True, axis=1)
    return mask.reshape(entropy.shape)
