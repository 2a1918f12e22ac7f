"""The C export: its arithmetic at the edges, what it refuses, and that a wrong one is found out."""

import hashlib
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from importlib.resources import files
from math import floor, isqrt
from pathlib import Path

import numpy as np
import pytest
from programs import Shape, random_images, random_program

from eamsim import golden
from eamsim.constraints import Verified
from eamsim.exports import c99 as c_export
from eamsim.program import Datapath
from eamsim.traces.difference import Taps, digests, first_difference

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

SOURCES = Path(str(files("eamsim"))) / "exports" / "c"
SANITIZED = ("cc", "-std=c99", "-fsanitize=undefined", "-fno-sanitize-recover")
EDGES = np.array([-(2**63), -(2**31), -1, 0, 1, 2, 63, 2**16, 2**31, 2**62, 2**63 - 1])
SHAPE = Shape(seed=5, windows=4, prefix=0, side=8, freeze="scattered", softmax="renormalised", biased=True, frozen_bits=3)
ARITHMETIC = """
#include <inttypes.h>
#include <stdio.h>
#include "arithmetic.h"
int main(void)
{
    int64_t x, s;
    for (char what; scanf(" %c %" SCNd64 " %" SCNd64, &what, &x, &s) == 3;) {
        datapath.rounding = datapath.overflow = what - '0';
        datapath.accumulator_bits = s;
        printf("%" PRId64 "\\n", what == 'i' ? isqrt(x) : what == 'b' ? bit_length(x) : what == 'n' ? narrow(x) : round_shift(x, s));
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def program() -> Verified:
    return random_program(SHAPE)


@pytest.fixture(scope="module")
def model(program: Verified, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    c_export.runtime(program, folder)
    return folder / "model"


@pytest.fixture(scope="module")
def image(program: Verified) -> np.ndarray:
    return random_images(program, 2, 0)[1]


def expected_taps(program: Verified, image: np.ndarray) -> Taps:
    taps: Taps = {}
    golden.run(program, image, taps)
    return taps


def nearest(exact: Fraction, rounding: int) -> int:
    """rounding: half_up, half_even, half_away, floor, by their number."""
    below = floor(exact)
    if exact - below != Fraction(1, 2) or rounding == 3:
        return below + (exact - below > Fraction(1, 2) and rounding != 3)
    return (below + 1, below + below % 2, below + (exact > 0))[rounding]


def test_arithmetic(tmp_path: Path):
    (tmp_path / "test.c").write_text(ARITHMETIC)
    subprocess.run([*SANITIZED, f"-I{SOURCES}", "-o", tmp_path / "test", tmp_path / "test.c"], check=True)
    roots = [0, 1, 2, 3, 2**16 - 1, 2**30 + 1, 2**31 - 1]
    squares = [n for root in roots for n in (root * root, root * root + 2 * root)]
    shifts = [(mode, x, s) for mode in range(4) for s in (0, 1, 2, 5, 61, 62) for x in (*range(-20, 21), *(k << 60 for k in (-4, -2, 2)))]
    questions = [*(("i", x, 0) for x in squares), *(("b", x, 0) for x in squares), *shifts]
    asked = "".join(f"{what} {x} {s}\n" for what, x, s in questions)
    done = subprocess.run([tmp_path / "test"], input=asked, capture_output=True, text=True, check=True)
    expected = [*map(isqrt, squares), *(x.bit_length() for x in squares), *(nearest(Fraction(x, 1 << s), mode) for mode, x, s in shifts)]
    assert [int(line) for line in done.stdout.split()] == expected


def test_it_prints_the_class_and_golden_digests(program: Verified, image: np.ndarray, model: Path, tmp_path: Path):
    (tmp_path / "image.rgb").write_bytes(image.tobytes())
    done = subprocess.run(
        [model, model.parent / "program.bin", tmp_path / "image.rgb", "--taps"], capture_output=True, text=True, check=True
    )
    *lines, last = done.stdout.splitlines()
    taps = expected_taps(program, image)
    extents = {name: "x".join(map(str, integers.shape)) for name, integers in taps.items()}
    assert lines == [f"{digest} {extents[name]} {name}" for name, digest in digests(taps).items()]
    logits = taps["head"].ravel()
    assert last == f"class {logits.argmax()} logit {logits.max()}"
    alone = subprocess.run([model, model.parent / "program.bin", "-"], input=image.tobytes(), capture_output=True, check=True)
    assert alone.stdout.decode() == last + "\n"


def refused(model: Path, *arguments: object, data: bytes = b"") -> tuple[int, str]:
    done = subprocess.run([model, *map(str, arguments)], input=data, capture_output=True, check=False)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_what_it_refuses(image: np.ndarray, model: Path, tmp_path: Path):
    program_bin, pixels = model.parent / "program.bin", image.tobytes()
    assert refused(model) == (2, "error: usage: model program.bin image.rgb [--taps [FILE]]\n")
    assert refused(model, program_bin, "-", "--help")[0] == 2
    for wrong in (b"", pixels[:-1], pixels + b"0"):
        assert refused(model, program_bin, "-", data=wrong) == (3, "error: -: expected height * width * 3 bytes\n")
    assert refused(model, program_bin, tmp_path / "gone") == (3, f"error: {tmp_path}/gone: no such file\n")
    assert refused(model, tmp_path / "gone", "-", data=pixels)[0] == 3


def test_each_flipped_bit_of_the_program_is_found(image: np.ndarray, model: Path, tmp_path: Path):
    content = (model.parent / "program.bin").read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(content), 40).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "program.bin").write_bytes(damaged)
        code, message = refused(model, tmp_path / "program.bin", "-", data=image.tobytes())
        assert code == 3
        assert "damaged: its SHA-256" in message


@pytest.mark.parametrize(
    ("source", "right", "wrong", "tap"),
    [
        ("arithmetic.h", "shift_right(plus(x, half), s)", "floor", "patch_embed"),
        ("arithmetic.h", "x < 0 ? ~(~x >> s) : x >> s", "x / ((int64_t)1 << s)", "patch_embed"),
        ("arithmetic.h", "case WRAP: return", "case WRAP: return clip(sum, -half, half - 1); case 9: return", "patch_embed.acc"),
        ("model.c", "code - x_zero;", "code;", "patch_embed.acc"),
        ("model.c", "<< a->missing_bits", "", "block0.attn.codes"),
        ("model.c", "is_excluded(a, row, j) || (", "(", "block0.attn.odd"),
        ("stream.h", "decode(bytes, i * bits", "decode(bytes, (bits == 4 && (i ^ 1) < count ? i ^ 1 : i) * bits", "patch_embed.acc"),
    ],
    ids=["rounding", "shift of negatives", "saturates instead of wrapping", "zero point", "frozen bits", "excluded", "nibbles"],
)
def test_a_planted_fault_is_named(source: str, right: str, wrong: str, tap: str, tmp_path: Path):
    program = random_program(replace(SHAPE, datapath=Datapath(accumulator_bits=12, overflow="wrap")))
    image = random_images(program, 2, 0)[1]
    c_export.export(program, tmp_path)
    code = (tmp_path / source).read_text()
    assert code.count(right) == 1
    (tmp_path / source).write_text(code.replace(right, wrong))
    subprocess.run([*SANITIZED[:2], "-o", tmp_path / "model", tmp_path / "model.c"], check=True)
    difference = first_difference(expected_taps(program, image), c_export.run(tmp_path / "model", image))
    assert difference is not None
    assert difference.tap == tap


def test_a_name_may_hold_spaces(program: Verified, image: np.ndarray, model: Path, tmp_path: Path):
    first, second, *rest = program.operations
    named = replace(first, out=replace(first.out, name="the input, é"))
    program = replace(program, operations=(named, replace(second, x="the input, é"), *rest))
    c_export.export(program, tmp_path)
    shutil.copy(model, tmp_path)
    assert first_difference(expected_taps(program, image), c_export.run(tmp_path / "model", image)) is None


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def mutant(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes of a program.bin, with the SHA-256 of what it is now: what anybody can make."""
    body = bytearray(content[:-32])
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, len(body)))
        match rng.integers(0, 5):
            case 0:
                body[place] ^= 1 << rng.integers(0, 8)
            case 1:
                body[place] = rng.integers(0, 256)
            case 2:
                body[place : place + 8] = rng.choice(EDGES).astype("<i8").tobytes()
            case 3:
                del body[place : place + int(rng.integers(1, 17))]
            case _:
                body[place:place] = rng.bytes(int(rng.integers(1, 17)))
    return sealed(bytes(body))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_program_that_somebody_else_made_is_run_or_refused(seed: int, tmp_path: Path):
    """Under the sanitizers, EAMSIM_MUTANTS of them in all: exit code 0 or 3, one line, no memory error, no undefined arithmetic."""
    wrapping = replace(SHAPE, seed=1, windows=1, datapath=Datapath(overflow="wrap"))
    program = random_program((SHAPE, wrapping, replace(SHAPE, seed=2, softmax="paper"), Shape(seed=9))[seed])
    c_export.export(program, tmp_path)
    options = ("-std=c99", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(["cc", *options, "-o", tmp_path / "model", tmp_path / "model.c"], check=True)
    pixels, content = random_images(program, 1, seed)[0].tobytes(), (tmp_path / "program.bin").read_bytes()
    rng, codes = np.random.default_rng(seed), Counter()
    for index in range(int(os.environ.get("EAMSIM_MUTANTS", 120)) // 4):
        (tmp_path / "program.bin").write_bytes(mutant(content, rng))
        command = [tmp_path / "model", tmp_path / "program.bin", "-", "--taps"]
        done = subprocess.run(command, input=pixels, capture_output=True, timeout=60, env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"})
        codes[done.returncode] += 1
        said = done.stderr.decode(errors="replace")
        assert done.returncode in (0, 3), f"mutant {index} of seed {seed}: {said}"
        assert said.count("\n") == (done.returncode == 3)
    assert set(codes) == {0, 3}
