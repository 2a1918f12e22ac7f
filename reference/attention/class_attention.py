"""The attention maps of one image, for Figure 1 of the paper."""

from __future__ import annotations

import numpy as np

from eamsim.errors import UserError
from reference.models.load import Model
from reference.quantisation.fakequant import collect_maps
from reference.quantisation.repq import Calibrated


def attention_of_image(model: Model | Calibrated, image: np.ndarray, layer: int) -> tuple[int, np.ndarray]:
    """The number of a layer, and its maps (Eq. 11) of one image: float64 [heads, tokens, tokens].

    image: uint8 [height, width, 3]; layer: from 0, or from -1 backwards. Raises UserError for a layer that does not exist.
    """
    maps: list[np.ndarray] = []
    collect_maps(model, [image[None]], lambda block, batch: maps.append(batch[0].copy()))
    if not -len(maps) <= layer < len(maps):
        raise UserError(f"--layer: expected 0 to {len(maps) - 1}, or -1 for the last, got {layer}")
    return layer % len(maps), maps[layer]
