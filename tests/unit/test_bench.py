"""`eamsim bench`: its arithmetic on given times, and the command on a small program."""

import json
import sys

import pytest
from command_line import eamsim, save_data, save_model

from eamsim.cli.bench import interleaved, result_table, spread
from eamsim.engine import isa, peak


def test_runtimes_run_in_turn_and_the_first_calls_are_not_timed(monkeypatch):
    module = sys.modules["eamsim.cli.bench"]  # the name is the command of the package
    calls, clock = [], iter(range(10**6))
    monkeypatch.setattr(module, "TURN", 2)
    monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, 2)
    assert "".join(calls) == "aaaabbbb" * 3  # of two seconds each: two calls that do not count, two that do
    assert times == {"a": [750.0] * 3, "b": [750.0] * 3}  # three ticks for two calls of two images


def test_spread_is_the_quartiles():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 4.0]


def test_the_table_has_a_line_for_each_runtime():
    row = {"model": "m", "batch": 8, "ms_per_image": {"eamsim": 2.0, "torch": 6.0}, "ms_quartiles": {"eamsim": [1.9, 2.1], "torch": [5, 7]}}
    row |= {"ratio": {"torch": 3.0}, "ratio_quartiles": {"torch": [2.5, 3.5]}, "gmacs_per_second": 100.0, "peak_share": 0.5}
    table = result_table([row | {"peak_memory_bytes": 250_000_000}])
    columns = [list(column.cells) for column in table.columns]
    assert columns[2:7] == [["eamsim", "torch"], ["2.00", "6.00"], ["1.90-2.10", "5.00-7.00"], ["", "3.00"], ["", "2.50-3.50"]]
    assert columns[7:] == [["100", ""], ["50%", ""], ["250", ""]]


def test_the_command_times_a_program(tmp_path):
    program = save_model(tmp_path / "x.eam")
    save_data(tmp_path / "d.npz", program, 3)
    done = eamsim(
        "bench", tmp_path / "x.eam", "--data", tmp_path / "d.npz", "--batch", "1,2", "--rounds", 3, "--threads", 1, "--profile", "--json"
    )
    assert done.code in (0, None), done.err
    result = json.loads(done.out)
    assert [row["batch"] for row in result["results"]] == [1, 2]
    for row in result["results"]:
        assert row["model"] == program.name
        assert row["threads"] == 1
        assert set(row["ms_per_image"]) == {"eamsim"}
        assert 30e6 < row["peak_memory_bytes"] < 1e9  # Python and Numba alone take more than the least
        assert {"linear", "attend", "layer_norm"} < set(row["profile_ms_per_image"])
        if result["peak_gmacs_per_second"] is not None:
            assert row["peak_share"] == pytest.approx(row["gmacs_per_second"] / result["peak_gmacs_per_second"])


def test_peers_need_the_float_model(tmp_path):
    program = save_model(tmp_path / "x.eam")
    save_data(tmp_path / "d.npz", program, 3)
    done = eamsim("bench", tmp_path / "x.eam", "--data", tmp_path / "d.npz", "--against", "torch")
    assert done.code == 2
    assert "--against: expected the name of a float model" in done.err


@pytest.mark.parametrize("name", isa.detect())
def test_the_peak_counts_the_products_of_a_tile(name, monkeypatch):
    monkeypatch.setattr(peak, "STEPS", 1000)
    found = peak.peak_macs_per_second(name, 1, rounds=1)
    tag = isa.ISAS[name]
    if name == "portable":
        assert found is None
    else:
        vectors = isa.VECTORS[type(tag)]
        assert peak.multiply_accumulate(tag, 10) == 10 * 6 * vectors.panels * 16 * 4
        assert found is not None
        assert found > 0
