"""`eamsim bench`: its arithmetic on given times, and the command on a small program."""

import json

import pytest
from command_line import eamsim, save_data, save_model
from programs import Shape, random_program

from cost_model.work.counts import count
from eamsim.cli.program import bench as command
from eamsim.cli.program.bench import BenchModel, Turn, first_table, interleaved, result_table, row_of, spread
from eamsim.engine import isa, peak
from eamsim.inputs.images import Preprocessing, open_images


def test_runtimes_run_in_turn_and_the_first_calls_are_not_timed(monkeypatch):
    calls, clock = [], iter(range(10**6))
    monkeypatch.setattr(command, "TURN", 2)
    monkeypatch.setattr(command, "perf_counter", lambda: next(clock))
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, 2)
    assert "".join(calls) == "aaaabbbb" * 3  # of two seconds each: two calls that do not count, two that do
    assert times == {"a": [750.0] * 3, "b": [750.0] * 3}  # three ticks for two calls of two images


def test_spread_is_the_quartiles():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 4.0]


def test_the_table_has_a_line_for_each_runtime():
    row = {
        "model": "m",
        "batch": 8,
        "threads": 2,
        "ms_per_image": {"eamsim": 2.0, "torch": 6.0},
        "ms_quartiles": {"eamsim": [1.9, 2.1], "torch": [5, 7]},
    }
    row |= {"ratio": {"torch": 3.0}, "ratio_quartiles": {"torch": [2.5, 3.5]}, "gmacs_per_second": 100.0, "peak_share": 0.5}
    table = result_table([row | {"peak_memory_bytes": 250_000_000}])
    columns = [list(column.cells) for column in table.columns]
    assert columns[3:8] == [["eamsim", "torch"], ["2.00", "6.00"], ["1.90-2.10", "5.00-7.00"], ["", "3.00"], ["", "2.50-3.50"]]
    assert columns[8:] == [["100", ""], ["50%", ""], ["250", ""]]


def test_ratios_are_turn_by_turn_to_the_runtimes_of_a_row_and_to_the_first_row(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "peak_memory_bytes", lambda *_: 10**8)
    program = random_program(Shape(seed=1))
    save_data(tmp_path / "d.npz", program, 3)
    images = open_images([tmp_path / "d.npz"], Preprocessing(12, 12, 1.0, "bicubic"))
    opened = [BenchModel(name, program, images, None, untrained=False) for name in ("whole", "half")]
    times = {Turn(0, 1): [2.0, 4.0, 8.0], Turn(1, 1): [1.0, 1.0, 8.0], Turn(1, 1, "torch"): [3.0, 5.0, 8.0], Turn(1, 2): [1.0, 1.0, 1.0]}
    row = row_of(Turn(1, 1), opened, 8, times, 1e9, "portable")
    assert (row["model"], row["batch"], row["threads"]) == ("half", 8, 1)
    assert row["ms_per_image"] == {"eamsim": 1.0, "torch": 5.0}
    assert row["ratio"] == {"torch": 3.0}  # of 3, 5, 1
    assert (row["time_to_first"], row["time_to_first_quartiles"]) == (0.5, [0.375, 0.75])  # of 1/2, 1/4, 1
    assert row["macs_to_first"] == 1.0
    assert row["gmacs_per_second"] == pytest.approx(count(program).macs.full / 1e-3 / 1e9)
    (columns,) = zip(*(column.cells for column in first_table([row]).columns), strict=True)
    assert columns == ("half", "8", "1", "1.00", "0.5000", "0.3750-0.7500", "1.0000")


@pytest.mark.slow
def test_the_command_times_programs_and_threads_in_turn(tmp_path):
    program = save_model(tmp_path / "x.eam")
    save_data(tmp_path / "d.npz", program, 3)
    command = ("bench", tmp_path / "x.eam", tmp_path / "x.eam", "--data", tmp_path / "d.npz", "--batch", "1,2", "--rounds", 3)
    done = eamsim(*command, "--threads", "1,2", "--profile", "--json")
    assert done.code in (0, None), done.err
    result = json.loads(done.out)
    assert [(row["batch"], row["threads"]) for row in result["results"]] == [(1, 1), (1, 2), (1, 1), (1, 2), (2, 1), (2, 2), (2, 1), (2, 2)]
    for row in result["results"]:
        assert row["model"] == "x.eam"
        assert set(row["ms_per_image"]) == {"eamsim"}
        assert row["time_to_first"] > 0
        assert row["macs_to_first"] == 1
        assert 30e6 < row["peak_memory_bytes"] < 1e9  # Python and Numba alone take more than the least
        assert {"linear", "attend", "layer_norm"} < set(row["profile_ms_per_image"])
        peak = result["peak_gmacs_per_second"][str(row["threads"])]
        if peak is not None:
            assert row["peak_share"] == pytest.approx(row["gmacs_per_second"] / peak)
    assert [row["time_to_first"] for row in result["results"][::4]] == [1, 1]
    assert result["data"] == {"found": 3, "taken": 3, "left_out": {}, "labels": {"how": "not needed"}}


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
