"""A file of version 1, an HDF5 tree, that no `write` has made is refused before HDF5 or a plugin reads anything that it names."""

import h5py
import numpy as np
import pytest
from eam_files import write_version_1
from programs import Shape, random_program

from eamsim.artifact import ArtifactError, read
from eamsim.files import hdf5_index


@pytest.fixture
def old(tmp_path):
    """A program in a file of version 1."""
    path = tmp_path / "old.eam"
    write_version_1(path, random_program(Shape(1, freeze="scattered")), {})
    return path


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
    "soft link": (replace_link(h5py.SoftLink("/manifest")), "/: expected hard links alone, got .*'data': 'SoftLink'"),
    "external link": (replace_link(h5py.ExternalLink("other.h5", "/data")), "/: expected hard links alone, got .*'data': 'ExternalLink'"),
    "group": (lambda file: (file.pop("data"), file.create_group("data")), "/data: expected a dataset, got 'Group'"),
    "named type": (replace_link(np.dtype("u1")), "/data: expected a dataset, got 'Datatype'"),
    "extra dataset": (
        lambda file: file.create_dataset("more", data=[1], chunks=(1,), fletcher32=True),
        r"/: expected the arrays \[\], got \['more'\]",
    ),
    "missing dataset": (lambda file: file.pop("provenance"), r"/: expected the arrays \['provenance'\], got \[\]"),
    "nested group": (lambda file: file.create_group("more/groups"), "/more: expected a dataset, got 'Group'"),
    "attribute": (lambda file: file["data"].attrs.update(x=1), r"/data attributes: expected \[\], got .*\['x'\]"),
    "root attribute": (
        lambda file: file.attrs.update(x=1),
        r"/: expected superblock 3, no user block, no attributes, got .*attributes \['x'\]",
    ),
    "external storage": (external_storage, "/data filters: expected .*, got"),
    "virtual": (virtual, "/data filters: expected .*, got"),
    "empty": (lambda file: (file.pop("data"), file.create_dataset("data", data=h5py.Empty("u1"))), "/data (filters|chunks): expected"),
    "signed": (replace_data(dtype="i1"), r"/data dtype, shape, compressed: expected .*u1.*, got .*i1"),
    "float": (replace_data(dtype="f8"), r"/data dtype, shape, compressed: expected .*u1.*, got .*f8"),
    "enumeration": (replace_data(dtype=h5py.enum_dtype({"A": 0}, "u1")), "/data type: expected one of .*, got"),
    "references": (replace_data(data=[None] * 4, dtype=h5py.ref_dtype, chunks=(4,)), "/data type: expected one of .*, got"),
    "strings": (replace_data(data=["a"], dtype=h5py.string_dtype(), chunks=(1,), fletcher32=False), "/data (type|filters): expected"),
    "matrix": (replace_data(data=np.zeros((2, 2), np.uint8), chunks=(2, 2)), "/data dtype, shape, compressed: expected"),
    "small chunks": (replace_data(chunks=(4,)), r"/data chunks: expected .*, got .*\(4,\)"),
    "growing": (replace_data(maxshape=(None,)), r"/data greatest shape: expected .*, got .*\(None,\)"),
    "no checksum": (replace_data(fletcher32=False), r"/data filters: expected \[3\] or .*, got .*\[\]"),
    "gzip": (replace_data(compression="gzip"), r"/data filters: expected \[3\] or .*, got .*\[1, 3\]"),
    "lzf": (replace_data(compression="lzf"), r"/data filters: expected \[3\] or .*, got .*\[32000, 3\]"),
    "huge": (huge, "/data: expected parts in the file, as long as the array makes them"),
    "other bytes": (replace_data(data=np.zeros(9, np.uint8), chunks=(9,)), "/data: expected the length and SHA-256 .*, got '9 bytes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_tree_that_write_does_not_make_is_refused(old, name):
    change, message = HOSTILE[name]
    with h5py.File(old, "r+") as file:
        change(file)

    with pytest.raises(ArtifactError, match=f"^{old}: {message}"):
        read(old)


def test_a_filter_that_hdf5_does_not_know_is_refused_before_any_plugin_is_looked_for(old):
    with h5py.File(old, "r+") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        del file["data"]
        h5py.h5d.create(file.id, b"data", h5py.h5t.STD_U8LE, h5py.h5s.create_simple((4,)), dcpl=properties)

    assert hdf5_index.os.environ["HDF5_PLUGIN_PRELOAD"] == "::"
    with pytest.raises(ArtifactError, match=r"/data filters: expected \[3\] or .*, got .*32015"):
        read(old)


def test_a_user_block_in_front_is_refused(old):
    old.write_bytes(bytes(512) + old.read_bytes())

    with pytest.raises(ArtifactError, match="the header: expected a length of at most"):
        read(old)
