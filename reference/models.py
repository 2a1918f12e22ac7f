"""Float models: timm names, `local-dir:` folders and `hf-hub:` repositories, as checked parameters of a plain ViT or Swin."""

from __future__ import annotations

import difflib
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eamsim.errors import BadFile, UserError
from eamsim.images import Preprocessing
from eamsim.origin import public_name
from reference.networks import Network, check_supported, network_of

LOCAL, HUB = "local-dir:", "hf-hub:"
SAFE_FILE, PICKLE_FILE = "model.safetensors", "pytorch_model.bin"
hub_logging.set_verbosity_error()  # not a line for every attempt to connect: the last one becomes our error
OFFLINE = f"give --weights FILE, use {LOCAL}DIR, or build untrained with --random-init SEED"


@dataclass(frozen=True, eq=False)
class Model:
    """A float model: timm's module in eval mode, its parameters as `network`, and how its images are prepared.

    label_names: one per class, or None where the model does not name them.
    """

    name: str
    module: VisionTransformer | SwinTransformer
    network: Network
    preprocessing: Preprocessing
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_names: tuple[str, ...] | None


def load_model(spec: str, weights: str | None = None, random_init: int | None = None, allow_pickle: bool = False) -> Model:
    """The model `spec` (a timm name, `local-dir:DIR` or `hf-hub:ID`) with trained, given or random weights.

    weights: a safetensors file, a pickle (only with allow_pickle), `local-dir:DIR` or `hf-hub:ID`; random_init: the seed of
    untrained weights. Raises UserError for what cannot be had or is not supported, BadFile for a file that is unusable.
    """
    if weights is not None and random_init is not None:
        raise UserError("--weights and --random-init: expected at most one of them, got both; drop one")
    source = weights or (spec if spec.startswith((LOCAL, HUB)) else None)
    if random_init is not None:
        module = _untrained(spec, random_init)
    elif source is None:
        module = _download(spec)
    else:
        module = _create(spec)
        _load(module, _weights_file(source, allow_pickle))
    return as_model(module.eval(), public_name(spec))


def as_model(module: nn.Module, name: str) -> Model:
    """A timm module as a Model; UserError names the first feature that is not a plain ViT's or Swin's."""
    plain: Any = check_supported(module, name)
    cfg = plain.pretrained_cfg
    labels = cfg.get("label_names")
    preprocessing, mean, std = _preprocessing(name, cfg, plain.patch_embed.img_size)
    return Model(
        name,
        plain,
        network_of(plain, mean, std),
        preprocessing,
        mean,
        std,
        tuple(map(str, labels)) if labels is not None and len(labels) == plain.num_classes else None,
    )


def _preprocessing(name: str, cfg: Any, size: tuple[int, int]) -> tuple[Preprocessing, tuple[float, ...], tuple[float, ...]]:
    """How the model's images are prepared, their mean and std for each of three channels."""
    try:
        preprocessing = Preprocessing(*size, float(cfg["crop_pct"]), cfg["interpolation"])
        mean, std = (tuple(float(value) for value in cfg[key]) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise _unusable(name, f"its pretrained_cfg does not say how to prepare images ({error}); correct it") from error
    if (len(mean), len(std)) != (3, 3) or not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise _unusable(
            name, f"expected three finite means and three positive stds in its pretrained_cfg, got {mean} and {std}; correct them"
        )
    return preprocessing, mean, std


def _unusable(spec: str, what: str) -> UserError:
    """A BadFile where the configuration is a local file."""
    return (BadFile if spec.startswith(LOCAL) else UserError)(f"model {spec!r}: {what}")


def _create(spec: str) -> nn.Module:
    """The module without trained weights."""
    if spec.startswith(LOCAL):
        _check_config(Path(spec.removeprefix(LOCAL)) / "config.json")
    elif not spec.startswith(HUB) and not _is_timm_name(spec):
        close = difflib.get_close_matches(spec, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names"
        raise UserError(f"model {spec!r}: expected a timm name, {LOCAL}DIR or {HUB}ID; {hint}")
    try:
        return timm.create_model(spec, pretrained=False)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise _unusable(spec, f"cannot be built ({_first_line(error)}); check its name and configuration") from error


def _untrained(spec: str, seed: int) -> nn.Module:
    """Random weights that every processor draws alike: of their float64, in whose last bits processors differ, eight bits are kept."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _create(spec).bfloat16().float()
    finally:
        torch.set_default_dtype(before)


def _is_timm_name(spec: str) -> bool:
    return not set(spec) & set("/\\:") and timm.is_model(spec)


def _download(name: str) -> nn.Module:
    check_supported(_create(name), name)  # before the long download
    try:
        return timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"model {name!r}: its trained weights cannot be downloaded ({_first_line(error)}); {OFFLINE}") from error


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise BadFile(f"{path}: no such file; {LOCAL}DIR needs config.json and {SAFE_FILE}, as timm saves them") from error
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: not a readable JSON file ({_first_line(error)})") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise BadFile(f"{path}: expected a JSON object with the key 'architecture', as timm saves it")


def _weights_file(source: str, allow_pickle: bool) -> Path:
    """The file to read, safetensors before pickles; a pickle only if allowed."""
    if source.startswith(HUB):
        path = _from_hub(source.removeprefix(HUB), allow_pickle)
    elif source.startswith(LOCAL):
        folder = Path(source.removeprefix(LOCAL))
        path = next((folder / name for name in (SAFE_FILE, PICKLE_FILE) if (folder / name).is_file()), folder / SAFE_FILE)
    else:
        path = Path(source)
    if not path.is_file():
        raise BadFile(f"{path}: no such file; {OFFLINE}")
    if path.suffix != ".safetensors" and not allow_pickle:
        raise UserError(f"{path}: not a .safetensors file; pickles are read only with --allow-pickle")
    return path


def _from_hub(repository: str, allow_pickle: bool) -> Path:
    repository, _, revision = repository.partition("@")
    try:
        try:
            return Path(hf_hub_download(repository, SAFE_FILE, revision=revision or None))
        except LocalEntryNotFoundError:  # no connection
            raise
        except EntryNotFoundError:
            if not allow_pickle:
                raise UserError(f"{HUB}{repository}: has no {SAFE_FILE}; its pickle is read only with --allow-pickle") from None
            return Path(hf_hub_download(repository, PICKLE_FILE, revision=revision or None))
    except (OSError, ValueError) as error:
        raise UserError(f"{HUB}{repository}: cannot be downloaded ({_first_line(error)}); {OFFLINE}") from error


def _load(module: nn.Module, path: Path) -> None:
    """Fill the module; BadFile names the first tensor that is missing, unknown, of another shape, or not finite."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on the pickle
            found = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler anywhere
        more = "weights_only" in str(error)  # torch's refusal, which advises to run whatever the pickle asks for
        reason = f"it holds more than tensors; save its state_dict as {SAFE_FILE}" if more else _first_line(error)
        raise BadFile(f"{path}: not a readable file of weights ({reason})") from error
    expected = module.state_dict()
    for name, tensor in expected.items():
        if not isinstance(found.get(name), Tensor):
            raise BadFile(f"{path}: tensor {name} is missing; the weights belong to another model")
        if found[name].shape != tensor.shape:
            raise BadFile(
                f"{path}: {name} must be {list(tensor.shape)}, got {list(found[name].shape)}; the weights belong to another model"
            )
        if not found[name].isfinite().all():
            raise BadFile(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged or its training diverged")
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise BadFile(f"{path}: unknown tensor {unknown[0]}; the weights belong to another model")
    module.load_state_dict(found)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
