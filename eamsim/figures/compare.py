"""A comparison of a program with PyTorch: how the error grows from value to value, and where it is born."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import BaseModel, Field, ValidationError

from eamsim.errors import BadFile
from eamsim.figures.style import PAGE_INCHES, new_figure, style
from eamsim.files.limits import TEXT_BYTES
from eamsim.files.reading import read_bytes

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#000000")
KINDS = ("attn.proj", "mlp.fc2", "norm1", "attn.codes", "attn", "norm2", "mlp.fc1")
"""Of the values of a block, those whose growth is drawn: both ends of the residual stream, and what is quantised on the way."""


class _Value(BaseModel):
    value: str
    snr_db: float | None


class _Source(BaseModel):
    source: str
    share: float | None


class _Decisions(BaseModel):
    differ: float


class _Top1(BaseModel):
    program: float
    float: float
    fake: float


class _Comparison(BaseModel):
    images: int
    values: list[_Value] = Field(min_length=1)
    decisions: dict[Literal["float", "fake"], _Decisions] = Field(min_length=2)
    top1: _Top1 | None
    sources: list[_Source] = []


def read_comparison(path: Path) -> dict[str, Any]:
    """What the figures need of what `eamsim compare --json` printed; BadFile names what is wrong."""
    try:
        return _Comparison.model_validate_json(read_bytes(path, TEXT_BYTES)).model_dump()
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "; ".join(f"{each['loc']}: {each['msg']}" for each in error.errors()[:2])
        raise BadFile(f"{path}: not a comparison ({reason}); make it with `eamsim compare --json`") from error


@style()
def compare_figure(comparison: dict[str, Any]) -> Figure:
    """Signal-to-noise ratios against the block, and the sources of the error if they were measured."""
    sources = bool(comparison["sources"])
    figure = new_figure(PAGE_INCHES, 3.0)
    axes = figure.subplots(1, 1 + sources, squeeze=False)[0]
    draw_growth(axes[0], comparison)
    if sources:
        draw_sources(axes[1], comparison)
    return figure


def draw_growth(axis: Axes, comparison: dict[str, Any]) -> None:
    """A line for each kind of value, block by block."""
    ratios = {row["value"]: row["snr_db"] for row in comparison["values"]}
    blocks = sum(name.endswith(".norm1") for name in ratios)
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        points = [(i, ratios[name]) for i in range(blocks) if ratios.get(name := f"block{i}.{kind}") is not None]
        axis.plot(*zip(*points, strict=True), "o-", color=colour, label=kind) if points else None
    axis.set(xlabel="block", ylabel="signal to noise against float (dB)")
    axis.grid(color="0.9", linewidth=0.4)
    axis.legend(ncols=2)


def draw_sources(axis: Axes, comparison: dict[str, Any]) -> None:
    """Bars, the largest on top; what sums up others stands out."""
    rows = sorted((row for row in comparison["sources"] if row["share"] is not None), key=lambda row: row["share"])
    colours = [COLOURS[5] if row["source"].startswith("all ") else COLOURS[0] for row in rows]
    axis.barh([row["source"] for row in rows], [100 * row["share"] for row in rows], color=colours)
    axis.set_xlabel("share of the logits' variance, alone (%)")
    axis.margins(y=0.01)
