"""The ledger against a run of the golden interpreter that does only the counted work, and still gets golden's integers."""

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import FREEZES, Shape, operation, random_images, random_program

from cost_model.work.counts import count_operations
from cost_model.work.ledger import STEPS, Primitives, Work, ledger, primitives, structured_macs, zero_code_macs
from eamsim import golden
from eamsim.constraints import Verified
from eamsim.intmath import narrow, round_shift
from eamsim.program import Attention, Frozen, LayerNorm, Linear

Counts = Counter[str]


class Counting(np.ndarray):
    """An array whose matrix products count the multiplies they execute."""

    counts: Any

    def __array_finalize__(self, obj):
        self.counts = getattr(obj, "counts", Counter())

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(each) if isinstance(each, Counting) else each for each in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            self.counts["macs"] += result.size * plain[0].shape[-1]
            return result
        counted = result.view(Counting)
        counted.counts = self.counts
        return counted


class Lean:
    """Golden's own functions, called for needed work alone; `counts` of each operation by its name."""

    def __init__(self, program: Verified, image: np.ndarray):
        self.program, self.counts = program, {}
        values = {program.image.name: image.astype(np.int64)}
        for op in program.operations:
            self.now = self.counts[op.out.name] = Counter()
            if isinstance(op, Attention):
                values[op.out.name] = self.attention(op, [values[name] for name in op.inputs])
            else:
                self.count_before(op, values)
                watched = self.watched(values[op.x])
                if isinstance(op, Linear) and op.levels is not None:
                    op = replace(op, levels=self.watched(op.levels))
                result = golden.execute(op, values | {op.x: watched}, program.datapath, self.tap)
                values[op.out.name] = np.asarray(result)
        self.values = values

    def watched(self, array: np.ndarray) -> np.ndarray:
        seen = array.view(Counting)
        seen.counts = self.now
        return seen

    def tap(self, name: str, array: np.ndarray) -> None:
        """What golden shows of the inside of an operation tells how much it did there."""
        kinds = {"normalised": "normalised", "reciprocal": "normalised_tokens", "acc": "requantised", "index": "gelu_lookups"}
        if (kind := name.split(".")[-1]) in kinds:
            self.now[kinds[kind]] += array.size

    def count_before(self, op: Any, values: dict[str, np.ndarray]) -> None:
        match type(op).__name__:
            case "InputQuant":
                self.now["input_lookups"] += op.table.astype(np.int64)[np.arange(3), values[op.x]].size
            case "Gather":
                self.now["moved"] += values[op.x].reshape(-1, op.granule)[op.indices].size
            case "Embed":
                self.now["embedded"] += (values[op.x] + op.position).size
            case "Pool":
                self.now["pooled"] += values[op.x].size
                self.now["requantised"] += op.out.size
            case "Linear":
                self.now["residual_adds"] += op.out.size if len(op.inputs) == 2 else 0
                self.now["level_lookups"] += 0 if op.levels is None else op.levels[values[op.x]].size

    def attention(self, op: Attention, inputs: list[np.ndarray]) -> np.ndarray:
        """Row by row, with the pairs that are needed, and no other, multiplied, exponentiated and rounded."""
        datapath, scored = self.program.datapath, len(op.score_heads)
        parts = [x.reshape(op.windows, -1, x.shape[1] // op.head_dim, op.head_dim).transpose(0, 2, 1, 3) for x in inputs]
        q, k, v = np.split(parts[0], [scored, 2 * scored], axis=1) if len(parts) == 1 else [parts[1], *np.split(parts[0], [scored], axis=1)]
        excluded, frozen, computed = golden.pair_masks(op)
        even, odd = (np.zeros((op.windows, op.heads, op.rows, op.head_dim), np.int64) for _ in range(2))
        for window, head, row in np.ndindex(op.windows, op.heads, op.rows):
            at = (window, head, row)
            codes = np.full(op.tokens, op.last_code, np.int64)
            if op.frozen is not None and op.frozen.mask.any():
                self.now["mask_decodes"] += op.tokens
            if op.frozen is not None:
                maps = window % len(op.frozen.mask)
                codes[frozen[at]] = op.frozen.codes[maps, head, row][frozen[at]].astype(np.int64) << (op.attention_bits - op.frozen.bits)
                self.now["frozen_codes"] += int(frozen[at].sum())
            columns = np.flatnonzero(computed[at])
            if len(columns):
                index = op.score_heads.index(head)
                scores = [self.dot(q[window, index, row] - op.q_zero, k[window, index, column] - op.k_zero) for column in columns]
                self.softmax(op, at, np.array(scores), columns, codes, frozen[at] & ~excluded[at])
            codes[excluded[at]] = op.last_code
            for column in range(op.tokens):
                silent = excluded[at][column] or (op.last_code_is_zero and codes[column] == op.last_code)
                is_stored_zero = excluded[at][column] or (silent and frozen[at][column])
                self.now["zero_code_macs"] += op.head_dim if is_stored_zero else 0
                self.now["value_macs"] += op.head_dim
                power = 0 if silent else 1 << (op.top_power - int(codes[column]) // 2)
                (odd if codes[column] % 2 else even)[at] += power * (v[window, head, column] - op.v_zero)
        even, odd = (narrow(total, datapath.accumulator_bits, datapath.overflow) for total in (even, odd))
        out = round_shift(even * op.multiplier_even + odd * op.multiplier_odd, op.out_shift, datapath.rounding)
        self.now["merged"] += out.size
        return golden.clip(out.transpose(0, 2, 1, 3).reshape(op.out.shape) + op.out_zero, op.out)

    def softmax(self, op: Attention, at, scores: np.ndarray, columns: np.ndarray, codes: np.ndarray, frozen: np.ndarray) -> None:
        """golden.softmax_codes on one row without the pairs that are not computed; its codes go where nothing is frozen."""
        window, head, row = at
        if op.logit_bias is not None:
            scores = scores + op.logit_bias[window % len(op.logit_bias), head, row, columns]
            self.now["logit_biases"] += scores.size
        short = op if op.frozen is None else replace(op, frozen=replace(op.frozen, row_log2=self.row_log2(op, at)))
        everything = np.ones((1, 1, 1, len(columns)), bool)
        narrowed = narrow(scores, self.program.datapath.accumulator_bits, self.program.datapath.overflow)[None, None, None]
        rounded = golden.softmax_codes(short, narrowed, everything, self.program.datapath, self.softmax_tap)[0, 0, 0]
        kept = ~frozen[columns]
        codes[columns[kept]] = rounded[kept]
        self.now["attention_codes"] += int(kept.sum())

    def softmax_tap(self, name: str, array: np.ndarray) -> None:
        self.now[{"exponents": "exponents", "log_sum": "logarithms"}[name.split(".")[-1]]] += array.size

    @staticmethod
    def row_log2(op: Attention, at) -> np.ndarray:
        assert op.frozen is not None
        window, head, row = at
        return op.frozen.row_log2[window % len(op.frozen.mask), head, row].reshape(1, 1, 1)

    def dot(self, left: np.ndarray, right: np.ndarray) -> int:
        self.now["score_macs"] += left.size
        return int(left @ right)


shapes = st.builds(
    Shape,
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([1, 4]),
    prefix=st.just(0),
    windows=st.sampled_from([1, 2]),
    queries=st.sampled_from([0, 0, 2]),
    attention_bits=st.just(4),
    freeze=st.sampled_from(FREEZES),
    frozen_bits=st.sampled_from([3, 4]),
    softmax=st.sampled_from(["paper", "renormalised"]),
    last_code_is_zero=st.booleans(),
    biased=st.booleans(),
    pooled=st.booleans(),
    fitted=st.booleans(),
)


@examples(40)
@given(shapes)
def test_every_operation_equals_an_instrumented_golden_run(shape):
    program = random_program(shape)
    (image,) = random_images(program, 1, 0)
    lean = Lean(program, image)
    golden.run(program, image, expected := {})
    for op in program.operations:
        np.testing.assert_array_equal(lean.values[op.out.name], expected[op.out.name])
    costs = count_operations(program)
    for name, work in ledger(program).items():
        found, macs = lean.counts[name], costs[name].macs
        assert asdict(work) == {kind: found[kind] for kind in asdict(work)}, name
        op = next(op for op in program.operations if op.out.name == name)
        if isinstance(op, Attention):
            counted_only = excluded_scores(op)  # published counts include pairs that windows exclude
            assert macs.scores == found["score_macs"] + counted_only
            assert macs.attention_value == found["value_macs"]
            assert zero_code_macs(op) == found["zero_code_macs"]
        else:
            assert macs.full == found["macs"]


def excluded_scores(op: Attention) -> int:
    excluded, frozen, _ = golden.pair_masks(op)
    counted = excluded & ~frozen if op.softmax == "renormalised" else excluded
    return int(counted.sum()) * op.head_dim


def looped_structure(program: Verified, op: Attention) -> int:
    """q, k and scores that no code from the softmax depends on."""
    of_q, of_k = (operation(program, name, Linear) for name in (op.inputs[-1], op.x))
    excluded, frozen, computed = golden.pair_masks(op)
    saved = 0
    for window, head in np.ndindex(op.windows, op.heads):
        if head not in op.score_heads:
            continue
        rows, columns, scores = set(), set(), 0
        for row in range(op.rows):
            if not any(~excluded[window, head, row] & ~frozen[window, head, row]):
                continue
            needed = np.flatnonzero(computed[window, head, row])
            rows |= {row} if len(needed) else set()
            columns |= set(needed.tolist())
            scores += len(needed)
        saved += ((op.rows - len(rows)) * len(of_q.weight) + (op.tokens - len(columns)) * len(of_k.weight)) * op.head_dim
        saved += (int(computed[window, head].sum()) - scores) * op.head_dim
    return saved


@examples(40)
@given(shapes)
def test_structure_saves_what_nothing_depends_on(shape):
    program = random_program(shape)
    op = operation(program, "block0.attn", Attention)
    assert structured_macs(program, op) == looped_structure(program, op)


def test_a_frozen_row_saves_its_query_and_under_the_paper_meaning_its_scores():
    program = random_program(Shape(seed=0, heads=1, head_dim=4))
    op = operation(program, "block0.attn", Attention)
    mask = np.zeros((1, 1, 5, 5), bool)
    mask[0, 0, 2] = True
    for softmax, scores in (("renormalised", 0), ("paper", 5 * 4)):
        frozen = replace(op, softmax=softmax, frozen=Frozen(mask, mask.astype(np.uint8), 4, np.zeros((1, 1, 5), np.int32)))
        assert structured_macs(program, frozen) == 4 * 4 + scores


def test_every_kind_of_work_has_its_steps():
    assert list(STEPS) == list(asdict(Work()))
    assert primitives(Work(requantised=2, gelu_lookups=3)) == Primitives(multiplies=2, simple=6, lookups=3)


def test_layernorm_is_priced_per_element_and_per_token():
    program = random_program(Shape(seed=0))
    op = operation(program, "block0.norm1", LayerNorm)
    assert ledger(program)["block0.norm1"] == Work(normalised=op.out.size, normalised_tokens=5)


@pytest.mark.parametrize("freeze", ["none", "empty"])
def test_nothing_frozen_needs_no_decoding(freeze):
    total = sum(ledger(random_program(Shape(seed=0, freeze=freeze))).values(), Work())
    assert (total.mask_decodes, total.frozen_codes) == (0, 0)
    assert total.exponents == total.attention_codes == 2 * 5 * 5
