"""Trains the embedded model, a small DeiT, on scikit-learn's handwritten digits; for these digits only, no general trainer.

`python -m reference.models.train --out DIR` takes about a minute and a half on one core and writes what `eamsim/data/digits` holds:
`config.json` and `model.safetensors` in the layout of timm's `local-dir:`, `digits_calib.npz` (the training images) and
`digits_test.npz` (the held-out images). Equal versions of torch and timm on equal machines give equal weights.

Data: the 1,797 images of the UCI "Optical Recognition of Handwritten Digits" test set, 8 x 8 pixels. Both halves share writers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from eamsim.errors import MissingExtra, UserError

ARCHITECTURE = "deit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 10}
CLASSES = tuple("0123456789")
SEED = 0
EPOCHS = 60
BATCH = 32
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
SHIFT_PROBABILITY = 0.25


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images uint8 [1797, 8, 8, 3], grey as RGB, `level * 255 // 16`, and labels uint8 [1797]."""
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingExtra("reference", "training on scikit-learn's digits") from None
    levels, labels = datasets.load_digits(return_X_y=True)
    grey = (levels.astype(np.int64) * 255 // 16).astype(np.uint8)
    return np.repeat(grey.reshape(-1, 8, 8, 1), 3, axis=3), labels.astype(np.uint8)


def held_out(labels: np.ndarray) -> np.ndarray:
    """The fixed split: bool mask of every fifth image of each class, in the order of the data; labels [images]."""
    mask = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[4::5]] = True
    return mask


def normalise(images: np.ndarray) -> Tensor:
    """uint8 [images, height, width, 3] -> float32 [images, 3, height, width] in [-1, 1]: mean and deviation 0.5."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


def train(images: np.ndarray, labels: np.ndarray, epochs: int) -> nn.Module:
    """Train on uint8 images [images, 8, 8, 3] and labels [images]; seeded, a line per tenth of the epochs on standard error."""
    torch.manual_seed(SEED)
    model = timm.create_model(ARCHITECTURE, weight_init="jax", **MODEL_ARGS).train()
    inputs, targets = normalise(images), torch.from_numpy(labels).long()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, epochs=epochs, steps_per_epoch=steps, pct_start=0.1)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            loss = functional.cross_entropy(model(shift(inputs[batch])), targets[batch], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        if epoch % max(1, epochs // 10) == 0:
            print(f"epoch {epoch} of {epochs}: loss {loss.item():.3f}", file=sys.stderr)
    return model.eval()


def shift(inputs: Tensor) -> Tensor:
    """Augmentation: now and then the whole batch moves by up to one pixel each way; the background (-1) fills the border."""
    if torch.rand(()) >= SHIFT_PROBABILITY:
        return inputs
    row, column = torch.randint(3, (2,)).tolist()
    height, width = inputs.shape[2:]
    return functional.pad(inputs, (1, 1, 1, 1), value=-1.0)[:, :, row : row + height, column : column + width]


@torch.inference_mode()
def top1(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, a fraction in [0, 1]; uint8 images [images, 8, 8, 3], labels [images]."""
    return float((model(normalise(images)).argmax(1).numpy() == labels).mean())


def save_model(model: nn.Module, out: Path) -> None:
    """Write `config.json` and `model.safetensors`, as `timm.create_model("local-dir:DIR", pretrained=True)` reads them."""
    size = MODEL_ARGS["img_size"]
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASSES),
        "num_features": MODEL_ARGS["embed_dim"],
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "num_classes": len(CLASSES),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": CLASSES,
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(model.state_dict(), out / "model.safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Train, write the checkpoint and both halves of the data, print the held-out accuracy."""
    parser = argparse.ArgumentParser(prog="python -m reference.models.train", description="Train the embedded digits model.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the model and the data are written")
    out = parser.parse_args(arguments).out
    if out.exists() and not out.is_dir():
        parser.error(f"--out: must be a directory, got the file {out}; name another")
    try:
        images, labels = load_digits()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    test = held_out(labels)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("digits_calib", ~test), ("digits_test", test)):
        np.savez_compressed(out / f"{name}.npz", images=images[part], labels=labels[part], classes=np.array(CLASSES))
    model = train(images[~test], labels[~test], EPOCHS)
    save_model(model, out)
    print(f"held-out top-1 {top1(model, images[test], labels[test]):.4f} of {test.sum()} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
