import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim

pytest.importorskip("torch")
pytest.importorskip("timm")

from eamsim.cli.model.sweep import parse_range
from eamsim.errors import UserError
from eamsim.jobs import workers

DIGITS = Path(__file__).parents[2] / "eamsim" / "data" / "digits"
CALIB = DIGITS / "digits_calib.npz"
OPTIONS = (f"local-dir:{DIGITS}", "--calib", CALIB, "--data", DIGITS / "digits_test.npz", "--tau", "0,0.6", "--images", 60)


@pytest.mark.parametrize(
    ("text", "taus"),
    [
        ("0:0.9:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.1:0.45:0.15", [0.1, 0.25, 0.4]),
        ("0.2:0.2:1", [0.2]),
        ("0.5,0,0.5", [0.5, 0]),
    ],
)
def test_ranges_of_tau_are_exact(text, taus):
    assert parse_range(text) == taus


@pytest.mark.parametrize("text", ["0:0.9", "0:0.9:0", "0:0.9:-0.1", "0.5:0.1:0.1", "0:1.1:0.1", "0:1:0.0001", "nan:1:0.1", "0:x:0.1", "::"])
def test_other_ranges_of_tau_are_refused(text):
    with pytest.raises(UserError, match=f"--tau: expected first:last:step within 0 to 1, .*, got '{text}'"):
        parse_range(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tau", "0.5,2"), "--tau: expected shares with commas between"),
        (("--seeds", "0,x"), "--seeds: expected whole numbers with commas between, such as 0,1,2, got '0,x'"),
        (("--seeds", "-1"), "seed: expected an integer of at least 0, got -1"),
        (("--variant", "eam-8bits"), "variant: must be one of eam-fp32, eam-4bits, random-4bits, baseline, got 'eam-8bits'"),
        (("--variant", "baseline"), "baseline: freezes nothing, expected tau 0 and no other choice, got SweepUnit("),
        (("--softmax", "soft"), "softmax: must be one of paper, renormalised, got 'soft'"),
        (("--order", "random"), "order: random and a seed belong to the variant random-4bits alone"),
        (("--granularity", "head"), "scope: a head holds no other head to choose from"),
        (("--granularity", "tile:0x4"), "granularity: must be weight, row, column, head or tile:RxC"),
        (("--workers", "2", "--scheduler", "tcp://127.0.0.1:1"), "--workers and --scheduler: expected at most one of them, got both"),
    ],
)
def test_usage_errors_exit_with_2_before_anything_is_written(tmp_path, arguments, message):
    done = eamsim("sweep", *OPTIONS, *arguments, "-o", tmp_path / "sweep")

    assert done.code == 2
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_images_without_labels_are_refused_before_anything_runs(tmp_path):
    unlabelled = tmp_path / "images.npz"
    np.savez(unlabelled, images=np.zeros((2, 8, 8, 3), np.uint8))
    done = eamsim("sweep", *OPTIONS, "--data", unlabelled, "-o", tmp_path / "sweep")

    assert done.code == 2
    assert "expected labelled images" in done.err
    assert list(tmp_path.iterdir()) == [unlabelled]


def test_folders_that_hold_other_things_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")

    for out, resume, message in (
        (tmp_path, (), "is not empty; continue the sweep in it with --resume, or choose a new folder"),
        (tmp_path, ("--resume",), "holds no sweep to resume (no folder units)"),
        (tmp_path / "file", (), "is a file, expected a folder"),
    ):
        done = eamsim("sweep", *OPTIONS, "-o", out, *resume)
        assert done.code == 2
        assert f"--out: {out} {message}" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_scheduler_that_is_not_there_is_a_usage_error(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    done = eamsim("sweep", *OPTIONS, "--tau", "0", "--scheduler", "tcp://127.0.0.1:9", "-o", tmp_path / "sweep")

    assert done.code == 2
    assert "--scheduler: expected a Dask scheduler with workers at tcp://127.0.0.1:9" in done.err


def test_a_cluster_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = eamsim("sweep", *OPTIONS, "--tau", "0", "--scheduler", "tcp://127.0.0.1:9", "-o", tmp_path / "sweep")

    assert done.code == 4
    assert "eamsim sweep --scheduler needs the extra 'cluster'" in done.err
