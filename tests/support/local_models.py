"""Small random models in folders as timm saves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_classes": 5,
}
ARCHITECTURES = {"vit": ("vit_tiny_patch16_224", VIT), "swin": ("swin_tiny_patch4_window7_224", SWIN)}


Fields = Mapping[str, Any]
NONE: Fields = {}


def size_of(args: Fields) -> list[int]:
    size = args["img_size"]
    return [size, size] if isinstance(size, int) else list(size)


def save_model(folder: Path, kind: str = "vit", *, args: Fields = NONE, cfg: Fields = NONE, top: Fields = NONE, change: Any = None) -> Any:
    """The module whose configuration and weights were saved; `change` is what becomes of its state_dict first."""
    architecture, small = ARCHITECTURES[kind]
    args = {**small, **args}
    torch.manual_seed(0)
    module = timm.create_model(architecture, **args).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pretrained = {"input_size": [3, *size_of(args)], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0}
    config = {"architecture": architecture, "num_classes": args["num_classes"], "model_args": args, "pretrained_cfg": {**pretrained, **cfg}}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **top}))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    save_file(change(state) if change else state, folder / "model.safetensors")
    return module
