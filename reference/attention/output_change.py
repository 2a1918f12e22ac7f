"""What freezing an attention weight, a row or a head is expected to change in the output of its block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reference.models.maps import Maps
from reference.models.networks import Network


class OutputChange:
    """Second moments of every head's contribution A V W to its block's output, fed with maps and values batch by batch.

    W: the columns of the output projection that read the head. With F in place of A, the squared change of output row i is
    (A - F)_i G (A - F)_i^T, G = (V W)(V W)^T; its mean over the images follows from those of G, of A G and of the diagonal of
    A G A^T, whatever F is. Rows of the last block that the classifier does not read, all but a ViT's class token, change nothing.
    maps: of every block, where they are not the network's own but shared by windows, which all change then.
    """

    def __init__(self, network: Network, maps: Sequence[Maps] | None = None):
        shapes = [each.shape for each in maps or network.maps]
        self.gram = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self.cross = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self.power = [torch.zeros(shape[:2], dtype=torch.float64) for shape in shapes]
        self.images = [0.0] * len(shapes)
        self.per_image = [each.per_image for each in maps or network.maps]
        self.last, self.read = len(shapes) - 1, network.read
        projections = [block.proj.weight.unflatten(1, (block.heads, -1)) for block in network.blocks]
        metric = [torch.einsum("ohc,ohd->hcd", weight, weight) for weight in projections]  # W W^T of every head
        self.metric = [each.repeat(shape[0] // len(each), 1, 1) for each, shape in zip(metric, shapes, strict=True)]

    def add(self, block: int, maps: Tensor, values: Tensor) -> None:
        """Take in one batch of a block: maps [batch, maps, tokens, tokens] and values [batch, maps, tokens, head_dim], float64."""
        context = maps @ values
        projected = context @ self.metric[block]
        self.gram[block] += torch.einsum("bhic,bhjc->hij", values @ self.metric[block], values)
        self.cross[block] += torch.einsum("bhic,bhjc->hij", projected, values)
        self.power[block] += (projected * context).sum(dim=3).sum(dim=0)
        self.images[block] += len(maps) / self.per_image[block]

    def rows(self, block: int, frozen: np.ndarray) -> np.ndarray:
        """Mean squared change of each output row if the whole row of the map is frozen at `frozen`, in equal shares to its weights.

        frozen and result: [maps, tokens, tokens], float64. Exact but for rounding; the sum over a head is what freezing the
        whole head changes.
        """
        f = torch.from_numpy(frozen).double()
        change = self.power[block] + ((f @ self.gram[block] - 2 * self.cross[block]) * f).sum(dim=2)
        return self._read(block, change[:, :, None].expand(f.shape) / f.shape[2])

    def weights(self, block: int, variance: np.ndarray) -> np.ndarray:
        """Expected squared change if one weight is frozen at its mean: var(a_ij) E|v_j W|^2, float64 [maps, tokens, tokens].

        variance: of every weight, same shape. Takes a weight and its value to be uncorrelated.
        """
        norm = self.gram[block].diagonal(dim1=1, dim2=2)
        return self._read(block, torch.from_numpy(variance).double() * norm[:, None, :])

    def _read(self, block: int, change: Tensor) -> np.ndarray:
        """A block's change [maps, tokens, tokens] per image, without the rows that nothing reads."""
        if block == self.last:
            read = torch.zeros_like(change)
            read[:, self.read] = change[:, self.read]
            change = read
        return (change / self.images[block]).numpy()
