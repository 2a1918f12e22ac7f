"""`eamsim cost --compare`, and the chip that skips codes of zero."""

import json
from dataclasses import replace

import pytest
from command_line import eamsim
from programs import Shape, random_program

from cost_model.chip.hardware import load
from cost_model.price.energy import evaluate
from cost_model.work.counts import count
from cost_model.work.ledger import zero_code_macs
from eamsim import artifact
from eamsim.constraints import Verified
from eamsim.program import Attention

TINY = "deit_tiny_patch16_224"
SHAPE = Shape(seed=3, side=8, heads=2, head_dim=4, hidden=32, depth=2, softmax="renormalised")


@pytest.fixture
def pair(tmp_path) -> tuple[str, str]:
    """The same network with nothing and with heads frozen."""
    paths = tmp_path / "a.eam", tmp_path / "b.eam"
    for path, freeze in zip(paths, ("none", "heads"), strict=True):
        artifact.write(str(path), random_program(replace(SHAPE, freeze=freeze)), {})
    return str(paths[0]), str(paths[1])


def test_two_files_side_by_side(pair):
    result = json.loads(eamsim("cost", "--compare", *pair, "--hw", "small-npu", "--batch", "2", "--json").out)
    programs = [artifact.read(path)[0] for path in pair]
    estimates = [evaluate(program, load("small-npu"), 2) for program in programs]
    assert result["models"] == list(pair)
    for side, program, estimate in zip(("a", "b"), programs, estimates, strict=True):
        assert result[side]["macs_full"] == count(program).macs.full
        assert result[side]["cycles"] == estimate.cycles_per_image
        assert result[side]["energy_uj"] == pytest.approx(estimate.energy.nominal_pj / 1e6)
    assert result["difference"]["macs_full"] == count(programs[1]).macs.full - count(programs[0]).macs.full < 0
    assert result["difference"]["map_bytes"] == result["b"]["map_bytes"] > 0


def test_the_table_names_both_and_the_difference(pair):
    lines = [line.split() for line in eamsim("cost", "--compare", *pair).out.splitlines()]
    assert ["A:", pair[0]] in lines
    assert ["granularity", "weight", "head"] in lines
    a, b = (count(artifact.read(path)[0]).macs.full for path in pair)
    assert ["MACs,", "full", "scope", f"{a:,}", f"{b:,}", f"{b - a:,}", f"{100 * (b - a) / a:.2f}"] in lines


def test_a_file_against_a_published_model(pair):
    result = json.loads(eamsim("cost", pair[1], "--compare", TINY, "--json").out)
    assert result["a"]["macs_full"] == 1_253_683_200
    assert "cycles" not in result["difference"]


def test_equal_programs_do_not_differ(pair):
    result = json.loads(eamsim("cost", "--compare", pair[0], pair[0], "--hw", "simd-mcu", "--json").out)
    assert set(result["difference"].values()) == {0}


def test_faults_are_named(pair):
    done = eamsim("cost", "--compare", *pair, "--tau", "0.5")
    assert done.code == 2
    assert "--compare: expected no --tau, nor files of one program, beside it" in done.err
    assert eamsim("cost", "--compare", "missing.eam", pair[0]).code == 3


def zeros_frozen() -> Verified:
    """All weights frozen to the last code, which means zero: A.V needs nothing."""
    program = random_program(replace(SHAPE, freeze="all", last_code_is_zero=True))

    def silent(op: Attention) -> Attention:
        assert op.frozen is not None
        codes = op.frozen.codes * 0 + (1 << op.frozen.bits) - 1
        return replace(op, frozen=replace(op.frozen, codes=codes.astype("uint8")))

    return replace(program, operations=tuple(silent(op) if isinstance(op, Attention) else op for op in program.operations))


def test_zero_skip_leaves_out_codes_that_mean_zero(tmp_path):
    program = zeros_frozen()
    path = str(tmp_path / "x.eam")
    artifact.write(path, program, {})
    every, skipping = (json.loads(eamsim("cost", path, "--hw", "small-npu", *more, "--json").out) for more in ((), ("--zero-skip",)))
    (row,), (less,) = every["rows"], skipping["rows"]
    assert row["zero_code_macs"] == row["av_macs"] == sum(zero_code_macs(op) for op in program.operations if isinstance(op, Attention))
    assert less["hardware"]["cycles"] < row["hardware"]["cycles"]
    assert less["hardware"]["energy_uj"]["nominal"] < row["hardware"]["energy_uj"]["nominal"]
    assert f"frozen codes that mean zero or excluded pairs take {row['av_macs']:,}" in eamsim("cost", path).out
    assert "--zero-skip describe how a chip is used" in eamsim("cost", path, "--zero-skip").err
