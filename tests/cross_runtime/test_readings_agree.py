"""Golden == ONNX Runtime == onnx ReferenceEvaluator == C at every tap (docs/spec/datapath.md section 5): four readings of one page.

EAMSIM_EXAMPLES sets the number of random programs. They reach widths that the engine refuses: 8-bit weights, 6-bit attention codes,
narrow accumulators that wrap or saturate. The C program is compiled once, with every warning an error and undefined behaviour trapped.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, reject
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_images, random_program

from eamsim import artifact, golden
from eamsim.check import ProgramError
from eamsim.constraints import Verified
from eamsim.exports import c99 as c_export
from eamsim.exports import onnx_integer as onnx_export
from eamsim.program import Attention, Datapath, LayerNorm, Operation
from eamsim.traces.difference import Taps, first_difference

EXAMPLES = int(os.environ.get("EAMSIM_EXAMPLES", "25"))
STRICT = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover")
DIGITS = Path(str(files("eamsim"))) / "data" / "digits"

Reader = Callable[[np.ndarray], Taps]


@st.composite
def datapaths(draw) -> Datapath:
    overflow = draw(st.sampled_from(["error", "wrap", "saturate"]))
    return Datapath(
        rounding=draw(st.sampled_from(["half_up", "half_even", "half_away", "floor"])),
        multiplier_bits=draw(st.sampled_from([2, 12, 16, 30])),
        accumulator_bits=draw(st.sampled_from([32, 48] if overflow == "error" else [8, 12, 20, 33])),
        overflow=overflow,
    )


@st.composite
def shapes(draw) -> Shape:
    windows = draw(st.sampled_from([1, 1, 2, 4]))
    attention_bits = draw(st.integers(2, 6))
    return Shape(
        seed=draw(st.integers(0, 2**32 - 1)),
        side=draw(st.sampled_from([4, 8])),
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([1, 4, 5])),
        hidden=draw(st.sampled_from([1, 16])),
        prefix=draw(st.integers(0, 2)) if windows == 1 else 0,
        windows=windows,
        queries=draw(st.sampled_from([0, 0, 1, 3])),
        input_bits=draw(st.integers(1, 8)),
        weight_bits=draw(st.integers(2, 8)),
        activation_bits=draw(st.integers(1, 8)),
        attention_bits=attention_bits,
        residual_bits=draw(st.sampled_from([8, 16, 20])),
        exponent_bits=draw(st.integers(1, 12)),
        gelu_index_bits=draw(st.integers(2, 12)),
        freeze=draw(st.sampled_from(FREEZES)),
        frozen_bits=draw(st.integers(1, attention_bits)),
        softmax=draw(st.sampled_from(["paper", "renormalised"])),
        last_code_is_zero=draw(st.booleans()),
        biased=draw(st.booleans()),
        pooled=draw(st.booleans()),
        fitted=draw(st.booleans()),
        extreme=draw(st.booleans()),
        datapath=draw(datapaths()),
    )


def varied(op: Operation, rng: np.random.Generator) -> Operation:
    """The operation with table sizes and fractional bits that `random_program` leaves at their defaults."""
    match op:
        case LayerNorm():
            return replace(op, reciprocal_bits=int(rng.integers(max(1, op.fraction_bits - 1), 25)))
        case Attention():
            bits, entries = int(rng.integers(1, 25)), 1 << int(rng.integers(1, 11))
            exp2 = np.round(2.0 ** (bits - np.arange(len(op.exp2)) / len(op.exp2))).astype(np.int32)
            log2 = np.round(np.log2(1 + np.arange(entries) / entries) * len(op.exp2)).astype(np.int32)
            return replace(op, exp2=exp2, exp2_bits=bits, log2=log2)
        case _:
            return op


@pytest.fixture(scope="module")
def c_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiled model.c runs whatever program.bin lies beside it."""
    folder = tmp_path_factory.mktemp("c")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    c_export.export(random_program(Shape(seed=0)), folder)
    subprocess.run([compiler, *STRICT, "-o", folder / "model", folder / "model.c"], check=True)
    return folder


def readers(program: Verified, folder: Path) -> dict[str, Reader]:
    model = onnx_export.export(program, taps=True)
    c_export.export(program, folder)
    return {
        "onnxruntime": onnx_export.runtime_onnxruntime(model),
        "onnx": onnx_export.runtime_reference(model),
        "c": lambda image: c_export.run(folder / "model", image),
    }


def assert_agree(program: Verified, images: np.ndarray, folder: Path) -> None:
    loaded = readers(program, folder)
    for image in images:
        expected: Taps = {}
        golden.run(program, image, expected)
        for name, read in loaded.items():
            found = read(image)
            assert list(found) == list(expected), name
            assert first_difference(expected, found) is None, name


@examples(EXAMPLES, print_blob=True, suppress_health_check=[HealthCheck.filter_too_much])
@given(shape=shapes())
def test_random_programs(shape: Shape, c_folder: Path):
    rng = np.random.default_rng(shape.seed)
    try:
        program = random_program(shape)
        program = replace(program, operations=tuple(varied(op, rng) for op in program.operations))
    except ProgramError:
        reject()
    assert_agree(program, random_images(program, 2, shape.seed), c_folder)


def test_the_digits_model(c_folder: Path):
    program, _ = artifact.read(DIGITS / "digits.eam")
    assert_agree(program, np.load(DIGITS / "digits_test.npz")["images"][:3], c_folder)
