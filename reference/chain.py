"""The chain in Python, from what a notebook holds: a module or a name, and images in any form; quantise, freeze, lower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eamsim.arguments import described, expect_type
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet, in_memory, open_images
from eamsim.progress import Progress, silent
from reference.attention.collect import attention_statistics, frozen_maps, quantise_on
from reference.attention.freeze import Freezing, FrozenMap
from reference.models.load import Model, as_model, load_model
from reference.quantisation.levels import Grid
from reference.quantisation.precision import W4A4, Precision
from reference.quantisation.quantisers import Affine, as_scale
from reference.quantisation.repq import Calibrated

Images = np.ndarray | str | Path | Iterable[Any]
"""uint8 [n, height, width, 3]; a path or several; a torch Dataset or DataLoader; or any iterable of batches, with labels or without."""
TOLERANCE = 0.01  # of a level: what float32 leaves of a pixel that was normalised


def quantise(
    model: str | nn.Module | Model,
    images: Images,
    range_images: int = 32,
    progress: Progress = silent,
    compensated: bool = True,
    precision: Precision = W4A4,
) -> Calibrated:
    """RepQ-ViT's quantisers in the hardware-true form, as `eamsim build` has them; not tuned.

    model: a timm name, local-dir:DIR, hf-hub:ID, or a module that timm has made. range_images: so many, evenly spaced, set the ranges;
    compensated: weights and biases re-fitted to what quantisation loses; precision: bits and kinds of codes. Raises UserError
    and BadFile.
    """
    found = opened(model)
    return quantise_on(found, image_set(found, images), range_images, progress, compensated, precision)


def freeze(calibrated: Calibrated, images: Images, freezing: Freezing, progress: Progress = silent) -> list[FrozenMap]:
    """The attention weights that change least over the images (or as `freezing` orders them), block by block; lowered with the rest.

    A mask of your own: `dataclasses.replace(maps[block], mask=bool [heads, tokens, tokens])`, which keeps the mean map.
    """
    expect_type("calibrated", calibrated, Calibrated)
    expect_type("freezing", freezing, Freezing)
    return frozen_maps(attention_statistics(calibrated, image_set(calibrated.model, images), progress, [freezing.order]), freezing)


def with_quantisers(calibrated: Calibrated, given: Mapping[str, Affine]) -> Calibrated:
    """Quantisers of your own, or of another tool, in place of those that were found, by the name of the value or of the layer's output.

    given: name -> Affine. `block0.mlp.fc1` is the activation, `weight:block0.mlp.fc1` the weights behind it, a scale a channel. Each has
    the shape and bits of what it replaces, a finite positive scale, and whole zero points within the codes. Raises UserError.
    """
    expect_type("calibrated", calibrated, Calibrated)
    expect_type("given", given, Mapping)
    activations, weights = dict(calibrated.activations), dict(calibrated.weights)
    for name, quantiser in given.items():
        table, key = (weights, name.removeprefix("weight:")) if name.startswith("weight:") else (activations, name)
        if key not in table:
            raise UserError(f"{name}: expected a quantised value, got none of that name; the names are those of .activations and .weights")
        table[key] = _checked(name, quantiser, table[key])
    return replace(calibrated, activations=activations, weights=weights)


def opened(model: str | nn.Module | Model) -> Model:
    """The float model, its parameters checked."""
    expect_type("model", model, str, nn.Module, Model)
    if isinstance(model, nn.Module):
        return as_model(model.eval(), str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)))
    return load_model(model) if isinstance(model, str) else model


def image_set(model: Model, images: Images) -> ImageSet:
    """The images as the model takes them. UserError for pixels that cannot be told."""
    if isinstance(images, np.ndarray):
        return in_memory(images)
    if isinstance(images, str | Path):
        return open_images([Path(images)], model.preprocessing)
    if isinstance(images, Dataset) and not isinstance(images, DataLoader):
        images = DataLoader(images, batch_size=64)
    if not isinstance(images, Iterable):
        raise UserError(f"images: expected pixels, paths or batches, got {described(images)}; give uint8 [n, height, width, 3] or a folder")
    parts = list(images)
    if parts and all(isinstance(part, str | Path) for part in parts):
        return open_images([Path(part) for part in parts], model.preprocessing)
    return in_memory(np.concatenate([_pixels(model, part) for part in parts]) if parts else np.empty((0, 0, 0, 3), np.uint8))


def _pixels(model: Model, batch: Any) -> np.ndarray:
    """uint8 [n, height, width, 3] of a batch: pixels, or floats [n, 3, height, width] in [0, 1] or normalised as the model wants them."""
    batch = batch[0] if isinstance(batch, list | tuple) else batch  # the others are labels
    if isinstance(batch, np.ndarray):
        return batch
    if not isinstance(batch, Tensor) or batch.ndim != 4:
        raise UserError(f"images: expected batches of pixels, got {type(batch).__name__}; give uint8 [n, height, width, 3] or a DataLoader")
    if batch.dtype == torch.uint8:
        return (batch if batch.shape[3] == 3 else batch.permute(0, 2, 3, 1)).contiguous().numpy()
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (model.mean, model.std))
    for unit in (batch.double(), batch.double() * std + mean):
        levels = unit * 255
        if (levels - levels.round()).abs().max() < TOLERANCE and levels.min() > -0.5 and levels.max() < 255.5:
            return levels.round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    raise UserError("images: expected floats that are k / 255, also normalised with the model's mean and std; give uint8 pixels")


def _checked(name: str, quantiser: Affine, old: Grid) -> Affine:
    expect_type(name, quantiser, Affine)
    limit = (1 << old.bits) - 1
    if (quantiser.bits, quantiser.scale.shape, quantiser.zero.shape) != (old.bits, old.scale.shape, old.zero.shape):
        shapes = f"{quantiser.bits} bits, scale {list(quantiser.scale.shape)}, zero {list(quantiser.zero.shape)}"
        raise UserError(f"{name}: expected {old.bits} bits, scale {list(old.scale.shape)}, zero {list(old.zero.shape)}, got {shapes}")
    if not (torch.isfinite(quantiser.scale) & (quantiser.scale > 0)).all():
        raise UserError(f"{name}: expected finite scales above 0")
    if not ((quantiser.zero == quantiser.zero.round()) & (quantiser.zero >= 0) & (quantiser.zero <= limit)).all():
        raise UserError(f"{name}: expected whole zero points in 0..{limit}")
    return Affine(as_scale(quantiser.scale), quantiser.zero.double(), old.bits)
