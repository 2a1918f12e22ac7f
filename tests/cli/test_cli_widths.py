"""`eamsim widths` on a small random model: what it writes, that it continues, and what it refuses."""

import json
import re

import numpy as np
import pytest
from command_line import eamsim, save_data, save_model

from eamsim import artifact
from eamsim.datapath import Widths
from eamsim.files.origin import without_folders
from eamsim.jobs.search.width_evaluator import VIEWS, WidthEvaluator, moved
from eamsim.jobs.search.widths import read_trials
from eamsim.narrow import narrowed, widths_of


@pytest.fixture
def case(tmp_path):
    program = save_model(tmp_path / "x.eam")
    save_data(tmp_path / "data.npz", program, 30)
    return program, ["widths", tmp_path / "x.eam", "--data", tmp_path / "data.npz", "--keep", "20"]


def test_it_writes_the_program_it_found_and_every_trial(case, tmp_path):
    program, command = case
    out = tmp_path / "y.eam"

    done = eamsim(*command, "-o", out, "--json")

    assert done.code == 0, done.err
    manifest = json.loads(done.out)
    chosen = Widths(**manifest["chosen"]["widths"])
    got, provenance = artifact.read(out)
    assert widths_of(got) == chosen
    assert str(got) == str(narrowed(program, chosen))
    assert provenance["narrowed"] == {"from_sha256": artifact.sha256(tmp_path / "x.eam"), **vars(chosen)}
    trials = read_trials(tmp_path / "y.eam.widths.csv")
    assert len(trials) == manifest["programs_run"]
    assert trials[0].widths == widths_of(program)
    assert [trial.widths for trial in trials if trial.chosen] == [chosen]
    tested = [trial for trial in trials if trial.stage == "joint"]
    assert manifest["chosen"]["cost"] == min(trial.cost for trial in tested if trial.kept) < 0.9
    assert all(trial.kept == (trial.bound <= 0.2) for trial in tested[1:])
    assert not any(trial.kept for trial in trials if trial.stage == "alone")
    assert json.loads((tmp_path / "y.eam.json").read_text()) == without_folders(manifest)
    assert all(bits["observed"] <= bits["proven"] for bits in manifest["sums"]["bits"].values())
    accuracy = json.loads(eamsim("eval", out, "--data", tmp_path / "data.npz", "--json").out)
    assert accuracy["top1"] == manifest["chosen"]["top1"]
    assert eamsim("verify", out, "--data", tmp_path / "data.npz", "--images", "2").code == 0


@pytest.mark.slow
def test_an_interrupted_search_continues_where_it_was(case, tmp_path, monkeypatch):
    _, command = case
    assert eamsim(*command, "-o", tmp_path / "whole.eam").code == 0
    run, calls = WidthEvaluator.run, []

    def count(self, program, images, views):
        calls.append(program)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return run(self, program, images, views)

    monkeypatch.setattr(WidthEvaluator, "run", count)
    stopped = eamsim(*command, "-o", tmp_path / "y.eam")
    assert stopped.code == 130
    assert "interrupted: 7 trials are kept in" in stopped.err  # two calls were of the default, on all images and on the sample
    assert not (tmp_path / "y.eam").exists()

    done = eamsim(*command, "-o", tmp_path / "y.eam", "--resume")

    assert done.code == 0
    for name in ("eam", "eam.widths.csv"):
        assert (tmp_path / f"y.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
    assert len(calls) == 9 + 2 + len(read_trials(tmp_path / "y.eam.widths.csv")) - 7


def test_the_terminal_shows_what_was_tested_and_the_choice(case, tmp_path):
    _, command = case
    done = eamsim(*command, "-o", tmp_path / "y.eam", "--evaluations", "5")

    assert "stopped after 5 programs" in done.err
    assert re.search(r"^residual stream +16 +16$", done.out, re.MULTILINE)
    assert done.out.count("<- chosen") == 1
    assert "lost: points of top-1 against the default, 30 images in 9 views" in done.out
    assert "on small-npu; sums need" in done.out


def test_without_labels_agreement_judges(case, tmp_path):
    _, command = case
    images = np.load(tmp_path / "data.npz")["images"]
    np.savez(tmp_path / "bare.npz", images=images)

    done = eamsim(*command, "--data", tmp_path / "bare.npz", "-o", tmp_path / "y.eam", "--evaluations", "3", "--json")

    manifest = json.loads(done.out)
    assert manifest["default"]["top1"] == 1
    assert not manifest["judged"]["labelled"]


def test_views_are_moved_by_a_pixel():
    batch = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)

    np.testing.assert_array_equal(moved(batch, 0, 0), batch)
    np.testing.assert_array_equal(moved(batch, 1, 0), batch[:, [0, 0, 1]])
    np.testing.assert_array_equal(moved(batch, -1, 1), batch[:, [1, 2, 2]][:, :, [0, 0, 1, 2]])
    assert len(set(VIEWS)) == 9


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--hw", "simd-mcu"], 2, "--hw: expected an array, whose units can be made narrower"),
        (["--keep", "101"], 2, "--keep: expected 0 to 100 points of top-1"),
        (["-o", "y.onnx"], 2, "--out: expected a name that ends in .eam"),
        (["--limit", "20", "--resume"], 2, "belongs to another program or other images"),
    ],
)
def test_what_cannot_be_done_is_one_line(case, tmp_path, change, code, message):
    _, command = case
    if "--resume" in change:
        assert eamsim(*command, "-o", tmp_path / "y.eam", "--evaluations", "2").code == 0
        before = (tmp_path / "y.eam").read_bytes()

    done = eamsim(*command, "-o", tmp_path / "y.eam", *change)

    assert done.code == code
    assert message in done.err
    if "--resume" in change:
        assert (tmp_path / "y.eam").read_bytes() == before
