"""The integers of a program beside the float network and beside fake quantisation, value by value (docs/guide/compare.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eamsim.program import Attention
from eamsim.progress import Advance
from reference.crosscheck.rebuild import Rebuilt
from reference.quantisation.levels import Grid
from reference.quantisation.quantisers import LogSqrt2

Taps = Mapping[str, np.ndarray]
Run = Callable[[np.ndarray], Taps]
"""uint8 images [batch, height, width, 3] -> integers [batch, ...] by name: those of `tap_names`."""
LOGITS = "head"


def tap_names(rebuilt: Rebuilt) -> set[str]:
    """The taps that `compare` reads."""
    blocks = range(len(rebuilt.fake.attention))
    sites = [*rebuilt.fake.activations, *rebuilt.streams, *(f"block{i}.attn.codes" for i in blocks)]
    return {tap_of(rebuilt, name) for name in sites}


def tap_of(rebuilt: Rebuilt, name: str) -> str:
    """The tap that holds the value of a site."""
    if name == "input":
        return "patches"
    block, _, part = name.rpartition(".")
    if part in ("q", "k", "v"):
        op = attention_of(rebuilt, name)
        return op.inputs[-1] if part == "q" else op.x
    reverse = f"{block}.reverse"  # of a Swin, whose windows are brought back to the order of tokens
    return reverse if part == "attn" and reverse in rebuilt.operations else name


def compare(rebuilt: Rebuilt, batches: Iterable[np.ndarray], run: Run, labels: np.ndarray | None, advance: Advance) -> dict[str, Any]:
    """Keys images, values (a row for each, in the order of execution), decisions and accuracies; memory holds the values of one batch.

    batches: uint8 [batch, height, width, 3]; labels: int64 [images], or None; advance: called with each batch's images.
    """
    sums: dict[str, Sums] = {}
    logits: list[np.ndarray] = []
    for images in batches:
        expected, found, taps = recorded(rebuilt.float_logits, images), recorded(rebuilt.fake_logits, images), run(images)
        for name in expected:
            sums.setdefault(name, Sums()).add(rebuilt, name, expected[name], found[name], taps[tap_of(rebuilt, name)])
        integers = taps[LOGITS].reshape(len(images), -1) * rebuilt.streams[LOGITS]
        logits.append(np.stack([integers, expected[LOGITS], found[LOGITS]]))
        advance(len(images))
    program, own, fake = np.concatenate(logits, axis=1)
    networks = {"program": program, "float": own, "fake": fake}
    hits = {} if labels is None else {name: each.argmax(axis=1) == labels for name, each in networks.items()}
    return {
        "images": len(own),
        "values": [{"value": name} | each.row() for name, each in sums.items()],
        "decisions": {"float": decisions(program, own), "fake": decisions(program, fake)},
        "fake_logits_snr_db": decibels(float(np.vdot(own, own)), float(np.square(own - fake).sum())),
        "top1": {name: float(each.mean()) for name, each in hits.items()} or None,
        "top1_change": {name: paired(hits["program"], each) for name, each in hits.items() if name != "program"} or None,
    }


def paired(hits: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """What bools [images] gain over others of the same images, as a fraction, and the standard error of the pairs."""
    change = hits.astype(float) - base
    return {"mean": float(change.mean()), "standard_error": float(change.std() / math.sqrt(len(change)))}


def recorded(forward: Callable[..., np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """The value of every site, and the logits."""
    seen: dict[str, np.ndarray] = {}

    def see(name: str, x: Tensor) -> Tensor:
        seen[name] = x.numpy()
        return x

    logits = forward(images, see)
    return seen | {LOGITS: logits}


def decisions(program: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """Images on which two sets of logits [images, classes] decide differently, as a fraction, and the other's margins there.

    A margin is the other's highest logit less its logit of the class that the program chose.
    """
    chosen = np.take_along_axis(other, program.argmax(axis=1)[:, None], axis=1)[:, 0]
    margins = (other.max(axis=1) - chosen)[program.argmax(axis=1) != other.argmax(axis=1)]
    mean, most = (float(margins.mean()), float(margins.max())) if len(margins) else (None, None)
    return {"differ": len(margins) / len(other), "margin_mean": mean, "margin_max": most}


class Sums:
    """Of one value over all images, in float64: enough for every number of its row."""

    def __init__(self) -> None:
        self.elements = self.low = self.high = self.differ = 0
        self.coded = False
        self.products = np.zeros(6)

    def add(self, rebuilt: Rebuilt, name: str, own: np.ndarray, fake: np.ndarray, tap: np.ndarray) -> None:
        """One batch: float64 values of the float and of the fake-quantised network, and the tap's integers."""
        integers, own, fake = (np.ascontiguousarray(each) for each in aligned(rebuilt, name, tap, own, fake))
        grid = grid_of(rebuilt, name)
        if isinstance(grid, Grid | LogSqrt2):
            found, low, high = decoded(grid, integers), 0, (1 << grid.bits) - 1
            self.coded = True
            # Values of an even or fitted grid are equal where their codes are; the last bit of a power of two is exp2's affair.
            other = found != fake if isinstance(grid, Grid) else grid.codes(torch.from_numpy(fake)).numpy() != integers
            self.differ += int(np.count_nonzero(other))
        else:
            bits = rebuilt.operations[name].out.bits
            found, low, high = integers * grid, -1 << (bits - 1), (1 << (bits - 1)) - 1
        self.elements += integers.size
        self.low += int(np.count_nonzero(integers == low))
        self.high += int(np.count_nonzero(integers == high))
        pairs = ((found, found), (own, own), (fake, fake), (found, own), (found - own,) * 2, (found - fake,) * 2)
        self.products += [float(np.vdot(*pair)) for pair in pairs]

    def row(self) -> dict[str, float | None]:
        """What docs/guide/compare.md lists; None for what is not defined."""
        energy, own, fake, product, own_noise, fake_noise = self.products.tolist()
        count = self.elements or None
        return {
            "snr_db": decibels(own, own_noise),
            "cosine": product / math.sqrt(energy * own) if energy * own > 0 else None,
            "at_low": count and self.low / count,
            "at_high": count and self.high / count,
            "fake_snr_db": decibels(fake, fake_noise),
            "codes_differ": self.differ / count if count and self.coded else None,
        }


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise); None where either is 0."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def grid_of(rebuilt: Rebuilt, name: str) -> Grid | LogSqrt2 | float:
    """What the integers of a value stand for; of a signed value its scale."""
    if name.endswith(".attn.codes"):
        return rebuilt.fake.attention[block_of(name)]
    return rebuilt.fake.activations[name] if name in rebuilt.fake.activations else rebuilt.streams[name]


def decoded(grid: Grid | LogSqrt2, codes: np.ndarray) -> np.ndarray:
    """float64 of the same shape."""
    return grid.decode(torch.arange(1 << grid.bits, dtype=torch.float64)).numpy().take(codes)


def attention_of(rebuilt: Rebuilt, name: str) -> Attention:
    """That of the block of `block3.attn.codes`."""
    op = rebuilt.operations[f"block{block_of(name)}.attn"]
    assert isinstance(op, Attention)
    return op


def block_of(name: str) -> int:
    """3 of `block3.attn.codes`."""
    return int(name.partition(".")[0].removeprefix("block"))


def aligned(rebuilt: Rebuilt, name: str, tap: np.ndarray, own: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tap's integers and both networks' values, element by element: of q and k the heads that are scored, of maps no excluded pair.

    A tap with fewer rows is of a ViT's last block, and has the class token's, which come first.
    """
    part = name.rpartition(".")[2]
    if part not in ("q", "k", "v", "codes"):
        rows = tap[0, ..., 0].size
        own, fake = (np.ascontiguousarray(each.reshape(len(tap), -1, tap.shape[-1])[:, :rows]).reshape(tap.shape) for each in (own, fake))
        return tap, own, fake
    op = attention_of(rebuilt, name)
    rows = op.rows if part in ("q", "codes") else op.tokens
    own, fake = (each.reshape(len(tap), op.windows, op.heads, op.tokens, -1)[..., :rows, :] for each in (own, fake))
    if part == "codes":
        tap = tap.reshape(own.shape)
        if op.excluded is None:
            return tap, own, fake
        integers, own, fake = (each.swapaxes(1, 2)[:, :, ~op.excluded] for each in (tap, own, fake))
        return integers, own, fake
    scored = list(op.score_heads)
    heads = list(range(op.heads)) if part == "v" else scored
    parts = "qkv" if op.queries is None else "q" if part == "q" else "kv"
    columns = np.split(tap, np.cumsum([len(scored) * op.head_dim] * (len(parts) - 1)), axis=2)[parts.index(part)]
    integers = columns.reshape(len(tap), op.windows, rows, len(heads), op.head_dim).swapaxes(2, 3)
    return integers, own[:, :, heads], fake[:, :, heads]
