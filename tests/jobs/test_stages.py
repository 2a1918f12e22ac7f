"""The table of stages: its cells against NumPy's numbers, and its options."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

import eamsim  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.jobs import stages  # noqa: E402
from eamsim.jobs.stages import Line, StagePlan, cell  # noqa: E402
from reference.attention.freeze import Freezing  # noqa: E402
from reference.crosscheck.rebuild import rebuild  # noqa: E402
from reference.models.load import load_model  # noqa: E402

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
MODEL, CALIB, TEST = f"local-dir:{DIGITS}", DIGITS / "digits_calib.npz", DIGITS / "digits_test.npz"


def test_a_cell_has_the_standard_error_of_the_pairs():
    hits, base = np.array([True, True, False, True]), np.array([True, False, True, False])
    assert cell(hits, None) == "75.00"
    assert cell(hits, base) == f"75.00 (+25.00 \N{PLUS-MINUS SIGN} {100 * np.std([0, 1, -1, 1]) / 2:.2f})"


def test_the_command_prints_a_table(monkeypatch, capsys):
    line = Line(0.2, "paper", "**integers**", [np.array([True])], None)
    seen = []
    monkeypatch.setattr(stages, "lines", lambda *arguments: seen.append(arguments) or [line])
    monkeypatch.setattr("sys.argv", ["stages", MODEL, "--calib", str(CALIB), "--data", str(TEST), "--tau", "0.2", "--no-compensate"])
    stages.main()
    assert capsys.readouterr().out.splitlines()[-1] == "| 0.2 | paper | **integers** | 100.00 |"
    assert seen[0][3] == StagePlan([Freezing(0.2)], False, [0, 0.2], None, 32, None, False, None, [])


def test_weights_frozen_at_random_are_held_against_the_chosen_ones():
    """Lines of one small choice on digits: the base of the chosen is what nothing frozen gives, that of the drawn the chosen ones' line."""
    plan = StagePlan([Freezing(0.5)], True, [], None, 8, 16, False)
    found = list(stages.lines(MODEL, [CALIB], [TEST], plan))
    assert [(line.softmax, line.stage.removeprefix("**integers**")) for line in found] == [
        ("-", ", as calibrated"),
        ("paper", ""),
        ("paper", ", random"),
        ("renormalised", ""),
        ("renormalised", ", random"),
    ]
    base, *frozen = found
    for chosen, drawn in zip(frozen[::2], frozen[1::2], strict=True):
        assert chosen.against is base.hits
        assert drawn.against is chosen.hits
        assert (drawn.hits[0] != chosen.hits[0]).any()


def test_finished_programs_have_lines(monkeypatch):
    """The engine's accuracy of the file, against the integers as calibrated, and its own fake quantisation's, against the engine's;
    another model's is refused."""
    file = DIGITS / "digits.eam"
    model = eamsim.load(file)
    plan = StagePlan([], False, [model.provenance["tau"]], 60, 8, None, False, None, [file])
    base, line, fake = list(stages.lines(MODEL, [CALIB], [TEST], plan))
    images = model.images(TEST, labelled=True)
    logits = eamsim.Engine(model.program).run(np.concatenate(list(images.batches(50))))
    np.testing.assert_array_equal(line.hits[0], logits.argmax(axis=1) == images.labels)
    assert (line.stage, line.tau, line.softmax) == ("**integers**, digits", model.provenance["tau"], model.provenance["softmax"])
    assert line.against is base.hits
    few = images.spread(60)
    logits = rebuild(model.program, model.provenance, load_model(MODEL)).fake_logits(np.concatenate(list(few.batches(50))))
    np.testing.assert_array_equal(fake.hits[0], logits.argmax(axis=1) == few.labels)
    assert fake.stage == "digits, fake-quantised"
    assert fake.against is not None
    assert fake.against[0].shape == (60,)
    monkeypatch.setattr(stages, "parameters_sha256", lambda module: "another")
    with pytest.raises(UserError, match=r"digits\.eam: was built from other weights"):
        next(stages.finished(file, load_model(MODEL), stages.Judges(load_model(MODEL), [TEST], None), base.hits, []))
