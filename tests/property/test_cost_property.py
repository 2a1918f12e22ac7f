"""The counts of any legal program are the multiplications that the golden interpreter is seen to make, whatever table adds them up.

EAMSIM_EXAMPLES sets the number of programs.
"""

import csv
import os
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import ClassVar

import numpy as np
import pytest
import yaml
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from programs import DETOURS, FREEZES, Shape, random_images, random_program

from cost_model.chip.hardware import load
from cost_model.exports import scalesim_csv, zigzag_yaml
from cost_model.models.variants import Freezer, refrozen, scattered, thawed, whole_heads
from cost_model.price.energy import evaluate
from cost_model.work.counts import Cost, count, count_operations
from cost_model.work.gemms import gemms
from cost_model.work.ledger import Work, ledger, qk_linears, structured_macs, zero_code_macs
from cost_model.work.unread import read_elements, unread_macs
from eamsim import golden
from eamsim.cli.chip.cost import counted
from eamsim.cli.chip.cost_tables import report
from eamsim.constraints import Verified, verify
from eamsim.errors import UserError
from eamsim.jobs.costs.findings import findings, layers
from eamsim.jobs.costs.operations import operation_rows
from eamsim.jobs.costs.rows import own_row
from eamsim.program import Attention, Gather, InputQuant, Linear, Operation, Raw, Softmax, Value

EXAMPLES = int(os.environ.get("EAMSIM_EXAMPLES", "60"))


@st.composite
def programs(draw) -> Verified:
    """ViT and Swin shaped, with what no model has: patches of one pixel, other rows in proj than in q, k and v, dropped operations."""
    windows = draw(st.sampled_from([1, 2, 4]))
    detour = draw(st.sampled_from(DETOURS))
    shape = Shape(
        seed=draw(st.integers(0, 2**32 - 1)),
        side=draw(st.sampled_from([2, 4])),
        patch=draw(st.sampled_from([1, 2])) if windows == 1 else 1,
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([1, 4])),
        depth=draw(st.integers(1, 2)) if detour != "class" or windows == 1 else 1,
        prefix=draw(st.integers(0, 1)) if windows == 1 else 0,
        windows=windows,
        queries=draw(st.sampled_from([0, 0, 1, 3])),
        freeze=draw(st.sampled_from(FREEZES)),
        softmax=draw(st.sampled_from(["paper", "renormalised"])),
        last_code_is_zero=draw(st.booleans()),
        biased=draw(st.booleans()),
        pooled=draw(st.booleans()),
        fitted=draw(st.booleans()),
        detour=detour,
    )
    program = random_program(shape)
    verify(program)
    return program


class Seen(np.ndarray):
    """An array that notes the operands of every matrix product it takes part in, and makes what is computed from it do so too."""

    products: ClassVar[list[tuple[np.ndarray, np.ndarray]]] = []

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(each) for each in inputs]
        if ufunc is np.matmul:
            Seen.products.append((plain[0], plain[1]))
        return np.asarray(getattr(ufunc, method)(*plain, **options)).view(Seen)


def multiplied(program: Verified, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Multiply-accumulates of every operation as the golden interpreter runs it on an image.

    Of QK^T those of the pairs that it then takes as computed, in heads that it multiplies; of A.V those by an operand that is not 0.
    """
    computed: list[np.ndarray] = []
    pair_masks = golden.pair_masks

    def noted(op: Attention):
        computed.append(pair_masks(op)[2])
        return pair_masks(op)

    monkeypatch.setattr(golden, "pair_masks", noted)
    (image,) = random_images(program, 1, 0)
    values, found = {program.image.name: image.astype(np.int64)}, {}
    for op in program.operations:
        Seen.products, seen = [], {name: value.view(Seen) for name, value in values.items()}
        if isinstance(op, Linear) and op.levels is not None:
            op = replace(op, levels=op.levels.view(Seen))
        values[op.out.name] = np.asarray(golden.execute(op, seen, program.datapath, lambda name, value: None))
        macs = 0
        for number, (left, right) in enumerate(Seen.products):
            if isinstance(op, Attention):
                macs += int(computed[-1].sum()) * left.shape[-1] if number == 0 else int((left != 0).sum()) * right.shape[-1]
            else:
                macs += left.size * right.shape[-1]
        found[op.out.name] = macs
    monkeypatch.undo()
    return found


def everywhere(program: Verified, change: Callable[[Attention], Attention]) -> Verified:
    return replace(program, operations=tuple(change(op) if isinstance(op, Attention) else op for op in program.operations))


def attentions(program: Verified) -> list[Attention]:
    return [op for op in program.operations if isinstance(op, Attention)]


@pytest.mark.slow
@examples(EXAMPLES)
@given(program=programs())
def test_macs_are_the_multiplications_of_golden(program):
    monkeypatch = pytest.MonkeyPatch()
    dense = everywhere(program, lambda op: replace(op, excluded=None, last_code_is_zero=False))  # a dense array does not look at these
    seen, costs = multiplied(dense, monkeypatch), count_operations(program)
    assert {name: cost.macs.full for name, cost in costs.items()} == seen
    assert count(program).macs.full == sum(seen.values())

    needed = multiplied(everywhere(program, lambda op: replace(op, last_code_is_zero=False)), monkeypatch)
    for op in program.operations:
        products = gemms(program, op)
        if isinstance(op, Attention):
            excluded_context = products[-1].needed_macs - gemms(program, op, skips_zero_codes=True)[-1].needed_macs
            assert excluded_context == zero_code_macs(op)
            left = replace(op, last_code_is_zero=False)
            assert sum(gemm.needed_macs for gemm in gemms(program, left, skips_zero_codes=True)) == needed[op.out.name]
        else:
            assert sum(gemm.needed_macs for gemm in products) == sum(gemm.dense_macs for gemm in products) == needed[op.out.name]


@pytest.mark.slow
@examples(EXAMPLES)
@given(program=programs())
def test_every_table_has_the_same_sum(program):
    total, row, chip = count(program), own_row(program), load("small-npu")
    estimate = evaluate(program, chip)
    full = total.macs.full
    assert sum(count_operations(program).values(), Cost()) == total
    assert row["macs_full"] == full == sum(row["macs_by_layer"].values())
    assert row["macs_full"] + row["macs_saved_full"] == sum(row["dense_macs_by_layer"].values())
    assert sum(each["macs"] for each in operation_rows(program, estimate)) == full
    assert sum(each["macs"] for each in layers(program, estimate, 1)) == full

    made = [gemm.dense_macs for op in program.operations for gemm in gemms(program, op)]
    scores = sum(len(op.score_heads) * op.windows * op.rows * op.tokens * op.head_dim for op in attentions(program))
    skipped = scores - total.macs.scores  # of QK^T, which these formats have whole
    assert sum(made) - skipped == full
    assert sum(gemm.dense_macs for op in estimate.operations for gemm, _ in op.runs) == sum(made)
    lines = [line[1:4] for line in list(csv.reader(scalesim_csv(program).splitlines()))[1:]]
    assert sum(int(m) * int(n) * int(k) for m, n, k in lines) == sum(made)
    assert sum(int(np.prod(layer["loop_sizes"])) for layer in yaml.safe_load(zigzag_yaml(program))) == sum(made)

    work = sum(ledger(program).values(), Work())
    assert sum(each["work"].get("exponents", 0) for each in operation_rows(program, None)) == work.exponents
    assert str(report("x", *counted(program, None, None, ()))[0]).startswith("x, one image")


@pytest.mark.slow
@examples(EXAMPLES)
@given(program=programs())
def test_freezing_saves_what_golden_no_longer_multiplies(program):
    cost = count(program)
    saved = np.subtract(astuple(cost.dense), astuple(cost.macs))
    assert (saved >= 0).all()
    fixed = any(None in qk_linears(program, op) for op in attentions(program))
    dense = frozen_anew(program, lambda op: None, "paper")
    assert (dense is None) == (fixed and any(len(op.score_heads) < op.heads for op in attentions(program)))
    if dense is None:
        return
    assert count(dense).macs == count(dense).dense == cost.dense
    assert count(refrozen(dense, scattered(0.5), "renormalised")).dense == cost.dense
    half = frozen_anew(dense, whole_heads(dense, 0.5), "renormalised")
    assert half is not None or fixed
    assert half is None or count(half).dense == cost.dense


def frozen_anew(program: Verified, freezer: Freezer, softmax: Softmax) -> Verified | None:
    """None where q and k would change that no Linear of an Attention's own makes."""
    try:
        return refrozen(program, freezer, softmax)
    except UserError:
        return None


@pytest.mark.slow
@examples(EXAMPLES)
@given(program=programs())
def test_what_nobody_reads_or_needs_is_part_of_what_there_is(program):
    costs, unread = count_operations(program), unread_macs(program)
    assert all(0 < macs <= costs[name].macs.full for name, macs in unread.items())
    assert 0 <= sum(structured_macs(program, op) for op in attentions(program)) <= count(program).macs.full
    (image,) = random_images(program, 1, 0)
    read, values = read_elements(program), {program.image.name: image.astype(np.int64)}
    for op in program.operations:
        out = golden.execute(op, values, program.datapath, lambda name, value: None)
        values[op.out.name] = np.where(read[op.out.name], out, op.out.high)
    np.testing.assert_array_equal(values[program.output.name].ravel(), golden.run(program, image))


def pixels(*operations: Operation) -> Verified:
    return Verified("small", Value("image", (2, 2, 3), 8), operations)


QUANTISED = InputQuant("image", Value("input", (2, 2, 3), 8), np.zeros((3, 256), np.uint8))
ROWS = Gather("image", Value("rows", (2, 6), 8), np.arange(4, dtype=np.int32), 3)
RATIO = {"multiplier": np.ones(2, np.int32), "shift": np.zeros(2, np.int32)}
WEIGHT = np.zeros((6, 2), np.uint8), 4, np.zeros(2, np.uint8), 0, np.zeros(2, np.int32)
LINEAR = Linear("rows", Value("head", (2, 2), 32, True), *WEIGHT, Raw(**RATIO))


@pytest.mark.parametrize("program", [pixels(QUANTISED), pixels(ROWS), pixels(ROWS, LINEAR), pixels(*[replace(ROWS)], QUANTISED)])
def test_programs_with_hardly_anything_are_counted(program):
    verify(program)
    macs = 2 * 2 * 6 if LINEAR in program.operations else 0
    row = own_row(program)
    assert (row["macs_full"], row["macs_saved_full"], row["tau"], row["granularity"]) == (macs, 0, 0, "weight")
    assert str(report("x", *counted(program, None, None, ()))[0]).startswith("x, one image")
    assert evaluate(thawed(program), load("small-npu")).cycles_per_image > 0


@pytest.mark.slow
def test_many_gathers_in_a_row_are_looked_through():
    chain, x = [], "image"
    for number in range(3000):
        chain.append(replace(ROWS, x=x, out=replace(ROWS.out, name=f"rows{number}")))
        x = chain[-1].out.name
    program = pixels(*chain, replace(LINEAR, x=x))
    assert count(program).macs.patch_embedding == count(program).macs.full == 2 * 2 * 6


def test_windows_in_which_every_pair_is_excluded_have_no_share():
    program = random_program(Shape(seed=1, biased=True))
    bare = everywhere(program, lambda op: replace(op, excluded=np.ones_like(op.excluded)))
    row = own_row(bare)
    assert (row["tau"], row["tau_with_excluded"]) == (0, 1)
    assert count(refrozen(bare, scattered(0.0), "renormalised")).mask_bytes == 0


@pytest.mark.slow
@examples(max(EXAMPLES // 6, 5))
@given(program=programs())
def test_the_page_of_any_program_can_be_made(program):
    try:
        found = findings(program, load("small-npu"), 1)
    except UserError as error:
        assume("makes them for it alone" not in str(error))
        raise
    full = count(program).macs.full
    assert (
        found["row"]["macs_full"] == full == sum(op["macs"] for op in found["operations"]) == sum(each["macs"] for each in found["layers"])
    )
