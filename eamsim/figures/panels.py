"""The rows of sweeps as the curves of a figure: what is drawn together, what it is called, and what varies with the seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean

from eamsim.errors import UserError
from eamsim.jobs.sweep_table import Row, Runner, SweepUnit, Variant, read_sweep

WORDS = {
    "eam-fp32": "EAM FP32",
    "eam-4bits": "EAM 4 bits",
    "random-4bits": "random 4 bits",
    "fakequant": "fake-quantised",
    "engine": "integers",
    "paper": "softmax of Eq. 15",
    "renormalised": "renormalised softmax",
}
"""What a figure calls what a table abbreviates; anything else is called what it is."""

BASELINES: dict[Runner, str] = {"float": "full precision", "fakequant": "RepQ-ViT, fake-quantised", "engine": "RepQ-ViT, integers"}


@dataclass(frozen=True)
class Curve:
    """Top-1 against tau: mean, lowest and highest over the seeds, fractions, one for each tau in rising order."""

    variant: Variant
    runner: Runner
    softmax: str
    label: str
    taus: list[float]
    mean: list[float]
    lowest: list[float]
    highest: list[float]


@dataclass(frozen=True)
class Panel:
    """What shares its axes: the curves of one model, and its accuracies with nothing frozen, fractions by label."""

    title: str
    baselines: dict[str, float]
    curves: list[Curve]


def read_sweeps(paths: Iterable[Path]) -> list[Row]:
    """The rows of several tables, each once. Raises BadFile, and UserError for accuracies that do not belong together."""
    rows = list(dict.fromkeys(row for path in paths for row in read_sweep(path)))
    if not rows:
        raise UserError("sweep.csv: expected at least one row, got none; run `eamsim sweep`")
    seen: dict[SweepUnit, Row] = {}
    images: dict[str, int] = {}
    for row in rows:
        unit = SweepUnit(**{field.name: getattr(row, field.name) for field in fields(SweepUnit)})
        other = seen.setdefault(unit, row)
        if other is not row:
            raise UserError(f"sweep.csv: one unit with two accuracies, {other.top1} and {row.top1}: {unit}; give tables of the same data")
        if images.setdefault(row.model, row.images) != row.images:
            raise UserError(
                f"sweep.csv: {row.model} was evaluated on {images[row.model]} and on {row.images} images; give one of the tables"
            )
    return rows


def accuracy_panels(rows: Sequence[Row]) -> list[Panel]:
    """Figure 5: both EAM variants and softmax meanings, a panel for each model and each choice of what is frozen."""
    drawn = [row for row in rows if row.variant in ("eam-fp32", "eam-4bits")]
    if not drawn:
        raise UserError("sweep.csv: expected rows of the variants eam-fp32 or eam-4bits, got none; run `eamsim sweep`")
    return _panels(rows, drawn, ("model", "granularity", "scope", "order"))


def ablation_panels(rows: Sequence[Row]) -> list[Panel]:
    """Figure 6: EAM against random fixing, a panel for each model, softmax and choice of what is frozen that has both."""

    def comparable(row: Row) -> tuple[str, ...]:
        return row.model, row.softmax, row.runner, row.granularity, row.scope

    variants: tuple[Variant, ...] = ("eam-4bits", "random-4bits")
    eam, random = ({comparable(row) for row in rows if row.variant == variant} for variant in variants)
    drawn = [row for variant in variants for row in rows if row.variant == variant and comparable(row) in eam & random]
    if not drawn:
        raise UserError(
            "sweep.csv: expected rows of eam-4bits and random-4bits that differ in the order alone, got none; "
            "run `eamsim sweep --variant eam-4bits,random-4bits`"
        )
    return _panels(rows, drawn, ("model", "softmax", "granularity", "scope", "order"))


def short_name(model: str) -> str:
    """What a figure calls a model: the last part of its folder or repository."""
    return model.rstrip("/").rpartition("/")[2].rpartition(":")[2]


def varying(rows: Iterable[Row], fields: Iterable[str]) -> list[str]:
    """The fields in which rows differ; who is chosen at random says nothing of the order."""
    rows = list(rows)
    return [field for field in fields if len({getattr(row, field) for row in rows} - {"random"}) > 1]


def words(row: Row, fields: Iterable[str]) -> list[str]:
    """A row's fields as a reader of a figure knows them."""
    return [WORDS.get(name, name) for name in (str(getattr(row, field)) for field in fields)]


def _panels(rows: Sequence[Row], drawn: Sequence[Row], shared: Sequence[str]) -> list[Panel]:
    """A panel for each value of the fields that its rows share; random rows belong to every order. Titles and labels say what varies."""
    places: dict[tuple[str, ...], Row] = {}
    for row in drawn:
        if row.variant != "random-4bits":
            places.setdefault(tuple(getattr(row, field) for field in shared), row)
    in_title = varying(drawn, [field for field in shared if field != "model"])
    in_label = ["variant", *varying(drawn, [field for field in ("softmax", "runner") if field not in shared])]
    panels = []
    for place, first in places.items():
        members = [row for row in drawn if all(getattr(row, f) in (value, "random") for f, value in zip(shared, place, strict=True))]
        about = ", ".join([f"{first.images:,} images", *words(first, in_title)])
        panels.append(Panel(f"{short_name(first.model)}\n{about}", _baselines(rows, first.model), _curves(members, in_label)))
    return panels


def _baselines(rows: Sequence[Row], model: str) -> dict[str, float]:
    found = {row.runner: row.top1 for row in rows if (row.model, row.variant) == (model, "baseline")}
    return {BASELINES[runner]: found[runner] for runner in BASELINES if runner in found}


def _curves(rows: Sequence[Row], in_label: Sequence[str]) -> list[Curve]:
    groups: dict[tuple[str, ...], dict[float, list[float]]] = {}
    first: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = row.variant, row.softmax, row.runner
        first.setdefault(key, row)
        groups.setdefault(key, {}).setdefault(row.tau, []).append(row.top1)
    return [_curve(first[key], ", ".join(words(first[key], in_label)), dict(sorted(group.items()))) for key, group in groups.items()]


def _curve(row: Row, label: str, top1: dict[float, list[float]]) -> Curve:
    means, lowest, highest = ([f(each) for each in top1.values()] for f in (mean, min, max))
    return Curve(row.variant, row.runner, row.softmax, label, list(top1), means, lowest, highest)
