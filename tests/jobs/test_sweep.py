import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from numpy.testing import assert_array_equal

pytest.importorskip("torch")
psutil = pytest.importorskip("psutil")
pytest.importorskip("timm")

from eamsim.cli.output import progress  # noqa: E402
from eamsim.files.origin import public_name, without_folders  # noqa: E402
from eamsim.inputs.images import open_images  # noqa: E402
from eamsim.jobs import sweep as library  # noqa: E402
from eamsim.jobs import workers as places  # noqa: E402
from eamsim.jobs.build import build_program, labelling  # noqa: E402
from eamsim.jobs.evaluate import evaluate, evaluate_program  # noqa: E402
from eamsim.jobs.measure import Accuracy  # noqa: E402
from eamsim.jobs.sweep_table import Row, read_sweep  # noqa: E402
from eamsim.program import Softmax  # noqa: E402
from reference.attention.collect import attention_statistics, frozen_maps, quantise_on  # noqa: E402
from reference.attention.freeze import Freezing  # noqa: E402
from reference.lowering.program import lower  # noqa: E402
from reference.models.load import load_model  # noqa: E402
from reference.quantisation.fakequant import quantise_frozen  # noqa: E402

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "eamsim" / "data" / "digits"
MODEL = f"local-dir:{DIGITS}"
CHOICES = ("--tau", "0,0.6", "--seeds", "0,1", "--images", 60, "--calib-images", 8)
UNITS = 3 + 2 * (1 + 1 + 2)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> tuple[object, ...]:
    """Model, images and choices of the sweep of this file: 11 units, half a second each at most."""
    calib = tmp_path_factory.mktemp("data") / "calib.npz"
    with np.load(DIGITS / "digits_calib.npz") as images:
        np.savez(calib, images=images["images"][:80])
    return MODEL, "--calib", calib, "--data", DIGITS / "digits_test.npz", *CHOICES


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(places, "processes", lambda count: places.here)


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Path:
    """The folder of an uninterrupted sweep."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "processes", lambda count: places.here)
        done = eamsim("sweep", *options, "-o", folder)
    assert done.code == 0, done.err
    return folder


def table(folder: Path) -> bytes:
    return (folder / "sweep.csv").read_bytes()


def unit_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished unit: what changes if it is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "units").glob("*.json")}


def copy_units(source: Path, target: Path, count: int) -> dict[str, tuple[int, int]]:
    """`target` as if a sweep had been interrupted after so many units."""
    (target / "units").mkdir(parents=True)
    for path in sorted((source / "units").iterdir())[:count]:
        (target / "units" / path.name).write_bytes(path.read_bytes())
    return unit_files(target)


@pytest.mark.slow
def test_the_table_holds_every_choice_once_and_in_order(whole):
    rows = read_sweep(whole / "sweep.csv")

    assert len(rows) == UNITS == len(unit_files(whole))
    assert [(row.variant, row.runner, row.softmax, row.seed, row.tau) for row in rows] == [
        ("baseline", "float", "", None, 0.0),
        ("baseline", "fakequant", "", None, 0.0),
        ("baseline", "engine", "", None, 0.0),
        ("eam-fp32", "fakequant", "paper", None, 0.6),
        ("eam-fp32", "fakequant", "renormalised", None, 0.6),
        ("eam-4bits", "engine", "paper", None, 0.6),
        ("eam-4bits", "engine", "renormalised", None, 0.6),
        ("random-4bits", "engine", "paper", 0, 0.6),
        ("random-4bits", "engine", "paper", 1, 0.6),
        ("random-4bits", "engine", "renormalised", 0, 0.6),
        ("random-4bits", "engine", "renormalised", 1, 0.6),
    ]
    assert {(row.model, row.images) for row in rows} == {(public_name(MODEL), 60)}
    assert {(row.granularity, row.scope, row.order) for row in rows} == {
        ("", "", ""),
        ("weight", "head", "entropy"),
        ("weight", "head", "random"),
    }


def test_no_baseline_without_tau_0_and_each_choice_in_its_place():
    choices = library.Choices(
        [0.1, 0.2], ["eam-4bits", "random-4bits"], ["paper"], ["weight", "row"], ["head"], ["entropy", "output"], [7], "fakequant"
    )
    units = choices.units("net")

    assert {(unit.model, unit.runner) for unit in units} == {("net", "fakequant")}
    assert [(unit.variant, unit.granularity, unit.order, unit.seed, unit.tau) for unit in units] == [
        *(("eam-4bits", unit, order, None, tau) for unit in ("weight", "row") for order in ("entropy", "output") for tau in (0.1, 0.2)),
        *(("random-4bits", unit, "random", 7, tau) for unit in ("weight", "row") for tau in (0.1, 0.2)),
    ]


@pytest.mark.slow
def test_the_numbers_are_those_of_the_models(whole, options):
    calib = Path(str(options[2]))
    found = {(row.variant, row.runner, row.softmax, row.seed): (row.top1, row.top5) for row in read_sweep(whole / "sweep.csv")}
    model = load_model(MODEL)
    data = open_images([DIGITS / "digits_test.npz"], model.preprocessing, 60, labelling(model))
    images = open_images([calib], model.preprocessing)
    labels = data.labels
    assert labels is not None

    def expect(accuracy, *key):
        assert found[key] == (accuracy.top1, accuracy.top5)

    def engine(freezing: Freezing, softmax: Softmax):
        program, _ = build_program(MODEL, [calib], progress, freezing, softmax=softmax, range_images=8)
        return evaluate_program(program, data.batches(60), labels)

    calibrated = quantise_on(model, images, 8, progress)
    maps = frozen_maps(attention_statistics(calibrated, images, progress), Freezing(0.6))
    expect(evaluate(model, data.batches(50), labels), "baseline", "float", "", None)
    expect(evaluate(calibrated, data.batches(50), labels), "baseline", "fakequant", "", None)
    expect(engine(Freezing(0), "paper"), "baseline", "engine", "", None)
    expect(evaluate(calibrated, data.batches(50), labels, maps, "renormalised"), "eam-fp32", "fakequant", "renormalised", None)
    expect(engine(Freezing(0.6), "renormalised"), "eam-4bits", "engine", "renormalised", None)
    expect(engine(Freezing(0.6, order="random", seed=1), "paper"), "random-4bits", "engine", "paper", 1)


@pytest.mark.slow
def test_other_choices_reach_the_model(options, tmp_path, in_process):
    arguments = ("--tau", "0.4", "--softmax", "paper", "--granularity", "row", "--scope", "model", "--order", "output")
    for on in ("engine", "fakequant"):
        assert eamsim("sweep", *options, *arguments, "--on", on, "--variant", "eam-4bits", "-o", tmp_path / on).code == 0
    calib, freezing = Path(str(options[2])), Freezing(0.4, "row", "model", "output")
    model = load_model(MODEL)
    data = open_images([DIGITS / "digits_test.npz"], model.preprocessing, 60, labelling(model))
    images = open_images([calib], model.preprocessing)
    calibrated = quantise_on(model, images, 8, progress)
    frozen = frozen_maps(attention_statistics(calibrated, images, progress, ["output"]), freezing)
    labels = data.labels
    assert labels is not None

    expected = {
        "engine": evaluate_program(lower(calibrated, frozen), data.batches(60), labels),
        "fakequant": evaluate(calibrated, data.batches(50), labels, quantise_frozen(calibrated, frozen)),
    }
    for on, accuracy in expected.items():
        (row,) = read_sweep(tmp_path / on / "sweep.csv")
        assert (row.runner, row.granularity, row.scope, row.order, row.tau) == (on, "row", "model", "output", 0.4)
        assert (row.top1, row.top5) == (accuracy.top1, accuracy.top5)


@pytest.mark.parametrize("variant", ["eam-fp32", "eam-4bits"])
def test_what_fake_quantisation_freezes(options, monkeypatch, variant):
    seen = []
    monkeypatch.setattr(library, "evaluate", lambda model, batches, labels, frozen, softmax: seen.append(frozen))
    calib, data = [Path(str(options[2]))], [DIGITS / "digits_test.npz"]
    subject = library.open_subject(MODEL, calib, data, random_init=None, range_images=8, images=1)
    (unit,) = library.Choices([0.5], [variant], ["paper"], ["weight"], ["head"], ["entropy"], [], "fakequant").units(MODEL)
    prepared = library.prepare(subject, [unit], progress)
    library.run_unit(unit, prepared, subject.data)

    images = open_images(calib, subject.model.preprocessing)
    maps = frozen_maps(attention_statistics(prepared.calibrated, images, progress), Freezing(0.5))
    expected = maps if variant == "eam-fp32" else quantise_frozen(prepared.calibrated, maps)
    for layer, frozen in zip(expected, seen[0], strict=True):
        assert_array_equal(frozen.mask, layer.mask)
        assert_array_equal(frozen.mean, layer.mean)


@pytest.mark.slow
def test_two_worker_processes_make_the_same_table(whole, options, tmp_path):
    done = eamsim("sweep", *options, "--workers", "2", "-o", tmp_path / "sweep", "--json")
    result = json.loads(done.out)

    assert done.code == 0
    assert table(tmp_path / "sweep") == table(whole)
    assert [Row(**row) for row in result["rows"]] == read_sweep(whole / "sweep.csv")
    manifest = json.loads((tmp_path / "sweep" / "sweep.csv.json").read_text())
    assert manifest == without_folders({key: value for key, value in result.items() if key != "rows"})
    assert manifest["units"] == UNITS
    assert manifest["models"][public_name(MODEL)]["range_images"] == 8
    assert f"units of {MODEL}: {UNITS}/{UNITS}" in done.err


@pytest.mark.slow
def test_kill_9_loses_no_finished_unit(whole, options, tmp_path, in_process):
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "eamsim", "sweep", *map(str, options), "--workers", "1", "-o", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while len(unit_files(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    finished = unit_files(folder)
    assert 2 <= len(finished) < UNITS
    assert not (folder / "sweep.csv").exists()

    done = eamsim("sweep", *options, "-o", folder, "--resume")

    assert done.code == 0
    assert table(folder) == table(whole)
    assert unit_files(folder) | finished == unit_files(folder)
    assert children
    assert all(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in children)


def test_a_finished_sweep_only_makes_the_table_again(whole, options, tmp_path, monkeypatch):
    finished = copy_units(whole, tmp_path, UNITS)
    monkeypatch.setattr(library, "prepare", lambda *arguments: pytest.fail("nothing is left to prepare for"))

    assert eamsim("sweep", *options, "-o", tmp_path, "--resume").code == 0
    assert table(tmp_path) == table(whole)
    assert unit_files(tmp_path) == finished


@pytest.mark.slow
def test_more_choices_take_the_finished_units(whole, options, tmp_path, in_process):
    copy_units(whole, tmp_path, UNITS)
    done = eamsim("sweep", *options, "--tau", "0.6,0.65", "--variant", "eam-fp32", "-o", tmp_path, "--resume")

    assert done.code == 0
    assert len(unit_files(tmp_path)) == UNITS + 2
    assert [(row.softmax, row.tau) for row in read_sweep(tmp_path / "sweep.csv")] == [
        (softmax, tau) for softmax in ("paper", "renormalised") for tau in (0.6, 0.65)
    ]


@pytest.mark.slow
def test_units_of_other_images_are_not_taken(whole, options, tmp_path, in_process):
    copy_units(whole, tmp_path, UNITS)
    done = eamsim("sweep", *options, "--variant", "eam-fp32", "--images", 59, "-o", tmp_path, "--resume")

    assert done.code == 0
    assert len(unit_files(tmp_path)) == UNITS + 4
    assert {row.images for row in read_sweep(tmp_path / "sweep.csv")} == {59}


@pytest.mark.slow
def test_whatever_determines_results_is_in_the_identity(options):
    calib, data = [Path(str(options[2]))], [DIGITS / "digits_test.npz"]

    def origin(calib=calib, data=data, random_init=None, range_images=8, images=60, compensated=True):
        choices = {"range_images": range_images, "images": images, "compensated": compensated}
        return library.open_subject(MODEL, calib, data, random_init=random_init, **choices).origin

    others = [origin(calib=data), origin(data=data * 2), origin(random_init=3), origin(range_images=9), origin(images=59)]
    others.append(origin(compensated=False))
    assert origin() == origin()
    assert [sorted(key for key in other if other[key] != origin()[key]) for other in others] == [
        ["calibration_sha256"],
        ["data_sha256"],
        ["model_sha256"],
        ["range_images"],
        ["data_sha256"],
        ["compensation"],
    ]


@pytest.mark.slow
def test_a_damaged_unit_runs_again_and_no_other(whole, options, tmp_path, in_process):
    finished = copy_units(whole, tmp_path, UNITS)
    taken, other = sorted(finished)[:2]
    (tmp_path / "units" / taken).write_bytes((tmp_path / "units" / other).read_bytes())

    done = eamsim("sweep", *options, "-o", tmp_path, "--resume")

    assert done.code == 0
    assert f"{taken}: damaged (its digest is of other contents); its unit runs again" in done.err
    assert table(tmp_path) == table(whole)
    after = unit_files(tmp_path)
    assert after.pop(taken) != finished.pop(taken)
    assert after == finished


@pytest.mark.slow
def test_interruption_exits_with_130_and_keeps_finished_units(options, tmp_path, monkeypatch, in_process):
    some = iter(range(3))

    def run_some(*arguments):
        if next(some, None) is None:
            raise KeyboardInterrupt
        return Accuracy(0.5, 0.5, 60)

    monkeypatch.setattr(library, "run_unit", run_some)
    done = eamsim("sweep", *options, "-o", tmp_path)

    assert done.code == 130
    assert f"interrupted: 3 finished units are kept in {tmp_path}; the same command with --resume continues" in done.err
    assert len(unit_files(tmp_path)) == 3
    assert not (tmp_path / "sweep.csv").exists()


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_table(whole, options, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(places, "CONNECT_SECONDS", 200)  # the machine may be busy
    with dask_cluster(tmp_path, workers=2) as address:
        done = eamsim("sweep", *options, "--scheduler", address, "-o", tmp_path / "sweep")

    assert done.code == 0, done.err
    assert table(tmp_path / "sweep") == table(whole)


@contextmanager
def dask_cluster(folder, workers):
    """The address of a `dask scheduler` with so many `dask worker` processes of one thread, on loopback."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    dask = [sys.executable, "-m", "dask"]
    known = folder / "scheduler.json"
    commands = [[*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(known)]]
    worker = [*dask, "worker", "--scheduler-file", str(known), "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    commands += [worker] * workers
    with ExitStack() as running:
        for command in commands:
            process = running.enter_context(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL))
            running.callback(process.kill)
            while not known.exists():
                assert process.poll() is None
                time.sleep(0.05)
        yield json.loads(known.read_text())["address"]
