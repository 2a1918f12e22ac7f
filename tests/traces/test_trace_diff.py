"""`eamsim trace diff`: faults planted in a copy of the golden interpreter are named at their tap, with their cause."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import Finished, eamsim

from eamsim import artifact, golden
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.tensors import taps
from eamsim.traces import file as trace_file
from eamsim.traces import vectors
from eamsim.traces.compare import compare_tap
from eamsim.traces.diagnosis import resemblance
from eamsim.traces.sources import Digest
from eamsim.traces.vectors import Layout, Tensor

DIGITS = Path(str(files("eamsim"))) / "data" / "digits"
PIXELS = np.load(DIGITS / "digits_test.npz")["images"][:2]
USAGE, BAD_FILE = 2, 3

Run = Callable[[Verified, np.ndarray, dict[str, np.ndarray]], np.ndarray]


def digits(**datapath: object) -> tuple[Verified, dict]:
    program, provenance = artifact.read(DIGITS / "digits.eam")
    return replace(program, datapath=replace(program.datapath, **datapath)), provenance  # pyright: ignore[reportArgumentType]


def runs(run: Run, program: Verified) -> dict[str, np.ndarray]:
    """[images, ...] by tap."""
    found: list[dict[str, np.ndarray]] = []
    for image in PIXELS:
        found.append({})
        run(program, image, found[-1])
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


def faulty(old: str, new: str) -> Run:
    """A copy of the golden interpreter with one piece of its text replaced."""
    source = Path(golden.__file__).read_text()
    assert source.count(old) == 1
    copy = ModuleType("faulty")
    copy.__dict__["__name__"] = "eamsim.golden"
    exec(compile(source.replace(old, new), "faulty", "exec"), copy.__dict__)
    return copy.run


class Bench:
    """A program, its golden trace, and the dumps of others."""

    def __init__(self, folder: Path, **datapath: object):
        self.folder, (self.program, provenance) = folder, digits(**datapath)
        self.model, self.trace = folder / "p.eam", folder / "t.h5"
        artifact.write(self.model, self.program, provenance)
        self.golden = runs(golden.run, self.program)
        self.record(self.trace, stored=True)

    def record(self, path: Path, stored: bool) -> None:
        with trace_file.recording(path, self.program, list(self.golden), ["0", "1"], "golden", stored, {}) as recorder:
            recorder.put_images(0, PIXELS)
            recorder.put(0, self.golden)

    def against(self, found: dict[str, np.ndarray], *options: object) -> Finished:
        np.savez(self.folder / "found.npz", **found)  # pyright: ignore[reportArgumentType]
        return eamsim("trace", "diff", self.trace, self.folder / "found.npz", "--program", self.model, *options)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


FAULTS = {
    "rounding": (
        "clip(round_shift(scaled, shift, datapath.rounding) + epilogue.zero, op.out)",
        "clip(round_shift(scaled, shift, 'floor') + epilogue.zero, op.out)",
        "block0.attn.qkv",
        "rounding floor instead of half_up",
    ),
    "swapped nibbles": (
        "weight = op.weight.astype(np.int64) - op.weight_zero",
        "weight = op.weight.astype(np.int64).reshape(-1, 2)[:, ::-1].reshape(op.weight.shape) - op.weight_zero",
        "patch_embed.acc",
        "nibble order of the weights (each pair swapped)",
    ),
    "missing zero point": ("operand = x - op.x_zero", "operand = x", "patch_embed.acc", "missing x_zero"),
    "missing zero point of keys": ("(k - op.k_zero)", "k", "block0.attn.scores", "missing k_zero"),
    "wrong shift": ("op.out_shift, datapath", "op.out_shift + 1, datapath", "block0.attn", "out_shift wrong by +1"),
    "wrong shift of a residual": (
        "shift - epilogue.exponent_change",
        "shift - epilogue.exponent_change - 1",
        "block0.attn.proj",
        "exponent_change wrong by +1",
    ),
    "sign extension": (
        "weight = op.weight.astype(np.int64) - op.weight_zero",
        "weight = (op.weight.astype(np.int64) ^ 8) - 8 - op.weight_zero",
        "patch_embed.acc",
        "weights sign-extended from 4 bits, which are unsigned",
    ),
    "transposed weights": (
        "weight = op.weight.astype(np.int64) - op.weight_zero",
        "weight = op.weight.T.reshape(op.weight.shape).astype(np.int64) - op.weight_zero",
        "patch_embed.acc",
        "transposed weights",
    ),
}


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
    tensors = [Tensor("tap", declared[name].value, bench.golden[name]) for name in names]
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
        ((tmp_path / "a.h5", bench.trace), BAD_FILE, "expected a trace, got 'no such file'"),
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


# What was compared, and what was not: dumps that are not what they seem.

QKV, NORM = "block0.attn.qkv", "block0.norm1"
Dump = dict[str, np.ndarray]


def with_tap(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Dump], Dump]:
    return lambda golden: golden | {name: change(golden[name])}


def of_all(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Dump], Dump]:
    return lambda golden: {name: change(integers) for name, integers in golden.items()}


def flipped(integers: np.ndarray) -> np.ndarray:
    changed = integers.copy()
    changed[1, 3, 5] ^= 4
    return changed


def renamed(golden: Dump) -> Dump:
    """The dots of all names of more than one part are slashes: seven names are as they were."""
    return {name.replace(".", "/"): integers for name, integers in golden.items()}


def only(*names: str) -> Callable[[Dump], Dump]:
    return lambda golden: {name: golden[name] for name in names}


# What a simulator dumps, options, exit code, what the first difference or the error says.
DUMPS: dict[str, tuple[Callable[[Dump], Dump], tuple[str, ...], int, str]] = {
    "renamed": (renamed, (), BAD_FILE, "'patch_embed/acc' (did you mean patch_embed.acc?)"),
    "misspelt": (lambda golden: {"block0.atn.qkv": golden[QKV]}, (), BAD_FILE, "1 of 1 that"),
    "one image": (of_all(lambda x: x[0]), (), BAD_FILE, "input: expected [images, ...], got [8, 8, 3]: one image"),
    "one image of one tap": (with_tap(QKV, lambda x: x[0]), (), BAD_FILE, "one image without the axis of images; write [1, 17, 192]"),
    "fewer images of one tap": (with_tap(QKV, lambda x: x[:1]), (), BAD_FILE, "images, got 2 of "),
    "no images": (of_all(lambda x: x[:0]), (), BAD_FILE, "at least one image"),
    "floats": (with_tap(QKV, lambda x: x.astype(np.float32)), (), BAD_FILE, f"{QKV}: expected integers, got float32 [2, 17, 192]"),
    "beyond int64": (with_tap(QKV, lambda x: x.astype(np.uint64) - 99), (), BAD_FILE, f"{QKV}: expected integers below 2^63"),
    "the image alone": (lambda golden: {"image": PIXELS}, (), USAGE, "nothing to compare but the image"),
    "equal, one tap": (only(QKV), (), 0, ""),
    "equal, required": (only(QKV, NORM), ("--require", "block0.norm1", "--require", QKV), 0, ""),
    "missing": (only(QKV), ("--require", "all"), 1, ""),
    "missing of a pattern": (only(QKV), ("--require", "block0.*.acc"), 1, ""),
    "no such pattern": (only(QKV), ("--require", "blok*"), USAGE, "--require: 'blok*' fits none"),
    "flat": (with_tap(QKV, lambda x: x.reshape(2, -1)), (), 0, ""),
    "axes of one": (with_tap(QKV, lambda x: x[:, None]), (), 0, ""),
    "transposed": (with_tap(QKV, lambda x: x.swapaxes(1, 2)), (), 1, "axes swapped: found holds the expected integers with"),
    "transposed zeros": (lambda golden: {QKV: golden[QKV].swapaxes(1, 2) * 0}, (), 1, "another shape, that of swapped axes"),
    "transposed, flat": (with_tap(QKV, lambda x: x.swapaxes(1, 2).reshape(2, -1)), (), 1, "looks like a transposition"),
    "another shape": (with_tap(QKV, lambda x: x.reshape(2, 34, 96)), (), 1, "another shape alone"),
    "cut off": (with_tap(QKV, lambda x: x[:, 1:]), (), 1, "another shape: expected [17, 192], found [16, 192]"),
    "one bit": (with_tap(QKV, flipped), (), 1, "one flipped bit: bit 2 of [3, 5], "),
    "images off by one": (of_all(lambda x: np.roll(x, 1, 0)), (), 1, "order of the images off by +1"),
}  # fmt: skip


@pytest.mark.parametrize("case", DUMPS)
def test_a_dump_that_is_not_what_it_seems(bench: Bench, case: str, tmp_path: Path):
    dump, options, code, text = DUMPS[case]
    done = bench.against(dump(bench.golden), *options, "--json", "--junit", tmp_path / "j.xml")
    assert done.code == code, done.err
    if code in (USAGE, BAD_FILE):
        assert text in done.err
        assert done.err.count("\n") == 1
        return
    result = json.loads(done.out)
    assert result["equal"] == (code == 0)
    assert result["taps"] + len(result["only_expected"]) == 85
    if text:
        assert text in result["first_difference"]["likely_cause"]
    else:
        assert result["first_difference"] is None
        assert bool(result["required_missing"]) == (code == 1)
    cases = {each.get("name"): each for each in ElementTree.parse(tmp_path / "j.xml").getroot()}
    missing = {*result["required_missing"]}
    assert {name for name, each in cases.items() if each.find("skipped") is not None} == {*result["only_expected"]} - missing
    failed = {name for name, each in cases.items() if each.find("failure") is not None}
    assert failed == {each["tap"] for each in result["differing"]} | missing


def test_required_taps_are_those_of_the_program_but_the_image(bench: Bench):
    result = json.loads(bench.against({QKV: bench.golden[QKV]}, "--require", "all", "--json").out)
    assert result["required_missing"] == [name for name in taps(bench.program) if name not in ("image", QKV)]
    text = bench.against({QKV: bench.golden[QKV]}, "--require", "all").out
    assert text.startswith("NOT equal: 1 of 85 taps compared, which are equal, but not all that is required")
    assert "only in A  84 taps, not compared: image, input, patches" in text
    assert bench.against({QKV: bench.golden[QKV]}).out.startswith("equal: 1 of 85 taps of 2 images")


def test_a_cause_is_found_though_the_dump_has_no_inputs(bench: Bench):
    old, new, _, cause = FAULTS["rounding"]
    found = runs(faulty(old, new), bench.program)
    first = json.loads(bench.against({QKV: found[QKV]}, "--json").out)["first_difference"]
    assert first["likely_cause"] == f"{cause}: gives exactly what was found, at 1 tap of {QKV}"
    assert (first["tried"] > 0, first["not_tried"], first["inputs_not_compared"]) == (True, "", [NORM])


def dumps_differ(bench: Bench, expected: Dump, found: Dump, *options: object) -> Finished:
    for name, dump in (("a", expected), ("b", found)):
        np.savez(bench.folder / f"{name}.npz", **dump)  # pyright: ignore[reportArgumentType]
    return eamsim("trace", "diff", bench.folder / "a.npz", bench.folder / "b.npz", *options)


def test_what_cannot_be_tried_is_said_with_the_reason(bench: Bench):
    wrong = {QKV: bench.golden[QKV] + bench.golden[QKV] % 3}
    done = dumps_differ(bench, {QKV: bench.golden[QKV]}, wrong, "--program", bench.model)
    assert f"not tried  what {QKV} would give with known mistakes: {NORM}, which it reads, is not on the expected side" in done.out
    assert "none of those known" not in done.out
    done = dumps_differ(bench, {QKV: bench.golden[QKV]}, wrong)
    assert "no program is given; see --program" in done.out
    done = dumps_differ(bench, {QKV: bench.golden[QKV], NORM: bench.golden[NORM]}, wrong, "--program", bench.model)
    assert "none of those known gives what was found (" in done.out
    assert "not tried" not in done.out


def test_first_is_first_in_the_order_of_execution_whatever_the_order_of_the_dumps(bench: Bench):
    backwards = {name: bench.golden[name] + 1 for name in reversed(bench.golden)}
    np.savez(bench.folder / "a.npz", **backwards)  # pyright: ignore[reportArgumentType]
    done = eamsim("trace", "diff", bench.folder / "a.npz", bench.trace, "--json")
    assert [each["tap"] for each in json.loads(done.out)["differing"]] == list(bench.golden)


def test_a_program_that_did_not_run_explains_nothing(bench: Bench, tmp_path: Path):
    other, provenance = digits(accumulator_bits=31)
    artifact.write(tmp_path / "o.eam", other, provenance)
    done = eamsim("trace", "diff", bench.trace, bench.trace, "--program", tmp_path / "o.eam")
    assert (done.code, done.err.count("\n")) == (USAGE, 1)
    assert "--program: expected program" in done.err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([("input", 0), ("input", 0)], "line 2: input of image 0 a second time"),
        ([("input", 0), ("input", 2)], "input of the images 0, 2, which do not count from 0 on"),
        ([("input", 0.5)], "line 1: the name 'input' and the image 0.5"),
    ],
)
def test_json_lines_of_which_one_would_be_dropped(bench: Bench, tmp_path: Path, lines: list, message: str):
    integers = bench.golden["input"][0].tolist()
    text = (json.dumps({"name": name, "image": image, "integers": integers}) for name, image in lines)
    (tmp_path / "d.jsonl").write_text("\n".join(text))
    done = eamsim("trace", "diff", bench.trace, tmp_path / "d.jsonl")
    assert done.code == BAD_FILE
    assert message in done.err


def test_files_of_a_simulators_folder_are_read_named_or_refused(bench: Bench, tmp_path: Path):
    tensors = [Tensor("tap", taps(bench.program)[name].value, bench.golden[name]) for name in (QKV, NORM)]
    vectors.export(tmp_path / "v", tensors, Layout(32), ("readmemh",), {})
    folder, text = tmp_path / "sim", (tmp_path / "v" / "taps" / f"{QKV}.hex").read_text()
    folder.mkdir()
    (folder / f"{QKV}.hex").write_text(text)
    (folder / "sim.log").touch()
    done = eamsim("trace", "diff", bench.trace, folder, "--layout", tmp_path / "v", "--json")
    assert (done.code, json.loads(done.out)["ignored_files"]) == (0, {str(folder): ["sim.log"]})
    for name, message in (
        ("block0_attn_qkv.hex", f"did you mean {QKV}.hex?"),
        (f"{NORM}.mem", f"did you mean {NORM}.hex?"),
        (f"taps/{QKV}.hex", "expected one file for each tap"),
    ):
        (folder / "taps").mkdir(exist_ok=True)
        (folder / name).write_text(text)
        done = eamsim("trace", "diff", bench.trace, folder, "--layout", tmp_path / "v")
        assert (done.code, done.err.count("\n")) == (BAD_FILE, 1)
        assert message in done.err
        (folder / name).unlink()


def test_digests_of_two_packings_are_not_compared():
    with pytest.raises(UserError, match="norm: digests of packings u8 and i16 cannot be compared"):
        compare_tap("norm", 0, Digest("00", "u8", 2), Digest("00", "i16", 2), {})
