"""Trained weights from a file, in every form that timm loads, fitted to a module by timm's own functions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import timm.models
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as fit_swin
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as fit_vit
from torch import Tensor

from eamsim.errors import BadFile

WRAPPERS = ("model.", "module.", "state_dict.", "_orig_mod.")
"""What training frameworks put before every name."""

State = dict[str, Tensor]


def load_weights(module: VisionTransformer | SwinTransformer, path: Path, source_size: tuple[int, int] | None = None) -> tuple[str, ...]:
    """Fill the module from `path` and say, one remark each, in what the weights are no longer the file's.

    Old names and tables of another size are converted as timm converts downloads. source_size: height and width of the images the
    weights were trained for, if known. Raises BadFile, which names the first tensor that is missing, unknown, of another shape or
    type, or not finite.
    """
    found, remarks = _unwrapped(_read(path))
    remarks += _averaged(path, found)
    expected = module.state_dict()
    _check_types(path, found, expected)
    fitted = _fit(module, path, found, source_size)
    _check_types(path, fitted, expected)
    _check(path, fitted, expected)
    module.load_state_dict(fitted)
    return tuple(remarks + _changes(found, fitted))


def _read(path: Path, average: bool = True) -> State:
    """All floats as float32, exactly where they are narrower; average: of a training's checkpoint the averaged weights, if it has them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on the pickle
            found = timm.models.load_state_dict(str(path), use_ema=average, weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler anywhere
        more = "weights_only" in str(error)  # torch's refusal, which advises to run whatever the pickle asks for
        reason = f"it holds more than tensors; save its state_dict as {path.stem}.safetensors" if more else first_line(error)
        raise BadFile(f"{path}: not a readable file of weights ({reason})") from error
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise BadFile(f"{path}: {name} is of type {type(tensor).__name__}, expected tensors alone; save the model's state_dict")
    try:  # each a tensor object of its own, by which `_changes` knows it
        return {name: (tensor.float() if tensor.is_floating_point() else tensor).detach() for name, tensor in found.items()}
    except (RuntimeError, TypeError) as error:  # packed types, such as float4
        raise BadFile(f"{path}: holds floats that torch cannot convert ({first_line(error)}); save it as float32") from error


def _unwrapped(found: State) -> tuple[State, list[str]]:
    prefix = next((prefix for prefix in WRAPPERS if found and all(name.startswith(prefix) for name in found)), None)
    if prefix is None:
        return found, []
    inner, remarks = _unwrapped({name.removeprefix(prefix): tensor for name, tensor in found.items()})
    return inner, [f"weights: {prefix!r} before every name was dropped", *remarks]


def _averaged(path: Path, found: State) -> list[str]:
    """timm prefers the averaged weights of a training's checkpoint to its last ones."""
    if path.suffix == ".safetensors":  # holds one set
        return []
    last, _ = _unwrapped(_read(path, average=False))
    same = last.keys() == found.keys() and all(map(torch.equal, last.values(), found.values()))
    return [] if same else ["weights: of the checkpoint's two sets the averaged one (EMA) was taken, as timm takes it"]


def _fit(module: VisionTransformer | SwinTransformer, path: Path, found: State, source_size: tuple[int, int] | None) -> State:
    if source_size is not None:
        vars(module)["pretrained_model_args"] = {"img_size": source_size}  # where timm's resampling looks for it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on speed
            return fit_swin(dict(found), module) if isinstance(module, SwinTransformer) else fit_vit(dict(found), module)
    except Exception as error:  # timm's converters do not check what they convert
        raise BadFile(f"{path}: timm cannot fit its tensors to the model ({first_line(error)})") from error


def _changes(found: State, fitted: State) -> list[str]:
    """What timm's conversion did, told by the tensor objects that it kept."""
    names, kept = {id(tensor): name for name, tensor in found.items()}, set(map(id, fitted.values()))
    made = {name: tensor for name, tensor in fitted.items() if id(tensor) not in names and not _equal(found.get(name), tensor)}
    renamed = [(names[id(tensor)], name) for name, tensor in fitted.items() if names.get(id(tensor), name) != name]
    dropped = [name for name, tensor in found.items() if id(tensor) not in kept and name not in fitted]
    remarks = [
        f"weights: {name} {list(tensor.shape)} was resampled from {list(found[name].shape)}" if name in found else f"weights: made {name}"
        for name, tensor in made.items()
    ]
    if renamed:
        remarks.append(f"weights: {len(renamed)} tensors were renamed, such as {renamed[0][0]} to {renamed[0][1]}")
    if dropped:
        remarks.append(f"weights: {len(dropped)} tensors were dropped, which timm's model does without, such as {dropped[0]}")
    return remarks


def _equal(before: Tensor | None, after: Tensor) -> bool:
    return before is not None and torch.equal(before, after)


def _check_types(path: Path, tensors: State, expected: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name in expected and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise BadFile(f"{path}: {name} holds {kind}, expected floats; the model was quantised already: take the weights before that")


def _check(path: Path, fitted: State, expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in fitted:
            raise BadFile(f"{path}: tensor {name} is missing; the weights belong to another model")
        if fitted[name].shape != tensor.shape:
            shapes = f"must be {list(tensor.shape)}, got {list(fitted[name].shape)}"
            raise BadFile(f"{path}: {name} {shapes}; the weights belong to another model")
        if not fitted[name].isfinite().all():
            causes = "the checkpoint is damaged, its training diverged, or its type is too narrow (float16 ends at 65504)"
            raise BadFile(f"{path}: {name} holds NaN or infinite values; {causes}")
    for name in fitted:
        if name not in expected:
            raise BadFile(f"{path}: unknown tensor {name}; remove it, or the weights belong to another model")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
