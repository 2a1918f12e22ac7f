"""`eamsim cost` through typer, without the rest of the command line."""

import json
import subprocess
import sys

import pytest
import typer
from programs import Shape, random_program
from typer.testing import CliRunner

from cost_model.work.counts import count
from eamsim import artifact
from eamsim.cli.chip.cost import cost
from eamsim.errors import BadFile, UserError

app = typer.Typer(add_completion=False)
app.command()(cost)
TINY = "deit_tiny_patch16_224"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_of_the_dense_model():
    report = json.loads(run(TINY, "--tau", "0", "--json"))
    assert report["model"] == TINY
    assert [row["softmax"] for row in report["rows"]] == ["paper", "renormalised"]
    for row in report["rows"]:
        expected = {"tau": 0.0, "granularity": "weight", "estimated": True, "macs_full": 1_253_683_200, "map_bytes": 0}
        expected |= {"macs_paper": 12 * (12 * 197 * 192**2 + 2 * 197**2 * 192), "flops_2x_full": 2_507_366_400, "macs_saved_full": 0}
        assert expected.items() <= row.items()


def test_json_rows_per_tau():
    rows = json.loads(run(TINY, "--tau", "0.1,0.5", "--softmax", "renormalised", "--json"))["rows"]
    assert [row["tau"] for row in rows] == [0.1, 0.5]
    for row, frozen in zip(rows, (3881, 19404), strict=True):
        assert row["macs_saved_full"] == 12 * frozen * 192 == 1_253_683_200 - row["macs_full"]
        assert row["qk_macs"] == row["av_macs"] - row["macs_saved_full"]
        assert row["map_bytes"] == row["mask_bytes"] + row["code_bytes"]
        assert sum(row["macs_by_layer"].values()) == row["macs_full"]


def test_tables_show_what_tau_buys():
    text = run(TINY, "--tau", "0.9")
    lines = [line.split() for line in text.splitlines()]
    assert ["full", "scope", "1,253,683,200", "2,507,366,400", "100.00"] in lines
    assert ["paper", "0.9", "0.00", "1,253.683", "1,224.590", "2.824", "803,352", "estimate"] in lines
    assert ["renormalised", "0.9", "6.42", "1,173.209", "1,144.116", "2.824", "803,352", "estimate"] in lines
    assert "paper: the softmax denominator needs every score, so freezing saves nothing." in text
    assert "At most the QK^T share is saved: 7.13% (1.077x)." in text


def test_an_eam_file_is_counted_from_its_masks(tmp_path):
    shape = Shape(seed=3, side=8, patch=2, heads=2, head_dim=4, hidden=32, depth=2, softmax="renormalised", freeze="heads")
    program = random_program(shape)
    path = str(tmp_path / "x.eam")
    artifact.write(path, program, {})
    (own,) = json.loads(run(path, "--json"))["rows"]
    assert own["macs_full"] == count(program).macs.full
    assert (own["tau"], own["softmax"], own["granularity"], own["estimated"]) == (0.5, "renormalised", "head", False)
    rows = json.loads(run(path, "--tau", "0,1", "--json"))["rows"]
    assert rows[0] == own
    assert [(row["tau"], row["estimated"]) for row in rows[1:]] == [(0.0, True), (0.0, True), (1.0, True), (1.0, True)]
    assert rows[1]["macs_full"] == own["macs_full"] + own["macs_saved_full"]
    assert "masks" in run(path)


@pytest.mark.parametrize("tau", ["-0.1", "1.01", "20", "nan", "", "0.1,,0.2", "0.1;0.2"])
def test_bad_tau(tau):
    with pytest.raises(UserError, match=r"--tau: expected shares with commas between, such as 0,10%,0\.5, got '"):
        run(TINY, f"--tau={tau}")


def test_bad_models(tmp_path):
    with pytest.raises(UserError, match="got 'resnet50'"):
        run("resnet50")
    with pytest.raises(BadFile, match=r"missing\.eam"):
        run(str(tmp_path / "missing.eam"))


def test_cost_needs_no_heavy_library():
    code = "import cost_model.models.paper, sys; print({'torch', 'numba', 'eamsim.golden', 'eamsim.engine'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
