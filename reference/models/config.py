"""A model's configuration as timm writes it: what of it is used, recorded, without effect on inference, or refused."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from eamsim.errors import BadFile, UserError
from eamsim.files.limits import TEXT_BYTES
from eamsim.files.reading import read_text
from eamsim.inputs.images import Preprocessing
from reference.models.checkpoint import first_line

Use = Literal["used", "recorded", "no effect", "refused"]

PRETRAINED_CFG: dict[str, tuple[Use, str]] = {
    "input_size": ("used", "three channels and the height and width of the images; must be what the model is built for"),
    "fixed_input_size": ("used", "by timm: the model is then built for `input_size`"),
    "interpolation": ("used", "to resize images: bicubic, bilinear, nearest, box, hamming or lanczos"),
    "crop_pct": ("used", "to resize images"),
    "crop_mode": ("used", "to resize and crop images: center, squash or border"),
    "mean": ("used", "to normalise pixels, and for the colour of borders"),
    "std": ("used", "to normalise pixels"),
    "num_classes": ("used", "the width of the classifier"),
    "label_names": ("used", "one for each class: a list, or index -> name"),
    "tag": ("used", "and recorded: `in1k` in it says that 1,000 classes are ImageNet's, whose names are then taken from timm"),
    "label_descriptions": ("recorded", "label name -> description"),
    "test_input_size": ("recorded", "timm takes it on request alone, for models without fixed size"),
    "test_crop_pct": ("recorded", "timm takes it on request alone"),
    "architecture": ("recorded", "the name that timm builds"),
    "license": ("recorded", "for people"),
    "description": ("recorded", "for people"),
    "origin_url": ("recorded", "for people"),
    "paper_name": ("recorded", "for people"),
    "paper_ids": ("recorded", "for people"),
    "notes": ("recorded", "for people"),
    "min_input_size": ("no effect", "it limits other sizes than the model's own"),
    "pool_size": ("no effect", "it describes the feature map of a convolutional network"),
    "test_pool_size": ("no effect", "it describes the feature map of a convolutional network"),
    "first_conv": ("no effect", "it names the layer to adapt to another number of channels"),
    "classifier": ("no effect", "it names the layer to replace for other classes"),
    "url": ("no effect", "weights come from where the command says"),
    "file": ("no effect", "weights come from where the command says"),
    "state_dict": ("no effect", "weights come from where the command says"),
    "hf_hub_id": ("no effect", "weights come from where the command says"),
    "source": ("no effect", "weights come from where the command says"),
    "custom_load": ("no effect", "it says how timm reads what it downloads itself"),
    "hf_hub_filename": ("refused", "give the file with --weights"),
    "label_offset": ("refused", "cut the extra classes off the classifier's weights"),
}
"""Field of timm's PretrainedCfg -> what becomes of it in a config.json, and why (docs/guide/models.md)."""

TOP: dict[str, tuple[Use, str]] = {
    "architecture": ("used", "the name that timm builds"),
    "pretrained_cfg": ("used", "see below; without it, its fields stand here"),
    "model_args": ("used", "see below"),
    "num_classes": ("used", "the width of the classifier, before that of `pretrained_cfg`"),
    "label_names": ("used", "before those of `pretrained_cfg`"),
    "labels": ("used", "the old name of `label_names`, where there is no `pretrained_cfg`"),
    "global_pool": ("used", "must be how the model pools"),
    "label_descriptions": ("recorded", "before those of `pretrained_cfg`"),
    "num_features": ("no effect", "the model's own"),
}
"""Field of config.json -> the same."""

TRAINING = (
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "weight_init",
    "fix_init",
)
BUILDING = (
    "img_size",
    "patch_size",
    "in_chans",
    "num_classes",
    "global_pool",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "qk_norm",
    "scale_attn_norm",
    "scale_mlp_norm",
    "proj_bias",
    "init_values",
    "class_token",
    "pos_embed",
    "no_embed_class",
    "reg_tokens",
    "pre_norm",
    "final_norm",
    "fc_norm",
    "pool_include_prefix",
    "dynamic_img_size",
    "dynamic_img_pad",
    "embed_layer",
    "embed_norm_layer",
    "norm_layer",
    "act_layer",
    "block_fn",
    "mlp_layer",
    "attn_layer",
    "depths",
    "head_dim",
    "window_size",
    "always_partition",
    "strict_img_size",
)
MODEL_ARGS: dict[str, tuple[Use, str]] = {
    **dict.fromkeys(BUILDING, ("used", "timm builds the model by it")),
    **dict.fromkeys(TRAINING, ("no effect", "of training alone")),
    **dict.fromkeys(("device", "dtype"), ("refused", "the model is built in float32 on the processor")),
}
"""Argument of timm's VisionTransformer and SwinTransformer in `model_args` -> the same."""


def read_config(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration in config.json, `pretrained_cfg` as a part of its own, and remarks on what timm does not know.

    Raises BadFile for what is not one, for fields that are refused, and where two fields contradict each other.
    """
    config = _json(path)
    pretrained, args = config.get("pretrained_cfg", {}), config.get("model_args", {})
    for name, value in (("pretrained_cfg", pretrained), ("model_args", args)):
        if not isinstance(value, dict):
            raise BadFile(f"{path}: the model cannot be built ({name} must be a JSON object, got {type(value).__name__}); correct it")
    nested = "pretrained_cfg" in config
    top = {name: value for name, value in config.items() if nested or name in TOP or name not in PRETRAINED_CFG}
    pretrained = pretrained if nested else {name: value for name, value in config.items() if name not in top}
    _check_fields(path, "pretrained_cfg", pretrained, PRETRAINED_CFG)
    _check_fields(path, "model_args", args, MODEL_ARGS)
    classes = top.get("num_classes", pretrained.get("num_classes"))
    if None not in (classes, args.get("num_classes")) and args["num_classes"] != classes:
        raise BadFile(f"{path}: num_classes is {classes}, but {args['num_classes']} in model_args; correct one of them")
    remarks = tuple(f"{path.name}: {_unknown(name, TOP)}; it has no effect" for name in top if name not in TOP)
    return config, remarks


def _json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path, TEXT_BYTES))
    except FileNotFoundError as error:
        raise BadFile(f"{path}: no such file; local-dir:DIR needs config.json and model.safetensors, as timm saves them") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path}: not a readable JSON file ({first_line(error)})") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise BadFile(f"{path}: expected a JSON object with the key 'architecture', as timm saves it")
    return config


def _check_fields(path: Path, part: str, found: Mapping[str, Any], table: Mapping[str, tuple[Use, str]]) -> None:
    for name, value in found.items():
        if name not in table:
            raise BadFile(f"{path}: {_unknown(name, table)} of {part}; correct or remove it")
        use, why = table[name]
        if use == "refused" and value:
            raise BadFile(f"{path}: {name} {value!r:.60} in {part} is not supported; {why}, and remove it")


def _unknown(name: str, table: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, table, n=1)
    return f"{name!r} is no field timm knows{f' (did you mean {close[0]!r}?)' if close else ''}"


def recorded(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a module's pretrained_cfg that a program's provenance keeps, except labels, which have keys of their own."""
    names = [name for name, (use, _) in PRETRAINED_CFG.items() if use == "recorded" or name == "tag"]
    return {name: cfg[name] for name in names if name in cfg and name != "label_descriptions"}


def preprocessing_of(cfg: Mapping[str, Any], size: tuple[int, int]) -> tuple[Preprocessing, tuple[float, ...], tuple[float, ...]]:
    """How images of height x width are prepared, their mean and their std for each of three channels.

    What is absent is timm's default; what is there is not replaced, were it 0. Raises UserError.
    """
    data = resolve_data_config(pretrained_cfg=dict(cfg)) | {name: value for name, value in cfg.items() if value is not None}
    try:
        mean, std = (tuple(float(value) for value in data[key]) for key in ("mean", "std"))
        if (len(mean), len(std)) != (3, 3) or not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
            raise UserError(f"expected three finite means and three positive stds, got {mean} and {std}")
        fill = tuple(min(max(round(255 * value), 0), 255) for value in mean) if data["crop_mode"] == "border" else (0, 0, 0)
        return Preprocessing(*size, float(data["crop_pct"]), data["interpolation"], data["crop_mode"], fill), mean, std
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"its pretrained_cfg does not say how to prepare images ({error}); correct it") from error


def labels_of(cfg: Mapping[str, Any], classes: int) -> tuple[tuple[str, ...] | None, dict[str, str] | None]:
    """The names of a model's classes, one each, and the descriptions of these names; None where it has none.

    Names by index are put in order; 1,000 classes of a model whose tag says ImageNet-1k have timm's. Raises UserError.
    """
    names, descriptions = cfg.get("label_names"), cfg.get("label_descriptions")
    if names is None:
        if infer_imagenet_subset({"num_classes": classes}) != "imagenet-1k" or "in1k" not in str(cfg.get("tag")).split("_"):
            return None, descriptions
        imagenet = ImageNetInfo("imagenet-1k")
        names = imagenet.label_names()
        return tuple(names), {name: imagenet.label_name_to_description(name) for name in names}
    if isinstance(names, dict):
        names = _in_order(names, classes)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"label_names must be texts, a list or index -> name, got {names!r:.60}; correct or remove them")
    if len(names) != classes:
        raise UserError(f"label_names has {len(names)} names, expected one for each of {classes} classes; correct or remove them")
    return tuple(names), descriptions


def _in_order(names: dict[Any, Any], classes: int) -> list[Any]:
    try:
        by_index = {int(index): name for index, name in names.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"label_names must be a list or index -> name ({error}); correct or remove them") from error
    if sorted(by_index) != list(range(classes)) or len(by_index) != len(names):
        wanted = next((i for i in range(classes) if i not in by_index), None)
        fault = f"index {wanted} is missing" if wanted is not None else f"it has {len(names)} entries"
        raise UserError(f"label_names must name the classes 0..{classes - 1}, each once, but {fault}; correct or remove them")
    return [by_index[index] for index in range(classes)]
