"""The cocotb side of test_rtl.py: one unit, one operation of an export, random stalls on both sides.

In the environment: EAM_VECTORS the folder, EAM_UNIT, EAM_PARAMETERS the testbench's parameters, EAM_OUTPUTS how many to compare at most.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from eamsim.traces.vectors import read_hex, read_manifest

Ports = dict[str, int]


class Vectors:
    """Tensors of an export by name: taps int64 [images, ...], constants [...]."""

    def __init__(self, folder: Path):
        self.folder = folder
        _, self.layout, entries = read_manifest(folder)
        self.entries = {entry.name: entry for entry in entries}

    def __call__(self, name: str) -> np.ndarray:
        return read_hex(self.folder / self.entries[name].file, self.entries[name], self.layout)

    def get(self, name: str, otherwise: np.ndarray) -> np.ndarray:
        return self(name) if name in self.entries else otherwise


def packed(values: np.ndarray, bits: int) -> int:
    """Lanes of one port, the first in the lowest bits."""
    return sum((int(value) & ((1 << bits) - 1)) << (bits * lane) for lane, value in enumerate(values))


def dot_requant(v: Vectors, p: dict[str, Any]) -> tuple[Iterator[Ports], Iterator[Ports]]:
    name, lanes = p["NAME"], p["LANES"]
    x, weight = v(p["X"]).reshape(-1, p["IN"]), v(f"{name}.weight")
    fields = {"w_zero": "weight_zero", "bias": "bias", "multiplier": "multiplier", "shift": "shift", "zero": "zero"}
    constants = {port: v(f"{name}.{field}") for port, field in fields.items()}
    edge = -p["IN"] % lanes
    x = np.pad(x, [(0, 0), (0, edge)])
    weight = np.concatenate([weight, np.tile(constants["w_zero"], (edge, 1))])

    def beats() -> Iterator[Ports]:
        for row in x:
            for n in range(weight.shape[1]):
                stable = {port: int(constant[n]) for port, constant in constants.items()} | {"x_zero": p["X_ZERO"]}
                for k in range(0, len(row), lanes):
                    operands = {"x": packed(row[k : k + lanes], p["X_BITS"]), "w": packed(weight[k : k + lanes, n], p["W_BITS"])}
                    yield stable | operands | {"in_last": int(k + lanes >= len(row))}

    acc, out = v(f"{name}.acc").ravel(), v(name).ravel()
    return beats(), ({"acc": int(a), "out": int(o)} for a, o in zip(acc, out, strict=True))


def gelu_table(v: Vectors, p: dict[str, Any]) -> tuple[Iterator[Ports], Iterator[Ports]]:
    name = p["NAME"]
    acc = v(f"{name}.acc").reshape(-1, p["CHANNELS"])
    multiplier, shift = v(f"{name}.multiplier"), v(f"{name}.shift")
    beats = ({"acc": int(a), "multiplier": int(multiplier[n]), "shift": int(shift[n])} for row in acc for n, a in enumerate(row))
    index, out = v(f"{name}.index").ravel(), v(name).ravel()
    return beats, ({"index": int(i), "out": int(o)} for i, o in zip(index, out, strict=True))


def layer_norm_row(v: Vectors, p: dict[str, Any]) -> tuple[Iterator[Ports], Iterator[Ports]]:
    name, channels, mask = p["NAME"], p["CHANNELS"], (1 << p["OUT_BITS"]) - 1
    x, offset = v(p["X"]).ravel(), int(p["VARIANCE_OFFSET"])
    variance, reciprocal = (v(f"{name}.{tap}").ravel() for tap in ("variance", "reciprocal"))
    normalised, out = v(f"{name}.normalised").ravel(), v(name).ravel()
    expected = (
        {"variance": int(variance[i // channels]), "reciprocal": int(reciprocal[i // channels]), "normalised": int(normalised[i])}
        | {"out": int(out[i]) & mask}
        for i in range(len(out))
    )
    return ({"x": int(value), "variance_offset": offset} for value in x), expected


def softmax_row(v: Vectors, p: dict[str, Any]) -> tuple[Iterator[Ports], Iterator[Ports]]:
    name, renormalised = p["NAME"], p["RENORMALISED"]
    scores = v(f"{name}.scores")
    none = np.zeros(scores.shape[1:], np.int64)
    frozen = np.broadcast_to(v.get(f"{name}.frozen.mask", none), scores.shape) == 1
    codes = np.broadcast_to(v.get(f"{name}.frozen.codes", none), scores.shape) << (p["ATTENTION_BITS"] - p.get("FROZEN_BITS", 0))
    excluded = np.broadcast_to(v.get(f"{name}.excluded", none[:, 0])[:, None], scores.shape) == 1
    mass = np.broadcast_to(v.get(f"{name}.frozen.row_log2", none[..., 0])[..., None], scores.shape) * renormalised
    computed = ~excluded & ~(frozen & bool(renormalised))
    given = np.where(excluded, (1 << p["ATTENTION_BITS"]) - 1, codes)
    ports = {"score": scores, "computed": computed, "given": frozen | excluded, "given_code": given * (frozen | excluded), "row_log2": mass}
    flat = {port: array.ravel() for port, array in ports.items()}
    scale = {"log2_scale": int(p["LOG2_SCALE"])}
    log_sum = np.broadcast_to(v(f"{name}.log_sum")[..., None], scores.shape)
    found = {"exponent": v(f"{name}.exponents").ravel(), "log_sum": log_sum.ravel(), "code": v(f"{name}.codes").ravel()}
    pairs = range(scores.size)
    beats = (scale | {port: int(array[i]) for port, array in flat.items()} for i in pairs)
    return beats, ({port: int(array[i]) for port, array in found.items()} for i in pairs)


def av_row(v: Vectors, p: dict[str, Any]) -> tuple[Iterator[Ports], Iterator[Ports]]:
    name, heads, head_dim, tokens, bits = (p[key] for key in ("NAME", "HEADS", "HEAD_DIM", "TOKENS", "ACC_BITS"))
    codes, even, odd = (v(f"{name}.{tap}") for tap in ("codes", "even", "odd"))
    maps = (len(codes) * p["WINDOWS"], heads, tokens)
    parts = v(p["X"]).reshape(maps[0], tokens, -1, head_dim)
    values = parts[:, :, 2 * p["SCORED"] :].transpose(0, 2, 1, 3)
    excluded = np.broadcast_to(v.get(f"{name}.excluded", np.zeros((p["WINDOWS"], tokens, tokens), np.int64))[:, None], codes.shape[1:])
    excluded = np.broadcast_to(excluded, codes.shape).reshape(*maps, tokens)
    codes = codes.reshape(*maps, tokens)
    out = v(name).reshape(maps[0], tokens, heads, head_dim).transpose(0, 2, 1, 3).reshape(-1, head_dim)

    def beats() -> Iterator[Ports]:
        for m, h, i in np.ndindex(*maps):
            for j in range(tokens):
                pair = {"code": int(codes[m, h, i, j]), "excluded": int(excluded[m, h, i, j])}
                yield pair | {"v": packed(values[m, h, j], p["V_BITS"]), "in_last": int(j == tokens - 1)}

    sums = zip(even.reshape(-1, head_dim), odd.reshape(-1, head_dim), out, strict=True)
    return beats(), ({"even": packed(e, bits), "odd": packed(o, bits), "out": packed(c, p["OUT_BITS"])} for e, o, c in sums)


UNITS = {unit.__name__: unit for unit in (dot_requant, gelu_table, layer_norm_row, softmax_row, av_row)}


@cocotb.test()
async def equals_golden(dut: Any) -> None:
    parameters, most = json.loads(os.environ["EAM_PARAMETERS"]), int(os.environ["EAM_OUTPUTS"])
    beats, expected = UNITS[os.environ["EAM_UNIT"]](Vectors(Path(os.environ["EAM_VECTORS"])), parameters)
    draw = random.Random(1)
    Clock(dut.clk, 2, "step").start()
    dut.in_valid.value, dut.out_ready.value, dut.rst.value = 0, 0, 1
    await RisingEdge(dut.clk)
    dut.rst.value = 0
    cocotb.start_soon(offer(dut, beats, draw))
    compared = 0
    for want in expected:
        found = await accept(dut, want, draw)
        assert found == want, f"output {compared}: expected {want}, found {found}"
        compared += 1
        if compared == most:
            break
    assert compared > 0
    dut._log.info(f"{compared} outputs equal")


async def offer(dut: Any, beats: Iterator[Ports], draw: random.Random) -> None:
    """Each beat stays until it is taken; stalls before some."""
    for beat in beats:
        while draw.random() < 0.2:
            dut.in_valid.value = 0
            await RisingEdge(dut.clk)
        for port, value in beat.items():
            getattr(dut, port).value = value
        dut.in_valid.value = 1
        await taken(dut, dut.in_ready)
    dut.in_valid.value = 0


async def taken(dut: Any, ready: Any) -> None:
    """Until the end of a clock in which `ready` was high."""
    while True:
        await ReadOnly()
        is_ready = int(ready.value) == 1
        await RisingEdge(dut.clk)
        if is_ready:
            return


async def accept(dut: Any, want: Ports, draw: random.Random) -> Ports:
    """The next output, which must not change in the clocks in which it waits."""
    waiting: Ports = {}
    while True:
        ready = draw.random() >= 0.2
        dut.out_ready.value = int(ready)
        await ReadOnly()
        valid = int(dut.out_valid.value) == 1
        found = {port: signed_like(getattr(dut, port).value, value) for port, value in want.items()} if valid else {}
        assert not waiting or found == waiting, f"output changed from {waiting} to {found} while it waited"
        await RisingEdge(dut.clk)
        if valid and ready:
            return found
        waiting = found


def signed_like(value: Any, want: int) -> int:
    return value.to_signed() if want < 0 else value.to_unsigned()
