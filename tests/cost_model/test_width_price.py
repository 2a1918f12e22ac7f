"""The price of widths: the steps are the ledger's, the figures the hardware's at its own widths, and less is never dearer."""

from dataclasses import fields, replace

import pytest
from programs import Shape, random_program

from cost_model.chip.hardware import Array, load
from cost_model.chip.technology import ADD_PJ, MULTIPLY_PJ, Energy
from cost_model.price.energy import evaluate, latched_bits, mac_energy, vector_energy
from cost_model.price.widths import Step, lane_area, price, step_energy, steps
from cost_model.work.ledger import STEPS, Work, operation_work, primitives
from eamsim.errors import UserError
from eamsim.narrow import narrowed, proven_sums, widths_of

SHAPES = {
    "vit": Shape(3, side=8, freeze="scattered", softmax="renormalised"),
    "swin": Shape(4, side=8, windows=4, prefix=0, biased=True, pooled=True),
}
SMALL = load("small-npu")


@pytest.fixture(params=SHAPES)
def program(request):
    return random_program(SHAPES[request.param])


def test_every_kind_of_work_has_as_many_steps_as_in_the_ledger(program):
    seen = set()
    for op in program.operations:
        found = steps(program, op)
        work = operation_work(program, op)
        assert {field.name for field in fields(Work) if getattr(work, field.name)} <= found.keys()
        for kind, step in found.items():
            counted = STEPS[kind]
            assert len(step.multiplies) == counted.multiplies
            assert len(step.lookups) == counted.lookups
            if kind != "normalised_tokens":  # a bit of root and quotient a pass: as many as there are, here
                assert len(step.simple) == counted.simple
            seen.add(kind)
    assert len(seen) > 10


def test_at_the_widths_of_the_description_a_step_costs_what_it_says():
    step = Step(multiplies=((32, 32),), simple=(32, 32), lookups=((13, 8),))

    vector = SMALL.vector
    assert step_energy(step, SMALL) == vector.multiply_pj.energy + vector.simple_pj.energy * 2 + vector.lookup_pj.energy


def test_the_scaling_laws_meet_the_published_points():
    assert pytest.approx(0.2, rel=0.04) == MULTIPLY_PJ * 8 * 8  # int8 multiply
    assert pytest.approx(0.05) == ADD_PJ * 16
    assert pytest.approx(0.03, rel=0.2) == ADD_PJ * 8


def test_at_the_width_of_the_array_traffic_and_products_are_those_of_the_cost_model(program):
    priced, estimate = price(program, SMALL), evaluate(program, SMALL)

    macs = sum(op.macs for op in estimate.operations)
    done = primitives(sum((operation_work(program, op) for op in program.operations), Work()))
    vector = vector_energy(SMALL, done.multiplies, done.simple, done.lookups)
    leakage = sum(memory.leakage_mw for memory in SMALL.memories.levels.values()) * estimate.milliseconds_per_image * 1e6
    rest = estimate.energy - vector - Energy(leakage, leakage, leakage)
    assert program.datapath.accumulator_bits == 32
    assert isinstance(SMALL.compute, Array)
    assert SMALL.compute.register_pj_per_bit is not None
    latched = sum(latched_bits(SMALL.compute, gemm, done) for op in estimate.operations for gemm, done in op.runs)
    products = mac_energy(SMALL.compute) * macs + SMALL.compute.register_pj_per_bit.energy * latched
    assert priced.mac.nominal_pj == pytest.approx(products.nominal_pj)
    assert (priced.mac + priced.traffic).nominal_pj == pytest.approx(rest.nominal_pj)


@pytest.mark.parametrize(
    "knob", ["multiplier_bits", "residual_bits", "exponent_bits", "exp2_bits", "log2_index_bits", "norm_fraction_bits"]
)
def test_a_narrower_width_costs_less(program, knob):
    now = widths_of(program)
    before, after = (price(narrowed(program, each), SMALL) for each in (now, replace(now, **{knob: getattr(now, knob) - 1})))

    assert after.energy.nominal_pj < before.energy.nominal_pj
    assert after.area_um2 <= before.area_um2


def test_a_narrower_accumulator_costs_less_per_product(program):
    proven = replace(widths_of(program), accumulator_bits=max(proven_sums(program).values()))

    after = price(narrowed(program, proven), SMALL)

    before, bits = price(program, SMALL), proven.accumulator_bits
    share = (16 * MULTIPLY_PJ + bits * ADD_PJ) / (16 * MULTIPLY_PJ + 32 * ADD_PJ)
    assert isinstance(SMALL.compute, Array)
    bare = SMALL.model_copy(update={"compute": SMALL.compute.model_copy(update={"register_pj_per_bit": None})})
    products = price(program, bare).mac.nominal_pj
    assert price(narrowed(program, proven), bare).mac.nominal_pj == pytest.approx(products * share)
    latched, less = before.mac.nominal_pj - products, after.mac.nominal_pj - products * share
    assert latched * bits / 32 < less < latched * (8 + bits) / (8 + 32)
    assert after.area_um2 < price(program, SMALL).area_um2


def test_a_lane_has_a_table_for_each_kind_of_work_and_the_largest_of_the_rest():
    used = [
        ("exponents", Step(((4, 4), (8, 2)), (9,), ((3, 4),))),
        ("exponents", Step(((5, 5),), (3,), ((2, 5),))),
        ("logarithms", Step(lookups=((3, 4),))),
    ]

    expected = 25 * 6350 / 1024 + 9 * (278 / 32 + 5.98) + (32 + 32) * 1.0
    assert lane_area(used) == pytest.approx(expected)


def test_layers_share_the_memories_of_their_tables():
    one, two = (price(random_program(replace(SHAPES["vit"], depth=depth)), SMALL) for depth in (1, 2))

    assert one.area_um2 == two.area_um2
    assert one.vector.nominal_pj < two.vector.nominal_pj


def test_a_core_of_fixed_registers_has_no_price(program):
    with pytest.raises(UserError, match="--hw: expected an array, whose units can be made narrower, got simd-mcu"):
        price(program, load("simd-mcu"))
