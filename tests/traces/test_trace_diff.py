"""`eamsim trace diff`: faults planted in a copy of the golden interpreter are named at their tap, with their cause."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import eamsim
from trace_bench import BAD_FILE, DIGITS, FAULTS, USAGE, Bench, faulty, runs

from eamsim.errors import UserError
from eamsim.tensors import taps
from eamsim.traces import vectors
from eamsim.traces.compare import compare_tap
from eamsim.traces.diagnosis import resemblance
from eamsim.traces.sources import Digest
from eamsim.traces.vectors import Layout, VectorTensor


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_at_its_tap_with_its_cause(bench: Bench, fault: str):
    old, new, tap, cause = FAULTS[fault]
    done = bench.against(runs(faulty(old, new), bench.program), "--json")
    assert done.code == 1
    result = json.loads(done.out)
    first = result["first_difference"]
    assert not result["equal"]
    assert first["tap"] == tap
    assert first["likely_cause"].startswith(f"{cause}: gives exactly what was found")
    index = (first["image"], *first["index"])
    assert first["expected"] == bench.golden[tap][index]


def test_saturating_instead_of_wrapping(tmp_path: Path):
    bench = Bench(tmp_path, overflow="wrap", accumulator_bits=10)
    fault = faulty(
        "@ weight + op.bias, datapath.accumulator_bits, datapath.overflow", "@ weight + op.bias, datapath.accumulator_bits, 'saturate'"
    )
    done = bench.against(runs(fault, bench.program), "--json")
    first = json.loads(done.out)["first_difference"]
    assert (done.code, first["tap"]) == (1, "patch_embed.acc")
    assert first["likely_cause"].startswith("accumulator: saturate instead of wrap: gives exactly what was found")
    assert first["found"] in (-512, 511)


def test_what_is_printed(bench: Bench, tmp_path: Path):
    found = {name: integers.copy() for name, integers in bench.golden.items()}
    found["block0.attn.proj"][1, 3, 5] ^= 1
    expected = int(bench.golden["block0.attn.proj"][1, 3, 5])
    done = bench.against(found, "--junit", tmp_path / "j.xml")
    assert done.code == 1
    epilogue = next(op for op in bench.program.operations if op.out.name == "block0.attn.proj").epilogue  # pyright: ignore
    for text in (
        "NOT equal: 1 of 84 taps differ",
        "block0.attn.proj[3, 5] of image 1: Linear block0.attn.proj",
        f"expected   {expected} (0x{expected & 0xFFFF:04x})",
        f"acc {bench.golden['block0.attn.proj.acc'][1, 3, 5]}, M {epilogue.multiplier[5]}, S {epilogue.shift[5]}, residual",
        f"one flipped bit: bit 0 of [3, 5], {expected} -> {expected ^ 1}; the other 1087 integers",
        "only in A  1 tap, not compared: image",
    ):
        assert text in done.out
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("85", "1", "1")  # the trace alone has the image
    assert [case.get("name") for case in suite if case.find("skipped") is not None] == ["image"]
    (failure,) = suite.iter("failure")
    assert "1 of 1088 elements differ, in images [1]" in (failure.get("message") or "")


def test_equal_traces_runs_and_dumps(bench: Bench, tmp_path: Path):
    bench.record(tmp_path / "d.h5", stored=False)
    for found in (bench.model, tmp_path / "d.h5", bench.trace):
        done = eamsim("trace", "diff", bench.trace, found, "--json")
        assert (done.code, json.loads(done.out)["equal"]) == (0, True)
    assert bench.against(bench.golden).code == 0
    done = eamsim("trace", "diff", bench.model, bench.model, "--by", "engine", "--data", DIGITS / "digits_test.npz", "--images", 2)
    assert done.code == 0
    assert done.out.startswith("equal: 85 taps of 2 images")


def test_digests_find_the_tap_and_a_program_the_integer(bench: Bench, tmp_path: Path):
    bench.record(tmp_path / "d.h5", stored=False)
    found = {name: integers.copy() for name, integers in bench.golden.items()}
    found["block1.norm1"][0, 2, 1] ^= 3
    np.savez(tmp_path / "f.npz", **found)  # pyright: ignore[reportArgumentType]
    done = eamsim("trace", "diff", tmp_path / "d.h5", tmp_path / "f.npz", "--json")
    first = json.loads(done.out)["first_difference"]
    assert (done.code, first["tap"], first["index"]) == (1, "block1.norm1", None)
    done = eamsim("trace", "diff", tmp_path / "d.h5", tmp_path / "f.npz", "--json", "--program", bench.model)
    first = json.loads(done.out)["first_difference"]
    assert (first["index"], first["expected"]) == ([2, 1], bench.golden["block1.norm1"][0, 2, 1])


def test_digests_of_two_versions_are_not_compared():
    old, new = (Digest("00", "u8", version) for version in (1, 2))
    with pytest.raises(UserError, match="norm: digests of versions 1 and 2 cannot be compared; record one of them again"):
        compare_tap("norm", 0, old, new, {})


def test_integers_beyond_the_packing_of_a_digest_are_no_accident(bench: Bench, tmp_path: Path):
    bench.record(tmp_path / "d.h5", stored=False)
    np.savez(tmp_path / "f.npz", input=bench.golden["input"] + 256)  # the same bytes
    done = eamsim("trace", "diff", tmp_path / "d.h5", tmp_path / "f.npz", "--json")
    assert (done.code, json.loads(done.out)["first_difference"]["tap"]) == (1, "input")


def test_a_simulators_folder(bench: Bench, tmp_path: Path):
    names = ["block0.attn.qkv", "block0.attn.scores"]
    declared = taps(bench.program)
    tensors = [VectorTensor("tap", declared[name].value, bench.golden[name]) for name in names]
    vectors.export(tmp_path / "v", tensors, Layout(32), ("readmemh", "jsonl"), {})
    assert eamsim("trace", "diff", bench.trace, tmp_path / "v").code == 0
    assert eamsim("trace", "diff", bench.trace, tmp_path / "v" / "tensors.jsonl").code == 0
    (tmp_path / "sim").mkdir()
    text = (tmp_path / "v" / "taps" / "block0.attn.qkv.hex").read_text()
    (tmp_path / "sim" / "block0.attn.qkv.hex").write_text("// written by a simulator\n" + text)
    done = eamsim("trace", "diff", bench.trace, tmp_path / "sim", "--layout", tmp_path / "v", "--json")
    assert (done.code, json.loads(done.out)["taps"]) == (0, 1)
    swapped = text[:1].translate(str.maketrans("0123456789abcdef", "fedcba9876543210")) + text[1:]
    (tmp_path / "sim" / "block0.attn.qkv.hex").write_text(swapped)
    done = eamsim("trace", "diff", bench.trace, tmp_path / "sim", "--layout", tmp_path / "v", "--json")
    assert (done.code, json.loads(done.out)["first_difference"]["index"]) == (1, [0, 7])


def test_refusals(bench: Bench, tmp_path: Path):
    for arguments, code, message in (
        ((bench.model, bench.model), USAGE, "expected images to run it on: a trace beside it, or --data"),
        ((bench.trace, tmp_path), USAGE, "expected manifest.json in it; or give the exported vectors with --layout DIR"),
        ((bench.trace, tmp_path / "a.vcd"), USAGE, "expected a trace (.h5), a program (.eam), a folder of .hex files"),
        ((bench.trace, tmp_path / "a.npz"), BAD_FILE, "not a readable .npz"),
        ((tmp_path / "a.h5", bench.trace), BAD_FILE, "expected a trace, got 'No such file or directory'"),
    ):
        done = eamsim("trace", "diff", *arguments)
        assert (done.code, done.err.count("\n")) == (code, 1)
        assert message in done.err
    np.savez(tmp_path / "f.npz", input=bench.golden["input"].astype(float))
    done = eamsim("trace", "diff", bench.trace, tmp_path / "f.npz")
    assert "input: expected integers, got float64 [2, 8, 8, 3]; write it as int64" in done.err
    np.savez(tmp_path / "f.npz", input=bench.golden["input"][:1])
    assert "expected equal numbers of images, got 2 and 1" in eamsim("trace", "diff", bench.trace, tmp_path / "f.npz").err


@pytest.mark.parametrize(
    ("found", "likeness"),
    [
        (lambda x: x.T, "looks like a transposition"),
        (lambda x: x.reshape(-1, 2)[:, ::-1].reshape(x.shape), "looks like nibble order"),
        (lambda x: np.where(x > 7, x - 16, x), "looks like sign extension, or a width of 4 bits"),
        (lambda x: np.minimum(x, 12), "looks like saturation"),
        (lambda x: x + (x % 3 == 1), "looks like rounding"),
        (lambda x: x + 5, "looks like a missing constant: all errors are 5"),
    ],
)
def test_likenesses_without_a_program(found: Callable[[np.ndarray], np.ndarray], likeness: str):
    expected = np.random.default_rng(0).integers(0, 16, (8, 8))
    assert (resemblance(expected, found(expected)) or "").startswith(likeness)
