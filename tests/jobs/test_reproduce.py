"""`eamsim reproduce` on a small folder in ImageNet's layout: which images it takes, what it leaves behind, what it misses."""

import json
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from PIL import Image

pytest.importorskip("timm", reason="needs the extra 'reference'")
pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from eamsim import artifact
from eamsim.cli.model.reproduce import SWEEPS, Protocol
from eamsim.files.origin import public_name, without_folders
from eamsim.inputs.images import open_images
from eamsim.jobs import workers
from eamsim.jobs.build import labelling
from eamsim.jobs.sweep_table import read_sweep
from reference.attention.statistics_file import read_statistics
from reference.models.load import load_model

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
MODEL = f"local-dir:{DIGITS}"
TRAIN, VAL = 160, 20
CALIBRATION = 8
"""5 % of TRAIN."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """train/ and val/ of digits, a folder a class."""
    folder = tmp_path_factory.mktemp("imagenet")
    with np.load(DIGITS / "digits_calib.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    for part, chosen in (("train", range(TRAIN)), ("val", range(TRAIN, TRAIN + VAL))):
        for index in chosen:
            path = folder / part / str(labels[index]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(path)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Sweeps of one tau, in this process."""
    monkeypatch.setattr(workers, "processes", lambda count: workers.here)
    for name, (variants, _) in SWEEPS.items():
        monkeypatch.setitem(SWEEPS, name, (variants, 1))


def preprocessing():
    return load_model(MODEL).preprocessing


def run(name: str, data: Path, out: Path, *options):
    finished = eamsim("reproduce", name, "--data", data, "--model", MODEL, "-o", out, "--json", *options)
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


def test_five_per_cent_of_the_training_images_are_taken_evenly(data):
    everything = open_images([data / "train"], preprocessing()).names

    def chosen(calib=(), limit=None) -> list[str]:
        protocol = Protocol(MODEL, None, data / "train", data / "val", list(calib), limit)
        return list(protocol.calibration(preprocessing()).names)

    assert chosen() == list(everything[:: TRAIN // CALIBRATION])
    assert chosen(limit=4) == list(everything[:: TRAIN // 4])
    assert len(chosen(calib=[data / "val"])) == VAL
    assert len(chosen(calib=[DIGITS / "digits_calib.npz"], limit=30)) == 30


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sources"), [("fig2", ("float",)), ("fig3", ("float",)), ("fig4", ("float", "quantised"))])
def test_maps_come_from_the_calibration_images(data, tmp_path, name, sources):
    manifest = run(name, data, tmp_path / "out")

    statistics = tmp_path / "out" / f"{name}-stats.h5"
    header = read_statistics(statistics).header
    expected = open_images([data / "train"], preprocessing(), CALIBRATION)
    assert (header.images, tuple(header.sources)) == (CALIBRATION, sources)
    assert header.origin["calibration_sha256"] == expected.sha256
    assert without_folders(manifest["input"][0]) == json.loads((tmp_path / "out" / f"{name}-stats.h5.json").read_text())["output"]
    assert manifest["input"][0]["sha256"] == artifact.sha256(statistics)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [f"{name}.json", f"{name}.png", f"{name}.svg", f"{name}-stats.h5", f"{name}-stats.h5.json"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variants", "runners", "outputs"),
    [
        ("fig5", {"baseline": 3, "eam-fp32": 1, "eam-4bits": 1}, {"float", "fakequant", "engine"}, ["png", "svg"]),
        ("fig6", {"baseline": 2, "eam-4bits": 1, "random-4bits": 3}, {"float", "engine"}, ["png", "svg"]),
        ("table1", {"baseline": 2, "eam-4bits": 1}, {"float", "engine"}, ["md", "csv"]),
    ],
)
def test_accuracies_come_from_the_validation_images(data, tmp_path, quick, name, variants, runners, outputs):
    manifest = run(name, data, tmp_path)

    table = tmp_path / f"{name}-sweep.csv"
    rows = read_sweep(table)
    assert {variant: sum(row.variant == variant for row in rows) for variant in variants} == variants
    assert len(rows) == sum(variants.values())
    assert {row.tau for row in rows} == {0, 0.1}
    assert {row.runner for row in rows} == runners
    assert {(row.model, row.images) for row in rows} == {(public_name(MODEL), VAL)}
    assert {(row.softmax, row.granularity, row.scope) for row in rows if row.tau} == {("paper", "weight", "head")}
    assert manifest["input"][0]["sha256"] == artifact.sha256(table)
    origin = json.loads((tmp_path / f"{name}-sweep.csv.json").read_text())["models"][public_name(MODEL)]
    assert origin["data_sha256"] == open_images([data / "val"], preprocessing(), labelling=labelling(load_model(MODEL))).sha256
    assert origin["calibration_sha256"] == open_images([data / "train"], preprocessing(), CALIBRATION).sha256
    assert [Path(file["file"]).name for file in manifest["output"]] == [f"{name}.{kind}" for kind in outputs]


@pytest.mark.slow
def test_the_same_command_continues_in_its_folder(data, tmp_path, quick, monkeypatch):
    run("table1", data, tmp_path, "--limit", 4)
    first = (tmp_path / "table1-sweep.csv").read_bytes()
    assert b",4," in first
    (tmp_path / "table1-sweep.csv").unlink()

    @contextmanager
    def idle(run, *common):
        yield pytest.fail, 1

    monkeypatch.setattr(workers, "processes", lambda count: idle)
    run("table1", data, tmp_path, "--limit", 4)

    assert (tmp_path / "table1-sweep.csv").read_bytes() == first


@pytest.mark.slow
def test_figure_1_shows_a_validation_image(data, tmp_path):
    manifest = run("fig1", data, tmp_path, "--weights", DIGITS / "model.safetensors")

    assert manifest["images_sha256"] == open_images([data / "val"], preprocessing()).sha256


@pytest.mark.parametrize(
    ("name", "kept", "missing", "options"),
    [
        ("fig2", "val", "train", []),
        ("table1", "train", "val", []),
        ("fig1", "train", "val", []),
        ("fig5", "train", "val", ["--calib", DIGITS]),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, name, kept, missing, options):
    (tmp_path / kept).mkdir()
    finished = eamsim("reproduce", name, "--data", tmp_path, "--model", MODEL, "-o", tmp_path / "out", *options)

    assert finished.code == 3
    assert finished.err == (
        f"error: --data: {tmp_path / missing} is missing; expected ImageNet-1K as train/CLASS/*.JPEG (1,281,167 images, 5 % of them to "
        "calibrate on) and val/CLASS/*.JPEG (50,000)\n"
    )
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_named(data, tmp_path):
    finished = eamsim("reproduce", "fig2", "--data", data, "--model", MODEL, "--weights", tmp_path / "w.safetensors", "-o", tmp_path)

    assert finished.code == 3
    assert f"error: {tmp_path / 'w.safetensors'}: no such file; give --weights FILE" in finished.err


@pytest.mark.slow
def test_labels_of_the_validation_images_are_found_as_asked(data, tmp_path, quick):
    run("table1", data, tmp_path / "digits")
    other = tmp_path / "words"
    (other / "val").mkdir(parents=True)
    for folder in (data / "val").iterdir():
        (other / "val" / "abcdefghij"[int(folder.name)]).symlink_to(folder)
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    (other / "train").symlink_to(data / "train")
    refused = eamsim("reproduce", "table1", "--data", other, "--model", MODEL, "-o", tmp_path / "none")
    assert (refused.code, "--labels by-order" in refused.err) == (2, True)
    run("table1", other, tmp_path / "out", "--labels", tmp_path / "names.txt")
    expected, found = (read_sweep(folder / "table1-sweep.csv") for folder in (tmp_path / "digits", tmp_path / "out"))
    assert found == expected
    origin = json.loads((tmp_path / "out" / "table1-sweep.csv.json").read_text())["models"][public_name(MODEL)]
    assert origin["data"]["labels"]["how"] == "by names.txt"


def test_labels_that_nothing_would_use_are_refused(data, tmp_path):
    finished = eamsim("reproduce", "fig2", "--data", data, "--model", MODEL, "-o", tmp_path, "--labels", "by-order")
    assert finished.code == 2
    assert finished.err == "error: --labels: belongs to fig5, fig6, table1, which evaluate; leave it out of fig2\n"
