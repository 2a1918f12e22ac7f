"""`eamsim cost --hw` through typer, without the rest of the command line."""

import json
import subprocess
import sys
from math import ceil

import pytest
import typer
from programs import Shape, random_program
from typer.testing import CliRunner

from cost_model.chip.hardware import PRESETS, preset_names
from cost_model.models.architectures import ARCHITECTURES
from eamsim import artifact
from eamsim.cli.chip.cost import cost
from eamsim.errors import UserError

app = typer.Typer(add_completion=False)
app.command()(cost)
TINY = "deit_tiny_patch16_224"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def report(*arguments: str) -> dict:
    return json.loads(run(*arguments, "--json"))


def test_the_sentence_a_designer_needs():
    text = " ".join(run(TINY, "--hw", "small-npu", "--tau", "0.9").split())
    assert "small-npu, batch 1: 16 x 16 PEs, os, skip tile, 500 MHz" in text
    assert (
        "paper, tau 0.9, scattered: energy goes up by 3.54% at batch 1 (+53.3 uJ to fetch maps and weights, -5.8 uJ for the rest)" in text
    )
    assert "it pays from batch 10" in text
    assert "renormalised, tau 0.9, scattered: energy goes down by 1.24% at batch 1" in text
    assert "as whole heads, the most it can save: energy goes down by 15.52% at batch 1" in text


def test_json_has_every_figure():
    result = report(TINY, "--hw", "small-npu", "--tau", "0,0.9")
    assert result["hardware"]["name"] == "small-npu"
    assert result["batch"] == 1
    rows = {(row["softmax"], row["tau"]): row for row in result["rows"]}
    frozen, dense = rows["renormalised", 0.9]["hardware"], result["dense"]
    assert frozen["energy_uj"]["low"] < frozen["energy_uj"]["nominal"] < frozen["energy_uj"]["high"]
    assert frozen["energy_change"] == pytest.approx(frozen["energy_uj"]["nominal"] / dense["energy_uj"]["nominal"] - 1)
    change = frozen["energy_uj"]["nominal"] - dense["energy_uj"]["nominal"]
    assert change == pytest.approx(frozen["fetched_extra_uj"]["nominal"] - frozen["otherwise_saved_uj"]["nominal"])
    assert frozen["milliseconds"] == pytest.approx(frozen["cycles"] / 500e3)
    assert frozen["encodings"] == {"csr-computed": 36}
    assert (frozen["maps_in"], frozen["break_even_batch"]) == ("dram", 1)
    assert frozen["dram_bytes"] - dense["dram_bytes"] == pytest.approx(frozen["stored_map_bytes"], abs=1)
    assert rows["paper", 0.9]["hardware"]["break_even_batch"] == 10
    assert rows["renormalised", 0]["hardware"]["energy_uj"] == dense["energy_uj"]
    assert rows["renormalised", 0.9]["upper_bound"]["macs_full"] < rows["renormalised", 0.9]["macs_full"]
    assert rows["renormalised", 0.9]["work"]["exponents"] == 36 * (197**2 - round(0.9 * 197**2))
    assert rows["paper", 0.9]["work"]["exponents"] == 36 * 197**2


def test_operations_add_up_to_the_whole():
    result = report(TINY, "--hw", "small-npu", "--tau", "0", "--batch", "2")
    operations, dense = result["operations"], result["dense"]
    assert sum(op["macs"] for op in operations) == result["rows"][0]["macs_full"]
    waiting = ceil(768 * 16 * 4 / 102)
    assert sum(op["cycles"] for op in operations) + waiting == 2 * dense["cycles"]
    assert sum(op["bits"]["dram_read_bits"] for op in operations) == 8 * 2 * dense["dram_bytes"]
    leakage = (1.0 + 0.01) * dense["milliseconds"]
    assert sum(op["energy_uj"]["nominal"] for op in operations) / 2 + leakage == pytest.approx(dense["energy_uj"]["nominal"])
    attention = next(op for op in operations if op["name"] == "block0.attn")
    assert attention["kind"] == "Attention"
    assert attention["work"]["exponents"] == 3 * 197**2
    assert set(attention["cycles_by_resource"]) == {"compute", "vector", "sram", "dram", "accumulators"}


def test_without_a_chip_nothing_is_added():
    assert not {"hardware", "work", "upper_bound"} & set(report(TINY, "--tau", "0.5")["rows"][0])


def test_a_program_is_evaluated_from_its_own_masks(tmp_path):
    shape = Shape(seed=3, side=8, patch=2, heads=2, head_dim=4, hidden=32, depth=2, softmax="renormalised", freeze="heads")
    path = str(tmp_path / "x.eam")
    artifact.write(path, random_program(shape), {})
    rows = report(path, "--hw", "small-npu", "--tau", "0.5")["rows"]
    assert rows[0]["hardware"]["encodings"] == {"head": 2, "none": 2}
    assert "upper_bound" not in rows[0]
    assert [row["estimated"] for row in rows] == [False, True, True]
    assert "renormalised, tau 0.5, its own masks: energy goes" in run(path, "--hw", "simd-mcu")


def test_a_file_and_the_options_that_override_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((PRESETS / "small-npu.yaml").read_text(encoding="utf-8").replace("name: small-npu", "name: mine"))
    arguments = (TINY, "--hw", str(path), "--tau", "0.9", "--softmax", "renormalised")
    (row,) = report(*arguments, "--encoding", "bitmap", "--batch", "2", "--maps", "sram")["rows"]
    assert row["hardware"]["encodings"] == {"bitmap": 36}
    assert row["hardware"]["maps_in"] == "sram"
    assert row["hardware"]["energy_change"] < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hw", "tpu"), "--hw: expected a .yaml file or one of large-npu, simd-mcu, small-npu, got 'tpu'"),
        (("--hw", "small-npu", "--maps", "rom"), "--maps: small-npu has sram, dram, got 'rom'"),
        (("--hw", "small-npu", "--encoding", "zip"), "--encoding: expected auto, "),
        (("--hw", "small-npu", "--tau", "0.5", "--encoding", "row"), "--encoding row expects maps frozen in such units"),
        (("--maps", "sram"), "--maps, --batch, --encoding and --zero-skip describe how a chip is used; name it with --hw"),
    ],
)
def test_faults_are_named(options, message):
    with pytest.raises(UserError) as caught:
        run(TINY, *options)
    assert message in str(caught.value)


@pytest.mark.parametrize("chip", preset_names())
def test_every_preset_counts_a_model(chip):
    (row,) = report(TINY, "--hw", chip, "--tau", "0.5", "--softmax", "renormalised")["rows"]
    assert row["hardware"]["cycles"] > 0


def test_every_published_model_is_counted_without_heavy_libraries():
    script = (
        "import sys; from cost_model.chip import hardware; from cost_model.models import skeleton; from cost_model.price import energy\n"
        "from cost_model.models.architectures import ARCHITECTURES\n"
        "chip = hardware.load('large-npu')\n"
        "assert all(energy.evaluate(skeleton.skeleton(model), chip).cycles_per_image > 0 for model in ARCHITECTURES.values())\n"
        "print({'torch', 'numba', 'eamsim.golden', 'eamsim.engine'} & set(sys.modules))"
    )
    assert len(ARCHITECTURES) >= 5
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_the_timeline_is_that_of_the_operations(tmp_path):
    path = tmp_path / "t.json"
    result = report(TINY, "--hw", "small-npu", "--tau", "0", "--batch", "2", "--timeline", str(path))
    assert [file["file"] for file in result["output"]] == [str(path)]
    events = json.loads(path.read_text())["traceEvents"]
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    slices = [event for event in events if event["ph"] == "X"]
    whole = [event for event in slices if tracks[event["tid"]] == "operation"]
    waiting = ceil(768 * 16 * 4 / 102) / 500
    assert whole[0]["ts"] == pytest.approx(waiting)
    for event, after, row in zip(whole, [*whole[1:], None], result["operations"], strict=True):
        assert (event["name"], event["args"]["cycles"]) == (row["name"], row["cycles"])
        assert event["dur"] == pytest.approx(row["cycles"] / 500)
        assert after is None or after["ts"] == pytest.approx(event["ts"] + event["dur"])
        busy = {tracks[other["tid"]]: other["dur"] for other in slices if (other["ts"], other["name"]) == (event["ts"], event["name"])}
        expected = {name: count / 500 for name, count in row["cycles_by_resource"].items() if count}
        assert busy == pytest.approx(expected | {"operation": row["cycles"] / 500})
    with pytest.raises(UserError, match="--timeline: expected a chip to run on; name it with --hw"):
        run(TINY, "--timeline", str(path))


def test_a_program_is_priced_once_and_a_published_one_proved_once(tmp_path, monkeypatch):
    """Of a file: itself, and with nothing frozen. Of a name: the network, without its unread rows, and each tau."""
    from cost_model.price import energy
    from eamsim import constraints

    program = random_program(
        Shape(seed=3, side=8, patch=2, heads=2, head_dim=4, hidden=32, depth=2, softmax="renormalised", freeze="heads")
    )
    artifact.write(tmp_path / "x.eam", program, {})
    priced, proved = [], []
    workload, prove = energy.workload, constraints.prove
    monkeypatch.setattr(energy, "workload", lambda program, *rest: priced.append(program) or workload(program, *rest))
    report(str(tmp_path / "x.eam"), "--hw", "small-npu")
    assert len(priced) == len({id(each) for each in priced}) == 2
    priced.clear()
    monkeypatch.setattr(constraints, "prove", lambda program: proved.append(program) or prove(program))
    report("deit_small_patch16_224", "--hw", "small-npu", "--tau", "0.5", "--softmax", "paper")
    assert len(priced) == 2  # as it is, and frozen
    assert len(proved) == 3
