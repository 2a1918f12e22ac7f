"""A file that `write` did not make is refused with one line that says where, what was expected and what came."""

import hashlib
import json
import os

import h5py
import numpy as np
import pytest
from programs import Shape, random_program

from eamsim import artifact, container
from eamsim.artifact import ArtifactError, read, sha256, write

PROGRAM = Shape(1, freeze="scattered")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "vit.eam"
    write(path, random_program(PROGRAM), {})
    return path


def rewrite(path, **streams):
    """The same file with some of its streams replaced."""
    path.write_bytes(artifact._container(artifact._read_streams(path) | streams))


def edit_manifest(path, edit):
    manifest = json.loads(artifact._read_streams(path)["manifest"])
    edit(manifest)
    rewrite(path, manifest=container.canonical(manifest))


def test_a_missing_file_a_folder_and_other_files_are_named(tmp_path):
    (tmp_path / "text.eam").write_text("not a model")

    with pytest.raises(ArtifactError, match=r"none\.eam: file: expected an \.eam file, got 'no such file'; check the path"):
        read(tmp_path / "none.eam")
    with pytest.raises(ArtifactError, match=r"file: expected an \.eam file, got 'a folder or device'; check the path"):
        read(tmp_path)
    with pytest.raises(ArtifactError, match=r"text\.eam: HDF5: expected a whole, undamaged HDF5 file, got .*signature not found"):
        read(tmp_path / "text.eam")
    with pytest.raises(ArtifactError, match=r"none\.eam: expected a readable file, got 'No such file or directory'; check the path"):
        sha256(tmp_path / "none.eam")


def external_storage(file):
    del file["data"]
    file.create_dataset("data", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/hostname", "data", (4,))
    del file["data"]
    file.create_virtual_dataset("data", layout)


def replace_data(**options):
    def change(file):
        content = file["data"][()]
        del file["data"]
        file.create_dataset("data", **({"data": content, "chunks": content.shape, "fletcher32": True} | options))

    return change


def huge(file):
    del file["data"]
    file.create_dataset("data", shape=(1 << 31,), dtype="u1", chunks=(1 << 31,), fletcher32=True)


def replace_link(link):
    def change(file):
        del file["data"]
        file["data"] = link

    return change


HOSTILE = {
    "soft link": (replace_link(h5py.SoftLink("/manifest")), "/: expected the links .*'data': 'SoftLink'"),
    "external link": (replace_link(h5py.ExternalLink("other.h5", "/data")), "/: expected the links .*'data': 'ExternalLink'"),
    "group": (lambda file: (file.pop("data"), file.create_group("data")), "/data: expected a dataset, got 'Group'"),
    "named type": (replace_link(np.dtype("u1")), "/data: expected a dataset, got 'Datatype'"),
    "extra dataset": (lambda file: file.create_dataset("more", data=1), "/: expected the links .*'more'"),
    "missing dataset": (lambda file: file.pop("provenance"), "/: expected the links .*, got "),
    "nested group": (lambda file: file.create_group("more/groups"), "/: expected the links .*'more/groups'"),
    "attribute": (lambda file: file["data"].attrs.update(x=1), r"/data attributes: expected \[\], got \['x'\]"),
    "root attribute": (
        lambda file: file.attrs.update(x=1),
        r"/: expected superblock 3, no user block, no attributes, got .*attributes \['x'\]",
    ),
    "external storage": (external_storage, "/data chunks: expected .*, got None"),
    "virtual": (virtual, "/data chunks: expected .*, got None"),
    "empty": (lambda file: (file.pop("data"), file.create_dataset("data", data=h5py.Empty("u1"))), "/data axes: expected 1, got 0"),
    "signed": (replace_data(dtype="i1"), "/data type: expected unsigned bytes, got"),
    "float": (replace_data(dtype="f8"), "/data type: expected unsigned bytes, got"),
    "enumeration": (replace_data(dtype=h5py.enum_dtype({"A": 0}, "u1")), "/data type: expected unsigned bytes, got"),
    "references": (replace_data(data=[None] * 4, dtype=h5py.ref_dtype, chunks=(4,)), "/data type: expected unsigned bytes, got"),
    "strings": (replace_data(data=["a"], dtype=h5py.string_dtype(), chunks=(1,), fletcher32=False), "/data type: expected unsigned bytes"),
    "matrix": (replace_data(data=np.zeros((2, 2), np.uint8), chunks=(2, 2)), "/data axes: expected 1, got 2"),
    "small chunks": (replace_data(chunks=(4,)), r"/data chunks: expected .*, got \(4,\)"),
    "growing": (replace_data(maxshape=(None,)), r"/data greatest shape: expected .*, got \(None,\)"),
    "no checksum": (replace_data(fletcher32=False), r"/data filters: expected \[3\], got \[\]"),
    "gzip": (replace_data(compression="gzip"), r"/data filters: expected \[3\], got \[1, 3\]"),
    "lzf": (replace_data(compression="lzf"), r"/data filters: expected \[3\], got \[32000, 3\]"),
    "huge": (huge, "/data: expected at most .* bytes, got 2147483648"),
    "other bytes": (replace_data(data=np.zeros(9, np.uint8), chunks=(9,)), "/data: expected the length and SHA-256 .*, got '9 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tree_that_write_does_not_make_is_refused(path, name):
    change, message = HOSTILE[name]
    with h5py.File(path, "r+") as file:
        change(file)

    with pytest.raises(ArtifactError, match=f"^{path}: {message}"):
        read(path)


def test_a_filter_that_hdf5_does_not_know_is_refused_before_any_plugin_is_looked_for(path):
    with h5py.File(path, "r+") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        del file["data"]
        h5py.h5d.create(file.id, b"data", h5py.h5t.STD_U8LE, h5py.h5s.create_simple((4,)), dcpl=properties)

    assert os.environ["HDF5_PLUGIN_PRELOAD"] == "::"
    with pytest.raises(ArtifactError, match=r"/data filters: expected \[3\], got \[32015\]"):
        read(path)


def test_a_user_block_in_front_is_refused(path):
    path.write_bytes(bytes(512) + path.read_bytes())

    with pytest.raises(ArtifactError, match=r"/: expected superblock 3, no user block, no attributes, got 'superblock 3, user block 512"):
        read(path)


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
    "format": (set_item("format", "onnx"), "/manifest format: expected 'eam', got 'onnx'"),
    "version": (set_item("version", 2), "/manifest version: expected 1, got 2; use the eamsim that wrote it, or rebuild"),
    "boolean version": (set_item("version", True), "/manifest.version: expected int, got True"),
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
    edit, message = TAMPERED[name]
    edit_manifest(path, edit)

    with pytest.raises(ArtifactError, match=f"^{path}: .*{message}"):
        read(path)


@pytest.mark.parametrize("edit", [set_item("mask", "dtype", "uint8"), set_item("codes", "shape", [1]), set_item("codes", "dtype", "int32")])
def test_frozen_codes_must_match_their_mask(path, edit):
    def edit_frozen(manifest):
        (attention,) = (op for op in manifest["program"]["operations"] if op["kind"] == "Attention")
        edit(attention["frozen"])

    edit_manifest(path, edit_frozen)

    with pytest.raises(ArtifactError, match=r"frozen.*: expected (a bool mask and one uint8 code for each|offset)"):
        read(path)


@pytest.mark.parametrize(
    "stream",
    [
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
        b'"\xff"',
        b"1" * 5000,
    ],
)
@pytest.mark.parametrize("name", ["manifest", "provenance"])
def test_json_must_be_an_object_in_canonical_form(path, name, stream):
    rewrite(path, **{name: stream or b" "})

    with pytest.raises(ArtifactError, match=f"/{name}: expected (JSON|a JSON object in canonical form)"):
        read(path)


def test_bytes_after_the_last_array_are_refused(path):
    data = artifact._read_streams(path)["data"] + b"\0"
    rewrite(path, data=data)
    edit_manifest(path, lambda manifest: manifest.update(data_bytes=len(data), data_sha256=hashlib.sha256(data).hexdigest()))

    with pytest.raises(ArtifactError, match=f"/data: expected {len(data) - 1} bytes of arrays, got {len(data)}"):
        read(path)


def test_the_size_limits_hold_for_both_sides(path, monkeypatch):
    monkeypatch.setitem(artifact.LIMITS_BYTES, "data", 100)

    with pytest.raises(ArtifactError, match="/data: expected at most 100 bytes, got"):
        read(path)
    with pytest.raises(ArtifactError, match=r"/data: expected at most 100 bytes, got \d+; use a smaller model"):
        write(path, random_program(PROGRAM), {})
