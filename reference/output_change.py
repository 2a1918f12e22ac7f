"""What freezing an attention weight, a row or a head is expected to change in the output of its block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reference.vit import Vit


class OutputChange:
    """Second moments of every head's contribution A V W to its block's output, fed with maps and values batch by batch.

    W: the columns of the output projection that read the head. With F in place of A, the squared change of output row i is
    (A - F)_i G (A - F)_i^T, G = (V W)(V W)^T; its mean over the images follows from those of G, of A G and of the diagonal of
    A G A^T, whatever F is. Of the last block the classifier reads the class token alone: all its other rows change nothing.
    """

    def __init__(self, vit: Vit):
        tokens = len(vit.prefix) + len(vit.position)
        shape = (len(vit.blocks), vit.heads, tokens)
        self.gram = torch.zeros(*shape, tokens, dtype=torch.float64)
        self.cross = torch.zeros_like(self.gram)
        self.power = torch.zeros(shape, dtype=torch.float64)
        self.images = [0] * len(vit.blocks)
        projections = [block.proj.weight.unflatten(1, (vit.heads, -1)) for block in vit.blocks]
        self.metric = [torch.einsum("ohc,ohd->hcd", weight, weight) for weight in projections]  # W W^T of every head

    def add(self, block: int, maps: Tensor, values: Tensor) -> None:
        """Take in one batch of a block: maps [batch, heads, tokens, tokens] and values [batch, heads, tokens, head_dim], float32."""
        context = maps @ values
        projected = context @ self.metric[block]
        self.gram[block] += torch.einsum("bhic,bhjc->hij", values @ self.metric[block], values)
        self.cross[block] += torch.einsum("bhic,bhjc->hij", projected, values)
        self.power[block] += (projected * context).sum(dim=3).sum(dim=0)
        self.images[block] += len(maps)

    def rows(self, block: int, frozen: np.ndarray) -> np.ndarray:
        """Mean squared change of each output row if the whole row of the map is frozen at `frozen`, in equal shares to its weights.

        frozen and result: [heads, tokens, tokens], float64. Exact but for rounding; the sum over a head is what freezing the
        whole head changes.
        """
        f = torch.from_numpy(frozen).double()
        change = self.power[block] + ((f @ self.gram[block] - 2 * self.cross[block]) * f).sum(dim=2)
        return self._read(block, change[:, :, None].expand(f.shape) / f.shape[2])

    def weights(self, block: int, variance: np.ndarray) -> np.ndarray:
        """Expected squared change if one weight is frozen at its mean: var(a_ij) E|v_j W|^2, float64 [heads, tokens, tokens].

        variance: of every weight, same shape. Takes a weight and its value to be uncorrelated.
        """
        norm = self.gram[block].diagonal(dim1=1, dim2=2)
        return self._read(block, torch.from_numpy(variance).double() * norm[:, None, :])

    def _read(self, block: int, change: Tensor) -> np.ndarray:
        """A block's change [heads, tokens, tokens] per image, without the rows that nothing reads."""
        if block == len(self.images) - 1:
            change = torch.cat([change[:, :1], torch.zeros_like(change[:, 1:])], dim=1)
        return (change / self.images[block]).numpy()
