"""`eamsim entropy` on the embedded digits: what it measures, in how many passes, how it continues, and which files it refuses."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest
from command_line import eamsim
from numpy.testing import assert_array_equal

pytest.importorskip("timm", reason="needs the extra 'reference'")

from eamsim.cli.output import progress
from eamsim.errors import BadFile, UserError
from eamsim.files import container
from eamsim.inputs.images import open_images
from reference.attention import measure
from reference.attention.collect import calibrate_on
from reference.attention.entropy import layer_bytes
from reference.attention.statistics_file import read_statistics
from reference.models.load import load_model
from reference.quantisation.fakequant import collect_maps

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
MODEL, DATA = f"local-dir:{DIGITS}", DIGITS / "digits_calib.npz"
IMAGES, RANGE_IMAGES, BATCH = 9, 8, 4
"""Three batches, the last one shorter."""
ONE_LAYER_BYTES = 2 * layer_bytes((4, 17, 17), IMAGES)
"""Of both models."""


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "BATCH", BATCH)
        yield


def run(out, memory_bytes=1 << 30, of: Literal["float", "quantised", "both"] = "both", limit=IMAGES, report=progress):
    settings = {"range_images": RANGE_IMAGES, "limit": limit, "command": "eamsim entropy", "histograms": True}
    return measure.measure_model(MODEL, [DATA], out, report, of=of, memory_bytes=memory_bytes, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run in one pass."""
    path = tmp_path_factory.mktemp("whole") / "stats.h5"
    run(path)
    return path


@pytest.fixture
def path(whole, tmp_path):
    """A copy to damage."""
    path = tmp_path / "stats.h5"
    path.write_bytes(whole.read_bytes())
    return path


def numpy_histograms(maps):
    bins = np.minimum(np.floor(maps * 256), 255).astype(int)
    return (bins[..., None] == np.arange(256)).sum(axis=0)


@pytest.mark.parametrize("source", ["float", "quantised"])
def test_the_file_holds_what_numpy_finds_in_the_maps(whole, source):
    model = load_model(MODEL)
    images = open_images([DATA], model.preprocessing, IMAGES)
    measured = model if source == "float" else calibrate_on(model, images, RANGE_IMAGES)
    maps = {layer: [] for layer in range(3)}
    collect_maps(measured, images.batches(BATCH), lambda layer, batch: maps[layer].append(batch.copy()))

    statistics = read_statistics(whole)

    assert statistics.header.images == IMAGES
    for layer, batches in maps.items():
        values = np.concatenate(batches)
        counts = numpy_histograms(values)
        p = counts / IMAGES
        entropy = -(p * np.log2(p, where=p > 0, out=np.zeros_like(p))).sum(axis=-1)
        with h5py.File(whole) as file:
            assert_array_equal(file[f"layer{layer}.{source}.counts"], counts)
        assert_array_equal(statistics.mean[source][layer], values.mean(axis=0).astype(np.float32))
        np.testing.assert_allclose(statistics.entropy[source][layer], entropy, rtol=2**-22, atol=1e-12)
        np.testing.assert_allclose(statistics.variance[source][layer], values.var(axis=0), rtol=2**-22, atol=1e-14)


def test_layers_in_groups_make_the_same_file(whole, tmp_path):
    for size in (1, 2):
        out = tmp_path / f"{size}.h5"
        run(out, memory_bytes=size * ONE_LAYER_BYTES)
        assert out.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "1.h5", tmp_path / "2.h5"]


class Interrupting:
    """A progress report that ends the run when so many images have gone through a model to be measured."""

    def __init__(self, at):
        self.left, self.measures = at, False

    def __call__(self, what, total):
        self.measures = what.startswith("attention maps")
        return self

    def __enter__(self):
        return self.advance

    def __exit__(self, *error):
        pass

    def advance(self, steps):
        self.left -= steps * self.measures
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("layers_at_once", [1, 3])
@pytest.mark.parametrize("at", [1, 11, 17, 25])
def test_an_interrupted_run_continues_to_the_same_file(whole, tmp_path, monkeypatch, at, layers_at_once):
    monkeypatch.setattr(measure, "SAVE_SECONDS", 0)
    memory_bytes = layers_at_once * ONE_LAYER_BYTES
    out, report = tmp_path / "stats.h5", Interrupting(at)
    ends_early = at < 2 * IMAGES * 3 / layers_at_once
    if ends_early:
        with pytest.raises(KeyboardInterrupt):
            run(out, memory_bytes, report=report)
        assert {path.name for path in tmp_path.iterdir()} <= {"stats.h5.progress"}
    passes = []
    monkeypatch.setattr(measure, "collect_maps", lambda *arguments: (passes.append(1), collect_maps(*arguments)))
    run(out, memory_bytes)

    assert out.read_bytes() == whole.read_bytes()
    assert list(tmp_path.iterdir()) == [out]
    saved_batches = min(at // (2 * BATCH), 2) if layers_at_once == 3 else None
    if ends_early and saved_batches is not None:
        assert len(passes) == 2 * (3 - saved_batches)


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """`--out` of a run that was interrupted in its second batch."""
    monkeypatch.setattr(measure, "SAVE_SECONDS", 0)
    out = tmp_path / "stats.h5"
    with pytest.raises(KeyboardInterrupt):
        run(out, report=Interrupting(11))
    assert (tmp_path / "stats.h5.progress" / "from_layer0.h5").exists()
    return out


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"limit": 8}, "calibration_sha256"),
        ({"memory_bytes": ONE_LAYER_BYTES}, r"groups \[1, 1, 1\], got \[3\]"),
        ({"of": "float"}, "range_images"),
    ],
)
def test_progress_of_another_run_is_refused(interrupted, change, name):
    with pytest.raises(
        UserError, match=rf"from_layer0\.h5: progress of another run: expected .*{name}.*; delete it, or choose another --out"
    ):
        run(interrupted, **change)


def test_damaged_progress_is_refused(interrupted):
    (saved,) = interrupted.with_name("stats.h5.progress").iterdir()
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)

    with pytest.raises(BadFile, match=r"from_layer0\.h5: the last 32 bytes: expected the SHA-256 .*; delete it and start again"):
        run(interrupted)


def test_progress_with_other_counts_is_refused(interrupted):
    (saved,) = interrupted.with_name("stats.h5.progress").iterdir()
    make_old(saved, replace_array("layer1.float.counts", put_value(3)))

    with pytest.raises(BadFile, match="histograms do not count 4 images each; delete it and start again"):
        run(interrupted)


def test_the_command_prints_every_head_and_writes_a_manifest(tmp_path):
    out = tmp_path / "stats.h5"
    done = eamsim("entropy", MODEL, "--calib", DATA, "--limit", 40, "--calib-images", 8, "-o", out, "--json")
    result, statistics = json.loads(done.out), read_statistics(out)

    assert done.code == 0
    assert result["images"] == 40
    assert result["images_per_second"] > 0
    assert "attention maps, layers 0-2: 80/80" in done.err
    layers, heads = statistics.header.layers, statistics.header.shapes[0][0]
    assert [(row["layer"], row["head"]) for row in result["heads"]] == [(layer, head) for layer in range(layers) for head in range(heads)]
    last, bits, moved = result["heads"][-1], statistics.entropy["quantised"][-1][-1], statistics.divergence
    assert last["quantised"] == {"mean": bits.mean(), "min": bits.min(), "max": bits.max(), "zero": (bits == 0).mean()}
    assert moved is not None
    assert last["divergence"] == {"mean": moved[-1][-1].mean(), "max": moved[-1][-1].max()}
    assert statistics.header.command.startswith("eamsim entropy local-dir:digits --calib digits_calib.npz")
    manifest = json.loads((tmp_path / "stats.h5.json").read_text())
    assert manifest["model_sha256"] == statistics.header.origin["model_sha256"]
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "stats.h5.json"]


def test_one_model_alone_has_no_divergence(tmp_path):
    out = tmp_path / "stats.h5"
    done = eamsim("entropy", MODEL, "--calib", DATA, "--limit", 5, "--of", "float", "-o", out)

    assert done.code == 0
    header, *lines = done.out.splitlines()
    assert header.split() == ["layer", "head", "model", "mean", "bits", "min", "max", "zero", "divergence", "mean", "max"]
    assert lines[0].split()[:3] == ["0", "0", "float"]
    assert read_statistics(out).divergence is None


def test_interruption_exits_with_130_and_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "collect_maps", interrupt)
    done = eamsim("entropy", MODEL, "--calib", DATA, "--limit", 5, "--of", "float", "-o", tmp_path / "stats.h5")

    assert done.code == 130
    assert f"interrupted: {tmp_path / 'stats.h5'} is not written; nothing was saved so far\n" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "stats.eam"), r"--out: expected a name that ends in \.h5, got stats\.eam"),
        (("-o", "none/stats.h5"), r"--out: none/stats\.h5 cannot be written; choose a file in an existing, writable folder"),
        (
            ("-o", "stats.h5", "--memory", "0.001", "--limit", "5"),
            r"--memory: expected at least 0\.\d+ GiB, what one layer needs, got 0\.001",
        ),
    ],
)
def test_usage_errors_exit_with_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = eamsim("entropy", MODEL, "--calib", DATA, *arguments)

    assert done.code == 2
    assert re.search(message, done.err)
    assert list(tmp_path.iterdir()) == []


def replace_array(source, change, name=None, **options):
    def edit(file):
        array = change(file[source][()])
        if name is None:
            del file[source]
        file.create_dataset(name or source, data=array, **({"chunks": array.shape, "fletcher32": True} | options))

    return edit


def edit_manifest(**changes):
    def edit(file):
        tree = json.loads(file["manifest"][()].tobytes()) | changes
        del file["manifest"]
        stream = np.frombuffer(container.canonical(tree), np.uint8)
        file.create_dataset("manifest", data=stream, chunks=stream.shape, fletcher32=True)

    return edit


def put_value(value):
    def change(array):
        array.flat[7] = value
        return array

    return change


HOSTILE = {
    "extra dataset": (replace_array("manifest", lambda a: a, name="more"), r"/: expected the arrays \[\], got \['more'\]"),
    "missing dataset": (lambda file: file.pop("layer1.divergence"), "/: expected the arrays .*layer1.divergence"),
    "no manifest": (lambda file: file.pop("manifest"), "/: expected an array named manifest"),
    "external link": (
        lambda file: (file.pop("layer0.divergence"), file.update({"layer0.divergence": h5py.ExternalLink("x.h5", "/x")})),
        "/: expected hard links alone, got .*ExternalLink",
    ),
    "no checksum": (replace_array("layer0.float.mean", lambda a: a, fletcher32=False), r"/layer0\.float\.mean filters: expected \[3\]"),
    "gzip": (replace_array("layer0.float.mean", lambda a: a, compression="gzip"), r"/layer0\.float\.mean filters: expected \[3\]"),
    "wider type": (
        replace_array("layer0.float.mean", lambda a: a.astype("f8")),
        r"/layer0\.float\.mean dtype.*: expected .*<f4",
    ),
    "big endian": (replace_array("layer0.float.mean", lambda a: a.astype(">f4")), r"/layer0\.float\.mean type: expected one of"),
    "fewer heads": (
        replace_array("layer0.float.mean", lambda a: a[:-1]),
        r"/layer0\.float\.mean dtype.*: expected .*4, 17, 17",
    ),
    "more heads": (
        replace_array("layer0.float.mean", lambda a: np.concatenate([a, a])),
        r"/layer0\.float\.mean dtype, shape, compressed: expected .*4, 17, 17.*8, 17, 17",
    ),
    "NaN": (replace_array("layer2.quantised.entropy", put_value(np.nan)), r"entropy: expected finite values in \[0, 3\.169"),
    "entropy of 9 bits": (replace_array("layer2.quantised.entropy", put_value(9)), r"entropy: expected finite values in \[0, 3\.169"),
    "mean of 2": (replace_array("layer2.quantised.mean", put_value(2)), r"mean: expected finite values in \[0, 1\.0\]"),
    "variance of 1": (replace_array("layer2.quantised.variance", put_value(1)), r"variance: expected finite values in \[0, 0\.25\]"),
    "negative divergence": (replace_array("layer2.divergence", put_value(-1)), r"divergence: expected finite values in \[0, inf\]"),
    "infinite divergence": (replace_array("layer2.divergence", put_value(np.inf)), r"divergence: expected finite values in \[0, inf\]"),
    "format": (edit_manifest(format="eam"), "/manifest format and version: expected .*; use the eamsim that wrote it"),
    "version": (edit_manifest(version=1), "/manifest format and version: expected .*; use the eamsim that wrote it"),
    "extra field": (edit_manifest(more=1), "/manifest: expected the fields"),
    "fewer images": (edit_manifest(images=7), r"layer0\.float\.entropy: expected finite values in \[0, 2\.8"),
    "huge shape": (edit_manifest(shapes=[[1 << 40, 2, 2]]), "/manifest shapes, images: expected 1 to 1024 shapes of numbers"),
    "two axes": (edit_manifest(shapes=[[4, 17]]), "/manifest shapes, images: expected 1 to 1024 shapes of numbers"),
    "no shape": (edit_manifest(shapes=3), "/manifest shapes, images: expected 1 to 1024 shapes of numbers"),
    "other heads": (edit_manifest(heads=[3, 4, 4]), "/manifest heads, excluded: expected a divisor of every layer's maps"),
    "heads as text": (edit_manifest(heads="444"), "/manifest heads, excluded: expected a divisor of every layer's maps"),
    "no such layer": (edit_manifest(excluded=[3]), "/manifest heads, excluded: expected a divisor of every layer's maps"),
    "excluded pairs of a ViT": (edit_manifest(excluded=[0]), "layer0.excluded"),
    "no layers": (edit_manifest(shapes=[]), "/manifest shapes, images: expected 1 to 1024 shapes of numbers"),
    "many layers": (edit_manifest(shapes=[[1, 1, 1]] * 1025), "/manifest shapes, images: expected 1 to 1024 shapes of numbers"),
    "boolean images": (edit_manifest(images=True), "/manifest shapes, images: expected 1 to 1024 shapes of numbers"),
    "sources": (edit_manifest(sources=["float", "float"]), "/manifest sources: expected one of"),
    "histograms": (edit_manifest(histograms=1), "/manifest histograms, origin, command: expected true or false"),
    "command": (edit_manifest(command=None), "/manifest histograms, origin, command: expected true or false"),
}


def make_old(path, change):
    """As version 3 was, without an index and a seal, and changed."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        edit_manifest(version=3)(file)
        change(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_was_not_written_here_is_refused(path, name):
    change, message = HOSTILE[name]
    make_old(path, change)

    with pytest.raises(BadFile, match=f"^{path}: .*{message}"):
        read_statistics(path)


def test_version_3_is_read(path):
    expected = read_statistics(path)
    make_old(path, lambda file: None)

    found = read_statistics(path)
    assert found.header == expected.header
    assert_array_equal(found.divergence, expected.divergence)


def test_a_file_that_lost_its_seal_is_refused(path):
    content = path.read_bytes()
    path.write_bytes(content[:-32])
    with pytest.raises(BadFile, match="the file's end: expected an index and a SHA-256, got 'neither'"):
        read_statistics(path)


@pytest.mark.parametrize("word", [b"\0\0", b"\xff\xff"])
def test_a_word_that_fletcher32_takes_for_another_is_refused(path, word):
    content = path.read_bytes()
    at = content.index(word)
    path.write_bytes(content[:at] + bytes(255 - byte for byte in word) + content[at + 2 :])
    with pytest.raises(BadFile, match="the last 32 bytes: expected the SHA-256 of all before them"):
        read_statistics(path)


def test_no_flipped_bit_passes(path):
    content, rng = path.read_bytes(), np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(BadFile):
            read_statistics(path)


def test_a_missing_file_and_a_foreign_one_are_named(tmp_path):
    (tmp_path / "text.h5").write_text("not statistics")

    with pytest.raises(BadFile, match=r"none\.h5: file: expected a file of statistics, got 'No such file or directory'; check the path"):
        read_statistics(tmp_path / "none.h5")
    with pytest.raises(BadFile, match=r"text\.h5: HDF5: expected a whole, undamaged HDF5 file, .*measure again with `eamsim entropy`"):
        read_statistics(tmp_path / "text.h5")
