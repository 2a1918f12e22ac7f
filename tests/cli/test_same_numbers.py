"""One quantity has one number: in every command that shows it, and in the tables of the documents that name the command."""

import json
import shlex
from importlib.resources import files
from pathlib import Path

import pytest
from command_line import eamsim

DIGITS = Path(str(files("eamsim") / "data" / "digits" / "digits.eam"))
ROOT = Path(__file__).parents[2]


def answer(*arguments: object) -> dict:
    finished = eamsim(*arguments, "--json")
    assert finished.code in (None, 0), finished.err
    return json.loads(finished.out)


@pytest.fixture(scope="module")
def costs() -> dict:
    """`eamsim cost --hw` of the digits."""
    return answer("cost", DIGITS, "--hw", "small-npu")


def test_a_chip_changes_no_count(costs):
    bare = answer("cost", DIGITS)
    (row,), (own,) = bare["rows"], costs["rows"]
    assert {name: own[name] for name in row} == row
    assert {name: costs[name] for name in bare if name not in ("rows", "operations")} == {
        name: bare[name] for name in bare if name not in ("rows", "operations")
    }
    assert [{name: op[name] for name in bare["operations"][0]} for op in costs["operations"]] == bare["operations"]
    assert sum(op["macs"] for op in costs["operations"]) == own["macs_full"]


def test_a_comparison_has_the_figures_of_its_sides(costs):
    (row,) = costs["rows"]
    found = answer("cost", "--compare", DIGITS, DIGITS, "--hw", "small-npu")
    assert set(found["difference"].values()) == {0}
    for side in (found["a"], found["b"]):
        assert {name: value for name, value in row.items() if name not in ("hardware", "work")} == {
            name: value for name, value in side.items() if name in row
        }
        energy = {"low": side["energy_uj_low"], "nominal": side["energy_uj"], "high": side["energy_uj_high"]}
        assert row["hardware"] == {name: side[name] for name in row["hardware"] if name != "energy_uj"} | {"energy_uj": energy}


def test_a_report_has_the_figures_of_cost(costs, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    (row,) = costs["rows"]
    found = answer("report", DIGITS, "--hw", "small-npu", "-o", tmp_path / "r.html")
    assert (found["own"], found["dense"], found["operations"]) == (row["hardware"], costs["dense"], costs["operations"])
    assert found["row"] == {name: row[name] for name in found["row"]}
    assert found["encodings"]["bitmap"] >= row["map_bytes"]


def test_a_point_of_a_search_has_the_figures_of_cost(costs):
    sides = ("--rows", 16, "--columns", 16, "--sram", 1536, "--batch", 1, "--dataflow", "os", "--granularity", "own,none")
    own, none = (answer("search", DIGITS, *sides)["best"][name] for name in ("own", "none"))
    (row,) = costs["rows"]
    for point, on_chip in ((own, row["hardware"]), (none, costs["dense"])):
        assert (point["cycles"], point["energy_uj"]) == (on_chip["cycles"], on_chip["energy_uj"]["nominal"])


@pytest.mark.parametrize(
    ("page", "command", "first", "rows"),
    [
        ("docs/guide/freezing.md", "cost deit_tiny_patch16_224 --tau 0,0.2,0.5,0.9", "softmax       tau  MACs saved %", 4),
        ("docs/spec/cost.md", "cost deit_tiny_patch16_224 --hw small-npu --tau 0.2,0.9", "softmax       tau  frozen     kcycles", 7),
        ("docs/spec/cost.md", "search deit_small_patch16_224", "frozen  flow  array    SRAM KiB", 3),
    ],
)
def test_tables_of_documents_are_what_the_command_says(page, command, first, rows, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"`eamsim {command}`" in text
    shown = (first + text.partition(first)[2].partition("```")[0]).splitlines()
    printed = {" ".join(line.split()) for line in eamsim(*shlex.split(command)).out.splitlines()}
    assert len(shown) == 1 + rows
    assert {" ".join(line.split()) for line in shown} <= printed


def test_no_two_columns_of_a_command_have_one_name(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = eamsim("cost", DIGITS, "--hw", "small-npu").out
    headers = [line.split("  ") for line in out.splitlines() if line.startswith("softmax")]
    names = [name.strip() for header in headers for name in header if name.strip() not in ("", "softmax", "tau", "frozen")]
    assert len(headers) == 3
    assert len(names) == len(set(names))
