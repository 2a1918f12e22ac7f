"""Words of `$readmemh`: what lies where, and that everything comes back."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from eamsim.errors import BadFile, UserError
from eamsim.program import Value
from eamsim.traces import vectors
from eamsim.traces.vectors import Layout, VectorTensor, export, read_hex, read_manifest

FORMATS = ("readmemh", "npz", "jsonl")
WORDS = st.none() | st.integers(1, 200)
TILES = st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5))
LAYOUTS = st.builds(Layout, word_bits=WORDS, first=st.sampled_from(["low", "high"]), transposed=st.booleans(), tile=TILES)
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


def words(integers: list, bits: int, signed: bool = False, **layout) -> list[str]:
    array = np.array(integers, np.int64)
    text = b"".join(vectors.hex_lines(array[None], Value("x", array.shape, bits, signed), Layout(**layout)))
    return text.decode().split()


def test_one_element_a_word_of_its_width():
    assert words([1, 15, 8], 4) == ["1", "f", "8"]
    assert words([-1, 1, -131072], 18, signed=True) == ["3ffff", "00001", "20000"]


def test_lanes_fill_a_word_from_the_chosen_end():
    assert words([1, 2, 3, 4, 5], 4, word_bits=16) == ["4321", "0005"]
    assert words([1, 2, 3, 4, 5], 4, word_bits=16, first="high") == ["1234", "5000"]


def test_lanes_share_a_word_evenly_and_extend_the_sign():
    assert words([-1, 1], 18, signed=True, word_bits=32) == ["ffffffff", "00000001"]
    assert words([-1, 1], 6, signed=True, word_bits=16) == ["01ff"]
    assert words([31, 1, 2, 3, 4, 5], 5, word_bits=32) == [f"{31 | 1 << 5 | 2 << 10 | 3 << 15 | 4 << 20 | 5 << 25:08x}"]


def test_an_element_wider_than_a_word_has_several():
    assert words([-2], 43, signed=True, word_bits=32) == ["fffffffffffffffe"]


def test_tiles_are_filled_up():
    matrix = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert words(matrix, 4, tile=(2, 2), pad=15) == list("0134" + "2f5f" + "67ff" + "8fff")
    assert words(matrix, 4, transposed=True) == list("036147258")
    assert words([1, 2, 3], 4, tile=(1, 2)) == list("1230")


@pytest.mark.slow
@examples(40)
@given(SHAPES, st.integers(1, 64), st.booleans(), LAYOUTS, st.integers(0, 1 << 32))
def test_whatever_is_exported_comes_back(tmp_path_factory, shape, bits, signed, layout, seed):
    folder = tmp_path_factory.getbasetemp() / "vectors"
    value = Value("a.b", shape, max(bits, 2) if signed else min(bits, 63), signed)
    integers = np.random.default_rng(seed).integers(value.low, value.high, (2, *shape), endpoint=True)
    tensors = [VectorTensor("tap", value, integers), VectorTensor("constant", value, integers[0])]
    manifest = export(folder, tensors, layout, FORMATS, {})
    read, read_layout, (tap, constant) = read_manifest(folder)
    assert (json.loads(json.dumps(manifest)), read_layout) == (read, layout)
    np.testing.assert_array_equal(read_hex(folder / tap.file, tap, layout), integers)
    np.testing.assert_array_equal(read_hex(folder / constant.file, constant, layout), integers[0])
    assert len((folder / tap.file).read_text().split()) == tap.words
    with np.load(folder / "tensors.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["taps/a.b"], integers)
    lines = [json.loads(line) for line in (folder / "tensors.jsonl").read_text().splitlines()]
    assert [line["integers"] for line in lines] == [*integers.tolist(), integers[0].tolist()]
    for name, file in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file["sha256"]


@pytest.mark.parametrize("name", ["../../escaped", "/etc/passwd", ".hidden", "a/b", "c" * 300, "..", "a\\b", "", "ü"])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str):
    folder = tmp_path / "deep" / "down"
    export(folder, [VectorTensor("tap", Value(name, (1,), 4), np.ones((1, 1), np.int64))], Layout(), FORMATS, {})
    _, layout, (entry,) = read_manifest(folder)
    assert entry.name == name
    assert read_hex(folder / entry.file, entry, layout).tolist() == [[1]]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        Path(entry.file).name, "manifest.json", "tensors.npz", "tensors.jsonl"
    }  # fmt: skip


def test_names_that_differ_by_case_have_files_of_their_own():
    tensors = [VectorTensor("tap", Value(name, (1,), 4), np.ones((1, 1), np.int64)) for name in ("a", "A")]
    assert len({name.casefold() for name in vectors.file_names(tensors)}) == 2


def test_a_simulators_dump(tmp_path: Path):
    export(tmp_path, [VectorTensor("tap", Value("x", (4,), 8), np.arange(4)[None])], Layout(), ("readmemh",), {})
    _, layout, (entry,) = read_manifest(tmp_path)
    path = tmp_path / "taps" / "x.hex"
    path.write_text("// 0x00000000\n00 /* one */ 0_1\n@2\n02\n03\n")
    assert read_hex(path, entry, layout).tolist() == [[0, 1, 2, 3]]
    for text, message in {
        "00 01 xx 03": r"word 2: expected hexadecimal digits, got 'xx' \(x or z: never written by the simulation\)",
        "00 01": "word 2: expected 4 words, got none here",
        "00 01 02 03 04": "word 4: expected 4 words of 8 bits, got 04 here",
        "00 01 02 103": "word 3: expected 4 words of 8 bits, got 103 here",
        "@f 00": "word 15: expected 4 words",
        "\xff": "expected a readable text of hexadecimal words",
    }.items():
        path.write_text(text)
        with pytest.raises(BadFile, match=message):
            read_hex(path, entry, layout)


def test_a_manifest_that_export_does_not_make(tmp_path: Path):
    with pytest.raises(BadFile, match=r"manifest.json: expected a readable manifest, got 'No such file"):
        read_manifest(tmp_path)
    manifest = export(tmp_path, [VectorTensor("tap", Value("x", (4,), 8), np.arange(4)[None])], Layout(), ("readmemh",), {})
    entry = manifest["tensors"][0]
    for change in (
        {"format": "eam"}, {"version": 2}, {"layout": {"tile": [0]}}, {"tensors": [entry | {"file": "../x.hex"}]},
        {"tensors": [entry | {"bits": 65}]}, {"tensors": [entry | {"shape": [-1]}]}, {"tensors": [{"name": "x"}]}, {"tensors": 1},
    ):  # fmt: skip
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(BadFile, match=r"manifest\.json: .*expected") as refused:
            read_manifest(tmp_path)
        assert "\n" not in str(refused.value)


def test_what_does_not_fit(tmp_path: Path):
    tensor = VectorTensor("tap", Value("x", (4,), 4), np.arange(4)[None])
    with pytest.raises(UserError, match=r"word: expected 1 to 4096 bits, got 5000"):
        export(tmp_path / "a", [tensor], Layout(5000), FORMATS, {})
    with pytest.raises(UserError, match=r"padding of 16: expected what fits x: u4\[4\]"):
        export(tmp_path / "a", [tensor], Layout(tile=(3, 3), pad=16), FORMATS, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="expected a writable folder"):
        export(tmp_path / "file", [tensor], Layout(), FORMATS, {})
    assert not (tmp_path / "a").exists()
