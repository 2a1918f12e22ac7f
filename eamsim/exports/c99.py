"""A program as a C99 program: the sources in eamsim/exports/c, the same for all, and program.bin with operations, tables and weights.

program.bin holds, in the order in which model.c takes them, numbers of 8 bytes (little endian, two's complement) and arrays: bits
per element, is_signed, then the elements in the narrowest packing of `eamsim.files.packing`. It ends in its own SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, assert_never, get_args

import numpy as np

from eamsim.arguments import PIXELS, expect_array, expect_path
from eamsim.constraints import Verified, expect_verified
from eamsim.errors import BadFile, UserError
from eamsim.files.container import replacing_all
from eamsim.files.packing import BITS, narrowest, pack
from eamsim.program import (
    Attention,
    Embed,
    Epilogue,
    Frozen,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Overflow,
    Pool,
    Raw,
    Requant,
    Residual,
    Rounding,
    Value,
)

FORMAT = 3  # of program.bin; the one in stream.h
SOURCES = ("model.c", "arithmetic.h", "stream.h", "sha256.h")
COMPILER_OPTIONS = ("-std=c99", "-O2")

Number = int | np.ndarray
Manifest = Callable[[list[dict[str, Any]]], dict[str, Any]]


def export(program: Verified, folder: Path, manifest: Manifest | None = None) -> list[dict[str, Any]]:
    """Write the sources and program.bin into the folder, made if need be, or nothing: path, length and SHA-256 of each.

    manifest: what manifest.json is to say of them, where there is to be one. BadFile where they cannot be written.
    """
    expect_path("folder", folder)
    folder, sources = Path(folder), files("eamsim") / "exports" / "c"
    contents = {name: (sources / name).read_bytes() for name in SOURCES} | {"program.bin": encode(program)}
    described: list[dict[str, Any]] = [
        {"file": str(folder / name), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]
    if manifest is not None:
        contents = {"manifest.json": json.dumps(manifest(described), indent=2).encode() + b"\n"} | contents
    try:
        with replacing_all(folder) as place:
            for name, content in contents.items():
                place(name).write_bytes(content)
    except OSError as error:
        raise BadFile(f"{folder}: expected a writable folder, got '{error.strerror}'; choose another path") from error
    return described


def runtime(program: Verified, folder: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Image -> taps, by the model exported to and compiled in the folder. UserError without a C compiler or for an image it refuses."""
    export(program, folder)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("the C model: expected a C compiler named cc, gcc or clang, got none; install one (Debian: apt install gcc)")
    model = folder / "model"
    _call([compiler, *COMPILER_OPTIONS, "-o", str(model), str(folder / "model.c")])

    def checked(image: np.ndarray) -> dict[str, np.ndarray]:
        expect_array("image", image, "uint8", program.image.shape, advice=PIXELS)
        return run(model, image)

    return checked


def run(model: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """Taps of a compiled model beside its program.bin: the integers, once they have the printed digests."""
    dump = model.with_name("taps.bin")
    *lines, _ = _call([str(model), str(model.with_name("program.bin")), "-", "--taps", str(dump)], image.tobytes()).splitlines()
    integers, taps = np.fromfile(dump, "<i8"), {}
    for line in lines:
        digest, extents, name = line.split(" ", 2)
        shape = tuple(map(int, extents.split("x")))
        taps[name], integers = np.split(integers, [int(np.prod(shape))])
        if hashlib.sha256(taps[name].tobytes()).hexdigest() != digest:
            raise BadFile(f"{dump}: {name} does not have the digest that {model} printed; run it again")
        taps[name] = taps[name].reshape(shape)
    return taps


def _call(command: list[str], data: bytes = b"") -> str:
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        message = " ".join(done.stderr.decode(errors="replace").split())
        raise UserError(f"{command[0]}: expected exit code 0, got {done.returncode}: {message:.500}")
    return done.stdout.decode()


def encode(program: Verified) -> bytes:
    """The content of program.bin."""
    expect_verified(program)
    path, image = program.datapath, program.image
    rounding, overflow = get_args(Rounding).index(path.rounding), get_args(Overflow).index(path.overflow)
    parts = [FORMAT, rounding, path.accumulator_bits, overflow, len(program.operations), *_value(image)]
    indices = {name: index for index, name in enumerate(program.values)}
    for op in program.operations:
        kind, *fields = _operation(op, indices)
        parts += [kind, indices[op.x], *_value(op.out), *fields]
    stream = b"".join(map(_bytes, parts))
    return stream + hashlib.sha256(stream).digest()


def _bytes(item: Number | bytes) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray):
        packing = narrowest(item)
        return _bytes(BITS[packing]) + _bytes(packing.startswith("i")) + pack(item, packing)
    return int(item).to_bytes(8, "little", signed=True)


def _value(value: Value) -> list[Number | bytes]:
    name = value.name.encode()
    return [len(name), name, len(value.shape), *value.shape, value.low, value.high]


def _operation(op: Operation, indices: dict[str, int]) -> list[Number]:
    """Its number in model.c and its fields."""
    match op:
        case InputQuant():
            return [0, op.table]
        case Gather():
            return [1, op.granule, op.indices]
        case Embed():
            return [2, op.prefix, op.position]
        case LayerNorm():
            return [3, op.gain, op.offset, op.shift, op.variance_offset, op.fraction_bits, op.reciprocal_bits]
        case Linear():
            levels = [0] if op.levels is None else [len(op.levels), op.levels]
            return [4, op.weight, op.weight_zero, op.x_zero, op.bias, *levels, *_epilogue(op.epilogue, indices)]
        case Attention():
            return [5, *_attention(op, indices)]
        case Pool():
            return [6, op.multiplier, op.shift, op.zero]
        case _:
            assert_never(op)


def _epilogue(epilogue: Epilogue, indices: dict[str, int]) -> list[Number]:
    ratio = [epilogue.multiplier, epilogue.shift]
    match epilogue:
        case Requant():
            return [0, *ratio, epilogue.zero]
        case Gelu():
            return [1, *ratio, epilogue.index_zero, epilogue.index_bits, epilogue.table]
        case Residual():
            return [2, *ratio, indices[epilogue.operand], epilogue.exponent_change]
        case Raw():
            return [3, *ratio]
        case _:
            assert_never(epilogue)


def _attention(op: Attention, indices: dict[str, int]) -> list[Number]:
    heads = np.array(op.score_heads, np.int64)
    tables = [op.fraction_bits, op.exp2, op.exp2_bits, op.log2_bits, op.log2, op.log2_scale]
    codes = [op.attention_bits, op.last_code_is_zero, op.softmax == "renormalised"]
    output = [op.multiplier_even, op.multiplier_odd, op.out_shift, op.out_zero]
    frozen = [0] if op.frozen is None else _frozen(op.frozen, op.attention_bits)
    bias = [0] if op.logit_bias is None else [len(op.logit_bias), op.logit_bias]
    excluded = [0] if op.excluded is None else [1, op.excluded]
    queries = [0] if op.queries is None else [op.queries.tokens, indices[op.queries.operand]]
    scores = [op.q_zero, op.k_zero, op.v_zero, op.score_multiplier, op.score_shift]
    return [op.heads, op.windows, len(heads), heads, *queries, *scores, *tables, *codes, *output, *frozen, *bias, *excluded]


def _frozen(frozen: Frozen, attention_bits: int) -> list[Number]:
    return [len(frozen.mask), frozen.mask, frozen.codes, attention_bits - frozen.bits, frozen.row_log2]
