"""`eamsim trace diff` on dumps that are not what they seem: what was compared, and what was not."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import Finished, eamsim
from trace_bench import BAD_FILE, FAULTS, PIXELS, USAGE, Bench, digits, faulty, runs

from eamsim import artifact
from eamsim.errors import UserError
from eamsim.tensors import taps
from eamsim.traces import vectors
from eamsim.traces.compare import compare_tap
from eamsim.traces.sources import Digest
from eamsim.traces.vectors import Layout, VectorTensor

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


@pytest.mark.slow
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


def test_what_the_found_side_alone_has_is_said_to_be_not_compared(bench: Bench, tmp_path: Path):
    both, more = {QKV: bench.golden[QKV]}, {QKV: bench.golden[QKV], NORM: bench.golden[NORM]}
    done = dumps_differ(bench, both, more, "--program", bench.model, "--json", "--junit", tmp_path / "j.xml")
    result = json.loads(done.out)
    assert (done.code, result["taps"], result["only_expected"], result["only_found"]) == (0, 1, [], [NORM])
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert {case.get("name"): [each.get("message") for each in case] for case in suite} == {
        QKV: [],
        NORM: ["not compared: only in found"],
    }
    assert f"only in B  1 tap, not compared: {NORM}" in dumps_differ(bench, both, more, "--program", bench.model).out


def test_a_cause_is_found_though_the_dump_has_no_inputs(bench: Bench):
    old, new, _, cause = FAULTS["rounding"]
    found = runs(faulty(old, new), bench.program)
    first = json.loads(bench.against({QKV: found[QKV]}, "--json").out)["first_difference"]
    assert first["likely_cause"] == f"{cause}: gives exactly what was found, at 1 tap of {QKV}"
    assert (first["tried"] > 0, first["not_tried"], first["inputs_not_compared"]) == (True, "", [NORM])
    bench.record(bench.folder / "digests.h5", stored=False)  # and the golden interpreter gives them where the trace has none either
    done = eamsim("trace", "diff", bench.folder / "digests.h5", bench.folder / "found.npz", "--program", bench.model, "--json")
    assert json.loads(done.out)["first_difference"]["likely_cause"] == first["likely_cause"]


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
    tensors = [VectorTensor("tap", taps(bench.program)[name].value, bench.golden[name]) for name in (QKV, NORM)]
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
