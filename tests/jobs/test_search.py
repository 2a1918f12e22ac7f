"""A search of designs against one evaluation at a time, its front against the definition, and `eamsim search`."""

import csv
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from command_line import eamsim
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import Shape, random_program

from cost_model.chip.area import area_mm2
from cost_model.chip.hardware import Array, load
from cost_model.models.architectures import architecture
from cost_model.price.energy import evaluate
from eamsim import artifact
from eamsim.cli.output import progress
from eamsim.errors import UserError
from eamsim.jobs import workers
from eamsim.jobs.search.designs import CHOICES, GOALS, Space, design, price_unit, rows_of, search, variant
from eamsim.jobs.search.pareto import undominated

TINY = "deit_tiny_patch16_224"
SMALL = ("--rows", "4,16", "--columns", "16", "--sram", "256,1536", "--batch", "1,4", "--granularity", "none,head")


def chip(skip: str = "tile", sram_bytes: int | None = None):
    hardware = load("small-npu")
    assert isinstance(hardware.compute, Array)
    hardware = hardware.model_copy(update={"compute": hardware.compute.model_copy(update={"skip": skip})})
    return design(hardware, "os", 16, 16, sram_bytes or hardware.memories.sram.bytes)


def alone(row, subject, space) -> dict[str, float]:
    """The figures of one point by the scalar functions."""
    hardware = design(space.hardware, row["dataflow"], row["rows"], row["columns"], row["sram_bytes"])
    estimate = evaluate(variant(subject, row["granularity"], space.tau, space.softmax), hardware, row["batch"], space.encoding)
    energy = estimate.energy * 1e-6
    return {
        "cycles": estimate.cycles_per_image,
        "latency_ms": estimate.milliseconds_per_image * row["batch"],
        "energy_uj_low": energy.low_pj,
        "energy_uj": energy.nominal_pj,
        "energy_uj_high": energy.high_pj,
        "area_mm2": area_mm2(hardware),
    }


@pytest.mark.slow
@examples(12)
@given(st.data())
def test_random_points_equal_the_scalar_functions_to_the_last_bit(data):
    skip = data.draw(st.sampled_from(["none", "gate", "tile", "pair"]))
    flows = ("os",) if skip == "pair" else ("os", "ws", "is")
    shape = Shape(data.draw(st.integers(0, 2**32 - 1)), side=8, depth=2, freeze="scattered", softmax="renormalised")
    subject = data.draw(st.sampled_from([random_program(shape), random_program(replace(shape, prefix=0, windows=2, biased=True))]))
    names = ("none", "own", "weight", "row", "column", "tile:2x3", "head")
    space = Space(chip(skip), (1, 3, 16), (2, 5), flows, (1 << 9, 1 << 11, 1 << 20), (1, 3), names, data.draw(st.floats(0, 1)))
    unit = data.draw(st.sampled_from(space.units))
    points = price_unit(unit, subject, space)
    chosen = np.random.default_rng(0).random(len(points["rows"])) < 0.3
    for row in rows_of(points, chosen):
        assert alone(row, subject, space) == {name: row[name] for name in row if name not in CHOICES}


def test_points_of_a_published_model_come_in_the_order_of_the_choices():
    subject = architecture(TINY)
    space = Space(chip(), (8, 16), (16,), ("ws", "os"), (1 << 18, 1 << 21), (1, 2), ("weight", "head"), 0.9)
    points = search(subject, space, workers.here, progress)
    expected = product(space.granularities, space.dataflows, space.sram_bytes, space.batches, space.rows, space.columns)
    names = ("granularity", "dataflow", "sram_bytes", "batch", "rows", "columns")
    assert list(zip(*(points[name].tolist() for name in names), strict=True)) == list(expected)
    assert len(space) == len(points["rows"]) == 32
    for row in rows_of(points, np.arange(32) % 5 == 0):
        assert alone(row, subject, space) == {name: row[name] for name in row if name not in (*CHOICES, "pareto")}


@given(st.lists(st.tuples(*3 * [st.integers(0, 4)]), min_size=1, max_size=30))
def test_the_front_is_what_no_point_beats(costs):
    def beats(other, point):
        return all(o <= p for o, p in zip(other, point, strict=True)) and other != point

    expected = [not any(beats(other, point) for other in costs) for point in costs]
    assert undominated(np.array(costs, float)).tolist() == expected


def test_designs_that_do_not_fit_are_left_out():
    hardware = load("simd-mcu")
    memories = hardware.memories.model_copy(update={"dram": None, "rom": hardware.memories.rom})
    space = Space(chip().model_copy(update={"memories": memories}), (16,), (16,), ("os",), (1 << 10, 1 << 21), (1,), ("none",), 0)
    assert search(architecture(TINY), space, workers.here, progress)["sram_bytes"].tolist() == [1 << 21]
    with pytest.raises(UserError, match="search: no design fits its memories; take larger SRAMs or smaller batches"):
        search(architecture(TINY), replace(space, sram_bytes=(1 << 10,)), workers.here, progress)


@pytest.mark.parametrize(("name", "dataflow"), [("row", "ws"), ("column", "is"), ("tile:16x16", "os")])
def test_frozen_units_save_cycles_where_they_meet_the_dataflow(name, dataflow):
    space = Space(chip(), (16,), (16,), (dataflow,), (1 << 21,), (1,), (name, "weight"), 0.5)
    whole, scattered = search(architecture(TINY), space, workers.here, progress)["cycles"]
    assert whole < scattered


@pytest.mark.slow
def test_processes_and_a_cluster_find_the_same_points():
    distributed = pytest.importorskip("distributed")
    space = Space(chip(), (8,), (16,), ("os", "ws"), (1 << 21,), (1,), ("weight",), 0.5)
    expected = search(architecture(TINY), space, workers.here, progress)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None) as cluster:
        places = workers.processes(2), workers.cluster(cluster.scheduler_address, "eamsim search")
        for place in places:
            points = search(architecture(TINY), space, place, progress)
            assert all(np.array_equal(points[name], column) for name, column in expected.items())


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / "designs.csv"
    done = eamsim("search", TINY, *SMALL, "-o", out, "--json")
    assert done.code == 0, done.err
    assert "designs: 48/48" in done.err
    result = json.loads(done.out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (result["points"], result["left_out"], len(rows)) == (48, 0, 48)
    front = [row for row in rows if row["pareto"] == "true"]
    assert sorted(float(row["energy_uj"]) for row in front) == [row["energy_uj"] for row in result["front"]]
    assert result["best"]["head"]["energy_uj"] == min(float(row["energy_uj"]) for row in rows if row["granularity"] == "head")
    assert set(GOALS) <= set(rows[0])
    assert json.loads((tmp_path / "designs.csv.json").read_text())["output"]["sha256"] == artifact.sha256(out)
    assert "Pareto front of energy, latency and area:" in eamsim("search", TINY, *SMALL).out


def test_an_artifact_has_maps_of_its_own(tmp_path):
    path = tmp_path / "x.eam"
    artifact.write(str(path), random_program(Shape(seed=3, side=8, freeze="rows")), {})
    done = eamsim("search", path, "--rows", "4", "--columns", "4", "--sram", "64", "--granularity", "own,none", "--json")
    assert {row["granularity"] for row in json.loads(done.out)["front"]} <= {"own", "none"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", "0,4"), "--rows: expected whole numbers from 1 to 4,096 with commas between, such as 8,16,32, got '0,4'"),
        (("--sram", "1k"), "--sram: expected whole numbers"),
        (("--dataflow", "os,rs"), "--dataflow: expected os, ws, is with commas between, got 'rs'"),
        (("--granularity", "own"), "--granularity: expected none, weight, row, column, head or tile:RxC such as tile:16x16, got 'own'"),
        (("--hw", "simd-mcu"), "--hw: expected a PE array, got simd-mcu, a SIMD core; take small-npu or large-npu"),
        (("--workers", "2", "--scheduler", "tcp://127.0.0.1:1"), "--workers and --scheduler: expected at most one of them"),
        (("-o", "designs.txt"), "--out: expected a name that ends in .csv, got designs.txt"),
        (("-o", "/nowhere/x.csv"), "--out: /nowhere/x.csv cannot be written"),
    ],
)
def test_faults_are_named(options, message):
    done = eamsim("search", TINY, *options)
    assert done.code == 2
    assert message in done.err
