"""A share is a fraction or per cent, and a limit the same choice of images, in every command that asks for one."""

import json
import re
from pathlib import Path

import pytest
from command_line import eamsim

from eamsim import cli
from eamsim.cli.model.sweep import parse_range
from eamsim.cli.output import LIMIT_HELP
from eamsim.cli.shares import parse_points, parse_share, parse_shares
from eamsim.errors import UserError


@pytest.mark.parametrize(
    ("text", "share"),
    [("10%", 0.1), ("0.1", 0.1), ("2.5%", 0.025), ("1", 1), ("100%", 1), ("0", 0), ("0%", 0), ("14%", 0.14), ("29 %", 0.29)],
)
def test_shares_are_percent_or_fractions(text, share):
    assert parse_share(text, "--tau") == share
    assert parse_shares(f"{text},{text}", "--tau") == [share, share]


@pytest.mark.parametrize("text", ["10", "-1%", "101%", "nan", "ten", "%", "", "10%%", "inf", "-0.1", "1e400"])
def test_other_shares_are_refused(text):
    with pytest.raises(UserError, match=r"^--save-macs: expected a share of all MACs such as 10% or 0\.1, got"):
        parse_share(text, "--save-macs", "all MACs")


@pytest.mark.parametrize(("text", "fraction"), [("0.5", 0.005), ("0.5%", 0.005), ("100", 1), ("0", 0)])
def test_points_are_points_with_and_without_a_sign(text, fraction):
    assert parse_points(text, "--keep") == fraction


@pytest.mark.parametrize("text", ["101", "-1", "nan", "0.5%%", "much", ""])
def test_other_points_are_refused(text):
    with pytest.raises(UserError, match=r"^--keep: expected 0 to 100 points of top-1 such as 0\.5 or 0\.5%, got"):
        parse_points(text, "--keep")


def test_a_range_of_shares_is_exact_in_percent_too():
    assert parse_range("0:90%:10%") == parse_range("0:0.9:0.1") == [number / 10 for number in range(10)]


def test_cost_and_search_take_percent():
    rows = [json.loads(eamsim("cost", "deit_tiny_patch16_224", "--tau", tau, "--json").out)["rows"] for tau in ("0.2,0.5", "20%,50%")]
    assert rows[0] == rows[1]
    choice = ("--rows", "8", "--columns", "8", "--sram", "4096", "--batch", "1", "--dataflow", "os", "--granularity", "head", "--json")
    found = [json.loads(eamsim("search", "deit_tiny_patch16_224", *tau, *choice).out) for tau in ((), ("--tau", "0.5"), ("--tau", "50%"))]
    assert found[0]["front"] == found[1]["front"] == found[2]["front"]
    assert found[0]["tau"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cost", "deit_tiny_patch16_224", "--tau", "20"), "--tau: expected shares with commas between, such as 0,10%,0.5, got '20'"),
        (("search", "deit_tiny_patch16_224", "--tau", "20"), "--tau: expected a share of the attention weights such as"),
        (("build", "x", "--calib", "x", "-o", "x.eam", "--tau", "2"), "--tau: expected a share of the attention weights such as"),
        (("build", "x", "--calib", "x", "-o", "x.eam", "--save-macs", "0%"), "--save-macs: expected more than nothing"),
        (("build", "x", "--calib", "x", "-o", "x.eam", "--keep-accuracy", "200"), "--keep-accuracy: expected 0 to 100 points of top-1"),
        (("widths", "x.eam", "--data", "x", "-o", "y.eam", "--keep", "200%"), "--keep: expected 0 to 100 points of top-1"),
        (("sweep", "x", "--calib", "x", "--data", "x", "-o", "x", "--tau", "20"), "--tau: expected shares with commas between"),
    ],
)
def test_commands_refuse_what_is_no_share(arguments, message):
    finished = eamsim(*arguments)
    assert finished.code == 2
    assert finished.err.startswith(f"error: {message}")


@pytest.mark.parametrize("command", ["build", "eval", "entropy", "reproduce", "sweep", "widths"])
def test_a_limit_is_said_in_one_way(command):
    text = " ".join(eamsim(command, "--help").out.split())
    assert "--limit" in text
    assert LIMIT_HELP in text


def test_no_command_has_a_limit_of_its_own():
    sources = {path.name: path.read_text(encoding="utf-8") for path in (Path(cli.__file__).parent).rglob("*.py")}
    assert [name for name, text in sources.items() if '"--limit"' in text] == ["output.py", "sweep.py"]
    assert not [name for name, text in sources.items() if re.search(r"\blimit: (?!Limit\b|int \| None$)", text, re.MULTILINE)]
