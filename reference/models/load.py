"""Float models: timm names, `local-dir:` folders and `hf-hub:` repositories, as checked parameters of a plain ViT or Swin."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eamsim.arguments import expect_images, expect_type
from eamsim.errors import BadFile, UserError
from eamsim.files.origin import public_name
from eamsim.inputs.images import Preprocessing
from reference.models.checkpoint import first_line, load_weights
from reference.models.config import labels_of, preprocessing_of, read_config, recorded
from reference.models.networks import Network, check_supported, network_of

log = logging.getLogger(__name__)

LOCAL, HUB = "local-dir:", "hf-hub:"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
hub_logging.set_verbosity_error()  # not a line for every attempt to connect: the last one becomes our error
OFFLINE = f"give --weights FILE, use {LOCAL}DIR, or build untrained with --random-init SEED"


@dataclass(frozen=True, eq=False)
class Model:
    """A float model: timm's module in eval mode, its parameters as `network`, and how its images are prepared.

    label_names: one per class, or None where the model does not name them; label_descriptions: of these names; config: the fields
    of its configuration that are recorded; remarks: what was changed or left out on the way, one sentence each.
    """

    name: str
    module: VisionTransformer | SwinTransformer
    network: Network
    preprocessing: Preprocessing
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_names: tuple[str, ...] | None
    label_descriptions: Mapping[str, str] | None
    config: Mapping[str, Any]
    remarks: tuple[str, ...] = ()

    def tensor(self, images: np.ndarray) -> Tensor:
        """At least one image uint8 [batch, height, width, 3] of the model's size, as its network takes it; else UserError."""
        expect_images(images, (self.preprocessing.height, self.preprocessing.width, 3), 1)
        return torch.from_numpy(np.require(images, requirements=("C", "W")))


def load_model(
    spec: str,
    weights: str | None = None,
    random_init: int | None = None,
    allow_pickle: bool = False,
    image_size: tuple[int, int] | None = None,
) -> Model:
    """The model `spec` (a timm name, `local-dir:DIR` or `hf-hub:ID`) with trained, given or random weights.

    weights: a safetensors file, a pickle (only with allow_pickle), `local-dir:DIR` or `hf-hub:ID`; random_init: the seed of
    untrained weights; image_size: height and width of the images, where not the model's own; position tables are resampled as timm does.
    Logs every remark. Raises UserError for what cannot be had or is not supported, BadFile for a file that is
    unusable.
    """
    if weights is not None and random_init is not None:
        raise UserError("--weights and --random-init: expected at most one of them, got both; drop one")
    config, remarks = read_config(_config_file(spec)) if spec.startswith((LOCAL, HUB)) else ({}, ())
    source = weights or (spec if config else None)
    if random_init is not None:
        module = _untrained(spec, random_init, image_size)
    elif source is None:
        module = _download(spec, image_size)
    else:
        module = check_supported(_create(spec, image_size), spec)
        trained_size = _trained_size(weights) if image_size is None else _trained_size(source)
        remarks += load_weights(module, _weights_file(source, allow_pickle), trained_size)
    model = as_model(module.eval(), public_name(spec))
    if config:
        _check_agreement(model, config, image_size)
    for remark in remarks:
        log.warning("%s: %s", spec, remark)
    return replace(model, remarks=remarks)


def as_model(module: nn.Module, name: str) -> Model:
    """A timm module as a Model; UserError names the first feature that is not a plain ViT's or Swin's."""
    expect_type("model", module, nn.Module)
    plain: Any = check_supported(module, name)
    cfg = getattr(plain, "pretrained_cfg", None)
    if not cfg:
        raise UserError(f"model {name!r}: has no pretrained_cfg, which says how images are prepared; make it by timm.create_model")
    try:
        preprocessing, mean, std = preprocessing_of(cfg, plain.patch_embed.img_size)
        labels, descriptions = labels_of(cfg, plain.num_classes)
    except UserError as error:
        raise _unusable(name, str(error)) from error
    return Model(name, plain, network_of(plain, mean, std), preprocessing, mean, std, labels, descriptions, recorded(cfg))


def _check_agreement(model: Model, config: Mapping[str, Any], image_size: tuple[int, int] | None) -> None:
    """BadFile where config.json says one thing of the model and its arguments have made another."""
    module: Any = model.module
    size = image_size or tuple(module.pretrained_cfg["input_size"][1:])
    if size != module.patch_embed.img_size:
        said, built = (" x ".join(map(str, each)) for each in (size, module.patch_embed.img_size))
        raise _unusable(model.name, f"its input_size says images of {said}, its model takes {built}; correct input_size or model_args")
    pooling = config.get("global_pool", module.global_pool)
    if pooling != module.global_pool:
        advice = "correct it, or put it into model_args"
        raise _unusable(model.name, f"its config says pooling by {pooling!r}, timm builds {module.global_pool!r} of it; {advice}")


def _unusable(spec: str, what: str) -> UserError:
    """A BadFile where the configuration is a local file."""
    return (BadFile if spec.startswith(LOCAL) else UserError)(f"model {spec!r}: {what}")


def _create(spec: str, image_size: tuple[int, int] | None) -> nn.Module:
    """The module without trained weights."""
    if not spec.startswith((LOCAL, HUB)) and not _is_timm_name(spec):
        close = difflib.get_close_matches(spec, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names"
        raise UserError(f"model {spec!r}: expected a timm name, {LOCAL}DIR or {HUB}ID; {hint}")
    try:
        return timm.create_model(spec, pretrained=False, **_sized(image_size))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise _unusable(spec, f"cannot be built ({first_line(error)}); check its name and configuration") from error


def _sized(image_size: tuple[int, int] | None) -> dict[str, Any]:
    """The argument by which timm builds a model for images of another size than its own."""
    return {} if image_size is None else {"img_size": image_size}


def _untrained(spec: str, seed: int, image_size: tuple[int, int] | None) -> nn.Module:
    """Random weights that every processor draws alike: of their float64, in whose last bits processors differ, eight bits are kept."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _create(spec, image_size).bfloat16().float()
    finally:
        torch.set_default_dtype(before)


def _is_timm_name(spec: str) -> bool:
    return not set(spec) & set("/\\:") and timm.is_model(spec)


def _download(name: str, image_size: tuple[int, int] | None) -> nn.Module:
    check_supported(_create(name, image_size), name)  # before the long download
    try:
        return timm.create_model(name, pretrained=True, **_sized(image_size))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"model {name!r}: its trained weights cannot be downloaded ({first_line(error)}); {OFFLINE}") from error


def _config_file(spec: str) -> Path:
    return _from_hub(spec.removeprefix(HUB), "config.json") if spec.startswith(HUB) else Path(spec.removeprefix(LOCAL)) / "config.json"


def _trained_size(weights: str | None) -> tuple[int, int] | None:
    """Height and width of the images that weights of another folder were trained for, where its config.json says so."""
    if weights is None or not weights.startswith(LOCAL) or not _config_file(weights).is_file():
        return None
    config, _ = read_config(_config_file(weights))
    size = config.get("model_args", {}).get("img_size") or config.get("pretrained_cfg", config).get("input_size", (224, 224))[-2:]
    return (size, size) if isinstance(size, int) else tuple(size)


def _weights_file(source: str, allow_pickle: bool) -> Path:
    """The file to read, safetensors before pickles; a pickle only if allowed."""
    if source.startswith(HUB):
        path = _from_hub(source.removeprefix(HUB), *WEIGHT_FILES[: 2 if allow_pickle else 1])
    elif source.startswith(LOCAL):
        folder = Path(source.removeprefix(LOCAL))
        path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), folder / WEIGHT_FILES[0])
    else:
        path = Path(source)
    if not path.is_file():
        raise BadFile(f"{path}: no such file; {OFFLINE}")
    if path.suffix != ".safetensors" and not allow_pickle:
        raise UserError(f"{path}: not a .safetensors file; pickles are read only with --allow-pickle")
    return path


def _from_hub(repository: str, *names: str) -> Path:
    """The first of the files that the repository has, downloaded."""
    identity, _, revision = repository.partition("@")
    try:
        for name in names:
            try:
                return Path(hf_hub_download(identity, name, revision=revision or None))
            except LocalEntryNotFoundError:  # no connection
                raise
            except EntryNotFoundError:
                continue
    except (OSError, ValueError) as error:
        raise UserError(f"{HUB}{repository}: cannot be downloaded ({first_line(error)}); {OFFLINE}") from error
    raise UserError(f"{HUB}{repository}: has no {' or '.join(names)}; pickles are read only with --allow-pickle")
