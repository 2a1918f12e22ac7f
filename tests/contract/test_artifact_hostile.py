"""A file that `write` did not make is refused with one line that says where, what was expected and what came."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from eam_files import edit, parts, put_together, write_version_1
from programs import Shape, random_program
from safetensors.numpy import save

from eamsim import artifact
from eamsim.artifact import ArtifactError, read, sha256, write
from eamsim.files.container import canonical

PROGRAM = Shape(1, freeze="scattered")
FITTED = replace(PROGRAM, fitted=True, depth=3)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "vit.eam"
    write(path, random_program(PROGRAM), {})
    return path


def test_a_missing_file_a_folder_and_other_files_are_named(tmp_path):
    (tmp_path / "text.eam").write_text("not a model")

    with pytest.raises(ArtifactError, match=r"none\.eam: file: expected an \.eam file, got 'No such file or directory'; check the path"):
        read(tmp_path / "none.eam")
    with pytest.raises(ArtifactError, match=r"file: expected an \.eam file, got 'Is a directory'; check the path"):
        read(tmp_path)
    with pytest.raises(ArtifactError, match=r"text\.eam: the header: expected a length of at most \d+ bytes within the file"):
        read(tmp_path / "text.eam")
    with pytest.raises(ArtifactError, match=r"none\.eam: expected a readable file, got 'No such file or directory'; check the path"):
        sha256(tmp_path / "none.eam")


def set_item(*keys_and_value):
    *keys, last, value = keys_and_value

    def edit(manifest):
        target = manifest
        for key in keys:
            target = target[key]
        target[last] = value

    return edit


OPERATIONS = ("program", "operations")
TABLE = (*OPERATIONS, 0, "table")
TAMPERED = {
    "format": (set_item("format", "onnx"), r"the metadata's format and version: expected 'eam' and one of \[2, 3, 4\], got \('onnx', 2\)"),
    "version": (set_item("version", 5), r"format and version: expected .*, got \('eam', 5\); use the eamsim that wrote it, or rebuild"),
    "length of the data": (set_item("data_bytes", 5), "/data: expected the length and SHA-256 that the manifest states"),
    "provenance": (set_item("provenance", []), r"the metadata's provenance: expected an object, got \[\]"),
    "extra head field": (set_item("more", 1), "/manifest: expected the fields .*'more'"),
    "no program": (lambda manifest: manifest.pop("program"), "program: expected Program, got None"),
    "program of another kind": (set_item("program", "kind", "Value"), "program: expected Program, got {"),
    "operations": (set_item(*OPERATIONS, {}), r"program\.operations: expected a list, got {}"),
    "unknown operation": (
        set_item(*OPERATIONS, 0, "kind", "Exec"),
        r"program\.operations\[0\]: expected InputQuant or Gather or .*, got {",
    ),
    "scalar kind": (set_item("program", "name", {"kind": "str"}), r"program\.name: expected str, got {'kind': 'str'}"),
    "list kind": (set_item("program", "kind", []), "program: expected Program, got {"),
    "extra field": (set_item(*OPERATIONS, 0, "code", "x"), r"program\.operations\[0\]: expected the fields .*'code'"),
    "missing field": (
        lambda manifest: manifest["program"]["operations"][0].pop("x"),
        r"program\.operations\[0\]: expected the fields .*'x'",
    ),
    "string for a number": (set_item("program", "image", "bits", "8"), r"program\.image\.bits: expected int, got '8'"),
    "float for a number": (set_item("program", "image", "bits", 8.0), r"program\.image\.bits: expected int, got 8\.0"),
    "boolean for a number": (set_item("program", "image", "bits", True), r"program\.image\.bits: expected int, got True"),
    "absurd number": (set_item("program", "image", "bits", 1 << 63), r"program\.image\.bits: expected an integer of 64 bits, got 92233"),
    "wide number": (
        set_item("program", "image", "bits", 99),
        r"random \[P3\]: bits of image must be an integer in .*; copy the file again or rebuild it",
    ),
    "literal": (set_item("program", "datapath", "rounding", "up"), r"program\.datapath\.rounding: expected one of \['half_up'.*, got 'up'"),
    "literal list": (
        set_item("program", "datapath", "rounding", []),
        r"program\.datapath\.rounding: expected one of \['half_up'.*, got \[\]",
    ),
    "escape codes": (set_item("program", "name", "\x1b[2J"), r"program\.name: expected printable text, got '\\x1b\[2J'"),
    "array for null": (set_item(*TABLE, None), r"program\.operations\[0\]\.table: expected ndarray, got None"),
    "dtype": (set_item(*TABLE, "dtype", "object"), r"table\.dtype: expected one of \['bool', .*, got 'object'"),
    "other dtype": (set_item(*TABLE, "dtype", "int32"), r"InputQuant \[C3\]: table must be uint8 \(3, 256\), got int32"),
    "narrow dtype": (set_item(*TABLE, "dtype", "bool"), r"table: expected a packing of bool, got 'u8 does not fit bool'"),
    "packing": (set_item(*TABLE, "packing", "f4"), r"table\.packing: expected one of \['u1', .*, got 'f4'"),
    "offset": (set_item(*TABLE, "offset", 0), r"table: expected offset 1 and an end within \d+ bytes, got \(0, 769\)"),
    "boolean offset": (set_item(*TABLE, "offset", True), r"table\.offset: expected int, got True"),
    "shape": (set_item(*TABLE, "shape", [3, 255]), r"offset 766 and an end within \d+ bytes, got \(769, "),
    "negative shape": (set_item(*TABLE, "shape", [-3, -256]), r"table\.shape: expected at most 4 extents, none negative, got \(-3, -256\)"),
    "many axes": (set_item(*TABLE, "shape", [1] * 9), r"table\.shape: expected at most 4 extents"),
    "shape past the end": (
        set_item(*TABLE, "shape", [3, 1 << 20]),
        r"table: expected offset 1 and an end within \d+ bytes, got \(1, 3145729\)",
    ),
    "decompression bomb": (
        set_item(*TABLE, "shape", [0, 1 << 40]),
        r"table: expected arrays of at most 2147483648 bytes in all, got 1099511627776",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_manifest_that_is_not_a_program_is_refused(path, name):
    change, message = TAMPERED[name]
    edit(path, change)

    with pytest.raises(ArtifactError, match=f"^{path}: .*{message}"):
        read(path)


@pytest.mark.parametrize(
    "change", [set_item("mask", "dtype", "uint8"), set_item("codes", "shape", [1]), set_item("codes", "dtype", "int32")]
)
def test_frozen_codes_must_match_their_mask(path, change):
    def edit_frozen(manifest):
        (attention,) = (op for op in manifest["program"]["operations"] if op["kind"] == "Attention")
        change(attention["frozen"])

    edit(path, edit_frozen)

    with pytest.raises(ArtifactError, match=r"frozen.*: expected (a bool mask and one uint8 code for each|offset)"):
        read(path)


NOT_CANONICAL = [
    b"",
    b"\0",
    b"[]",
    b'{"a": 1}',
    b'{"a":1,"a":1}',
    b'{"a":NaN}',
    b'{"a":1e999}',
    b'{"b":1,"a":1}',
    b"[" * 100_000,
    b'{"a":1}\n',
    b"1" * 5000,
]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [*NOT_CANONICAL, b'"\xff"'])
@pytest.mark.parametrize("name", ["manifest", "provenance"])
def test_json_of_version_1_must_be_an_object_in_canonical_form(tmp_path, name, stream):
    write_version_1(tmp_path / "old.eam", random_program(PROGRAM), {}, **{name: stream or b" "})

    with pytest.raises(ArtifactError, match=f"/{name}: expected (JSON|a JSON object in canonical form)"):
        read(tmp_path / "old.eam")


@pytest.mark.parametrize("text", NOT_CANONICAL)
def test_the_metadata_must_be_an_object_in_canonical_form(path, text):
    path.write_bytes(save({"0001.x": np.zeros(1, np.uint8)}, {"eam": text.decode()}))

    with pytest.raises(ArtifactError, match=r"the metadata: expected (JSON|a JSON object in canonical form)"):
        read(path)


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(b"{}")[:9],
        header(b"{}"),
        header(b"[" * 100_000),
        header(b'{"__metadata__":{}}'),
        header(b'{"__metadata__":[]}'),
        header(b'{"__metadata__":{"eam":1}}'),
        header(b'{"__metadata__":{"eam":"{}","more":"x"}}'),
        header(b'{"__metadata__":{"pt":"{}"}}'),
        (1 << 62).to_bytes(8, "little") + b"{}",
    ],
)
def test_other_safetensors_files_are_refused(path, content):
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match=r"the header: expected (a length|JSON with one metadata key, eam)"):
        read(path)


def change_tensors(path, change):
    head, tensors = parts(path)
    change(tensors)
    put_together(path, head, tensors)


TENSORS = {
    "missing": (lambda tensors: tensors.pop("0001.input.table"), "/data: expected the length and SHA-256"),
    "extra": (lambda tensors: tensors.update({"9999.x": np.zeros(1, np.uint8)}), "/data: expected the length and SHA-256"),
    "empty": (
        lambda tensors: tensors.update({"9999.x": np.zeros(0, np.uint8)}),
        "tensor 9999.x: expected no such tensor, got .*u1",
    ),
    "renamed": (
        lambda tensors: tensors.update({"0001.input.tables": tensors.pop("0001.input.table")}),
        "tensor 0001.input.tables: expected no such tensor",
    ),
    "another shape": (
        lambda tensors: tensors.update({"0001.input.table": tensors["0001.input.table"].reshape(-1)}),
        r"tensor 0001.input.table: expected \('\|u1', \(3, 256\)\), got \('\|u1', \(768,\)\)",
    ),
    "signed": (
        lambda tensors: tensors.update({"0001.input.table": tensors["0001.input.table"].view(np.int8)}),
        r"tensor 0001.input.table: expected \('\|u1', \(3, 256\)\), got \('\|i1', \(3, 256\)\)",
    ),
    "one bit": (lambda tensors: tensors["0001.input.table"].__ixor__(1), "/data: expected the length and SHA-256"),
    "no number": (lambda tensors: tensors.update({"x": np.zeros(1, np.uint8)}), "the tensors: expected names that begin with their"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_missing_foreign_and_changed_tensors_are_refused(path, name):
    change, message = TENSORS[name]
    change_tensors(path, change)

    with pytest.raises(ArtifactError, match=f"^{path}: {message}"):
        read(path)


def test_a_changed_field_is_found_by_the_sha256_of_the_metadata(path):
    head, tensors = parts(path)
    head["provenance"] = {"scale": 2}
    path.write_bytes(save(tensors, {"eam": canonical(head).decode()}))

    with pytest.raises(ArtifactError, match="the metadata's sha256: expected"):
        read(path)


def test_bytes_after_the_last_array_are_refused(path):
    head, tensors = parts(path)
    tensors["9999.more"] = np.zeros(1, np.uint8)
    data = b"\0" + b"".join(tensors[name].tobytes() for name in sorted(tensors))
    put_together(path, head | {"data_bytes": len(data), "data_sha256": hashlib.sha256(data).hexdigest()}, tensors)

    with pytest.raises(ArtifactError, match=f"/data: expected {len(data) - 1} bytes of arrays, got {len(data)}"):
        read(path)


def test_the_size_limits_hold_for_both_sides(path, tmp_path, monkeypatch):
    old = tmp_path / "old.eam"
    write_version_1(old, random_program(PROGRAM), {})
    monkeypatch.setitem(artifact.EAM_BYTES, "data", 100)
    with pytest.raises(ArtifactError, match="/data: expected at most 100 bytes, got"):
        read(old)
    with pytest.raises(ArtifactError, match=r"data: expected at most 100 bytes, got \d+; use a smaller model"):
        write(path, random_program(PROGRAM), {})

    for name in artifact.EAM_BYTES:
        monkeypatch.setitem(artifact.EAM_BYTES, name, 100)
    with pytest.raises(ArtifactError, match=r"file: expected an \.eam file, got '[\d,]+ bytes, of at most 300'"):
        read(path)


def first_linear(head: dict, fitted: bool) -> dict:
    return next(op for op in head["program"]["operations"] if op["kind"] == "Linear" and ("levels" in op) == fitted)


LEVELS = {
    "of an older version": (
        lambda head: head.update(version=2),
        "the version: expected 3, the first with all fields of its program, got 2",
    ),
    "null": (lambda head: first_linear(head, False).update(levels=None), "to be left out where it is null, got None"),
    "a list": (lambda head: first_linear(head, True).update(levels=[1] * 16), r"levels: expected ndarray or NoneType, got \[1"),
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_refused_where_the_format_has_none(tmp_path, name):
    change, message = LEVELS[name]
    artifact.write(tmp_path / "a.eam", random_program(FITTED), {})
    edit(tmp_path / "a.eam", change)

    with pytest.raises(ArtifactError, match=message):
        read(tmp_path / "a.eam")


def test_version_3_without_levels_and_version_1_with_them_are_refused(tmp_path):
    artifact.write(tmp_path / "a.eam", random_program(PROGRAM), {})
    edit(tmp_path / "a.eam", lambda head: head.update(version=3))
    write_version_1(tmp_path / "old.eam", random_program(FITTED), {})

    with pytest.raises(ArtifactError, match="the version: expected 2, the first with all fields of its program, got 3"):
        read(tmp_path / "a.eam")
    with pytest.raises(ArtifactError, match="the version: expected 3, the first with all fields of its program, got 1"):
        read(tmp_path / "old.eam")
