"""Published designs: the page is what the command says, every figure has its place, and chips with an engine for each operation."""

import json
from pathlib import Path

import pytest
from command_line import eamsim

from cost_model.chip.hardware import load
from cost_model.models.architectures import ARCHITECTURES
from cost_model.models.skeleton import skeleton
from cost_model.price.energy import evaluate
from cost_model.validation import QUANTITIES, designs
from eamsim.errors import UserError
from eamsim.jobs.search.designs import Space

PAGE = Path(__file__).parents[2] / "docs/results/chips.md"
TINY = skeleton(ARCHITECTURES["deit_tiny_patch16_224"])


def test_the_page_is_what_the_command_says():
    done = eamsim("cost", "--validate")
    assert done.out == PAGE.read_text(encoding="utf-8"), done.err


def test_six_designs_or_more_agree_or_say_why_not():
    rows = json.loads(eamsim("cost", "--validate", "--json").out)["rows"]
    assert len({row["design"] for row in rows}) >= 6
    for row in rows:
        assert row["ratio"] == pytest.approx(row["modelled"] / row["published"])
        assert row["agrees"] is (0.5 <= row["ratio"] <= 2)
        assert row["agrees"] or row["reason"], row["design"]
        assert row["where"]


def test_every_design_names_its_source_and_what_was_chosen():
    for design in designs():
        assert design.url.startswith("http")
        assert design.chosen
        assert {figure.quantity for figure in design.figures} <= set(QUANTITIES)


def test_where_every_operation_has_an_engine_the_slowest_decides():
    shared = load("large-npu")
    pipelined = shared.model_copy(update={"layer_pipelined": True})
    one, many = evaluate(TINY, shared, batch=2), evaluate(TINY, pipelined, batch=2)
    assert many.cycles_per_image == max(op.total_cycles for op in one.operations) / 2
    assert many.latency_cycles == one.latency_cycles == one.cycles_per_image * 2
    assert 0 < many.utilisation < 1
    dynamic = many.energy.nominal_pj - one.energy.nominal_pj  # but for leakage, which lasts a shorter time
    assert -8.1 * (one.milliseconds_per_image - many.milliseconds_per_image) * 1e6 == pytest.approx(dynamic)


def test_a_search_varies_one_array():
    chip = load("small-npu").model_copy(update={"layer_pipelined": True})
    with pytest.raises(UserError, match="layer_pipelined; take small-npu"):
        Space(chip, [4], [4], ["os"], [1 << 20], [1], ["none"], 0.5).check()


@pytest.mark.parametrize(("options", "got"), [((), "neither"), (("--validate", "deit_tiny_patch16_224"), "both")])
def test_a_model_or_the_designs(options, got):
    done = eamsim("cost", *options)
    assert (done.code, f"expected a model or --validate, got {got}" in done.err) == (2, True)
