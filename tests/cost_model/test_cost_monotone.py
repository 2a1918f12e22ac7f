"""What more of something can only improve: the model keeps the direction of physics."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_program

from cost_model.chip.hardware import Hardware, load
from cost_model.models.architectures import ARCHITECTURES
from cost_model.models.skeleton import skeleton
from cost_model.models.variants import refrozen, scattered
from cost_model.price.energy import evaluate
from eamsim.constraints import Verified

TINY = skeleton(ARCHITECTURES["deit_tiny_patch16_224"])
CHIPS = [load("small-npu"), load("large-npu")]
shapes = st.builds(
    Shape, seed=st.integers(0, 999), side=st.just(8), patch=st.just(2), heads=st.just(2), head_dim=st.just(4), hidden=st.just(32),
    depth=st.integers(1, 2), softmax=st.sampled_from(["paper", "renormalised"]), freeze=st.sampled_from(FREEZES),
)  # fmt: skip
programs = st.one_of(st.just(TINY), shapes.map(random_program))


def with_memory(chip: Hardware, level: str, **fields) -> Hardware:
    memory = getattr(chip.memories, level).model_copy(update=fields)
    return chip.model_copy(update={"memories": chip.memories.model_copy(update={level: memory})})


def outward(program: Verified, chip: Hardware, batch: int = 1) -> int:
    """Bits to and from the DRAM."""
    return sum(evaluate(program, chip, batch).traffic.of("dram"))


@settings(max_examples=30, deadline=None)
@given(programs, st.sampled_from(CHIPS), st.sampled_from(["sram", "dram", "accumulators"]), st.integers(1, 512), st.integers(1, 512))
def test_a_wider_memory_is_never_slower_and_costs_the_same(program, chip, level, narrow, more):
    slow, fast = (evaluate(program, with_memory(chip, level, bits_per_cycle=bits, leakage_mw=0)) for bits in (narrow, narrow + more))
    assert fast.cycles_per_image <= slow.cycles_per_image
    assert fast.traffic == slow.traffic


@settings(max_examples=30, deadline=None)
@given(programs, st.sampled_from(CHIPS), st.integers(1_100_000, 2_500_000), st.integers(1, 1 << 20))
def test_a_larger_sram_never_fetches_more(program, chip, size, more):
    assert outward(program, with_memory(chip, "sram", bytes=size + more)) <= outward(program, with_memory(chip, "sram", bytes=size))


@settings(max_examples=30, deadline=None)
@given(programs, st.sampled_from(CHIPS), st.integers(1, 1 << 16), st.integers(1, 1 << 16))
def test_larger_accumulators_never_spill_more(program, chip, size, more):
    less, most = (evaluate(program, with_memory(chip, "accumulators", bytes=each)).traffic for each in (size, size + more))
    assert sum(most.of("sram")) <= sum(less.of("sram"))


@settings(max_examples=20, deadline=None)
@given(shapes.map(random_program), st.sampled_from(CHIPS), st.integers(1, 16), st.integers(1, 16))
def test_a_larger_batch_that_fits_never_fetches_more_for_an_image(program, chip, few, more):
    one, many = (evaluate(program, chip, batch) for batch in (few, few + more))
    assert not many.placement.spilled
    assert many.fetch_energy.nominal_pj <= one.fetch_energy.nominal_pj * (1 + 1e-12)


def test_more_frozen_never_takes_longer_or_more_multiplies():
    estimates = [evaluate(refrozen(TINY, scattered(tau), "renormalised"), CHIPS[0]) for tau in (0.0, 0.3, 0.6, 0.9)]
    assert np.all(np.diff([each.cycles_per_image for each in estimates]) <= 0)
    assert np.all(np.diff([sum(op.macs for op in each.operations) for each in estimates]) < 0)
