"""Published designs against the model: descriptions with their sources, what was printed about them, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cost_model.chip.hardware import Array, Hardware
from cost_model.chip.technology import Energy
from cost_model.models.architectures import architecture
from cost_model.models.skeleton import skeleton
from cost_model.price.energy import Estimate, evaluate, product_energy

PUBLISHED = files("cost_model") / "published"
WITHIN = 2.0
"""As many times more or less than published counts as agreement."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedFigure(_Strict):
    """One number of a source; model: the network, where it is not the design's; reason: why the model is far from it."""

    quantity: str
    published: float = Field(gt=0)
    where: str
    model: str | None = None
    reason: str = ""


class Design(_Strict):
    """A design; bits: of weights and activations; chosen: what of its description no source gives."""

    title: str
    year: int
    where: str
    url: str
    model: str
    bits: int
    figures: tuple[PublishedFigure, ...]
    chosen: str
    hardware: Hardware


@dataclass(frozen=True)
class Comparison:
    """One published figure beside the model's; ratio: modelled / published."""

    design: str
    model: str
    quantity: str
    published: float
    modelled: float
    where: str
    reason: str

    @property
    def ratio(self) -> float:
        return self.modelled / self.published

    @property
    def agrees(self) -> bool:
        return 1 / WITHIN <= self.ratio <= WITHIN


def seconds(estimate: Estimate) -> float:
    """Of an image among many."""
    return estimate.milliseconds_per_image / 1e3


def operations(estimate: Estimate) -> int:
    """Two for each multiply-accumulate of an image."""
    return 2 * sum(gemm.needed_macs for op in estimate.operations for gemm, _ in op.runs) // estimate.batch


def tops_per_watt(estimate: Estimate, energy: Energy) -> float:
    """Operations per picojoule."""
    return operations(estimate) / energy.nominal_pj


def array_energy(estimate: Estimate) -> Energy:
    """Of multipliers, adders and their registers alone."""
    return sum((product_energy(estimate.hardware.compute, op.runs) for op in estimate.operations), Energy()) * (1 / estimate.batch)


def core_energy(estimate: Estimate) -> Energy:
    """All but the DRAM's."""
    dram = estimate.hardware.memories.dram
    behind = dram.energy(*estimate.traffic.of("dram")) if dram else Energy()
    return estimate.energy - behind * (1 / estimate.batch)


def gops_per_dsp(estimate: Estimate) -> float:
    """Two 8-bit multipliers of the array are one DSP."""
    assert isinstance(estimate.hardware.compute, Array)
    return operations(estimate) / seconds(estimate) / 1e9 / (estimate.hardware.compute.macs_per_cycle / 2)


QUANTITIES: dict[str, tuple[str, Callable[[Estimate], float]]] = {
    "images_per_second": ("images/s", lambda estimate: 1 / seconds(estimate)),
    "kcycles_per_image": ("kcycles an image", lambda estimate: estimate.cycles_per_image / 1e3),
    "latency_ms": ("ms, first to last", lambda estimate: estimate.latency_cycles / (1e3 * estimate.hardware.frequency_mhz)),
    "utilisation": ("multipliers in use", lambda estimate: estimate.utilisation),
    "gops_per_dsp": ("GOp/s a DSP", gops_per_dsp),
    "array_tops_per_watt": ("TOp/J of the array", lambda estimate: tops_per_watt(estimate, array_energy(estimate))),
    "core_tops_per_watt": ("TOp/J without DRAM", lambda estimate: tops_per_watt(estimate, core_energy(estimate))),
}


def designs() -> list[Design]:
    """All that ship with the package, by file name."""
    texts = sorted((path.name, path.read_text(encoding="utf-8")) for path in PUBLISHED.iterdir() if path.name.endswith(".yaml"))
    return [Design.model_validate(yaml.safe_load(text)) for _, text in texts]


def compared(design: Design) -> Iterator[Comparison]:
    """Every figure of a design, at batch 1, nothing frozen."""
    for figure in design.figures:
        model = figure.model or design.model
        program = skeleton(replace(architecture(model), weight_bits=design.bits, code_bits=design.bits))
        label, modelled = QUANTITIES[figure.quantity]
        value = modelled(evaluate(program, design.hardware))
        yield Comparison(design.hardware.name, model, label, figure.published, value, figure.where, figure.reason)
