"""Engine.run: batches, threads, taps on request, what is refused, and the compiled code kept on disk."""

import re
import subprocess
import sys
from dataclasses import replace

import numba
import numpy as np
import pytest
from programs import Shape, operation, random_images, random_program

from eamsim import engine, golden
from eamsim.constraints import Verified
from eamsim.engine import team
from eamsim.engine.ir import softmax
from eamsim.engine.kernels import linear
from eamsim.engine.memory import Constants
from eamsim.engine.plan import ATTEND, make_plan, place_values
from eamsim.errors import UserError
from eamsim.program import Attention, Datapath, Gather, Linear, Operation, Value


@pytest.fixture(scope="module")
def program() -> Verified:
    return random_program(Shape(seed=5, side=8, heads=3, head_dim=5, hidden=33, depth=2, freeze="scattered", biased=True))


def with_operation(program: Verified, changed: Operation) -> Verified:
    return replace(program, operations=tuple(changed if op.out.name == changed.out.name else op for op in program.operations))


def test_the_result_does_not_depend_on_batch_or_threads(program):
    images = random_images(program, 2 * engine.MAX_BATCH + 3, 1)
    single = engine.Engine(program, threads=1)
    one_by_one = np.concatenate([single.run(images[i : i + 1]) for i in range(len(images))])
    assert one_by_one.dtype == np.int32
    for threads in range(1, team.most_threads() + 1):
        loaded = engine.Engine(program, threads=threads)
        for batch in (3, 8, len(images)):
            parts = [loaded.run(images[start : start + batch]) for start in range(0, len(images), batch)]
            np.testing.assert_array_equal(np.concatenate(parts), one_by_one)


def test_taps_are_int64_by_name_and_change_nothing(program):
    images = random_images(program, engine.MAX_BATCH + 1, 2)
    loaded = engine.Engine(program)
    logits, taps = loaded.run(images, taps=True)
    np.testing.assert_array_equal(logits, loaded.run(images))
    np.testing.assert_array_equal(taps[program.output.name].reshape(len(images), -1), logits)
    assert {op.out.name for op in program.operations} <= taps.keys()
    assert {array.dtype for array in taps.values()} == {np.dtype(np.int64)}
    _, some = loaded.run(images, taps=lambda name: name.endswith(".codes"))
    assert set(some) == {name for name in taps if name.endswith(".codes")}
    for name, array in some.items():
        np.testing.assert_array_equal(array, taps[name])


def test_a_value_nobody_reads_lies_apart_from_what_is_written_while_it_is_hashed(program):
    read = next(op for op in program.operations if isinstance(op, Linear) and not op.out.signed)
    unread = replace(read, out=replace(read.out, name="unread"))
    at = program.operations.index(read)
    places, _, _ = place_values(replace(program, operations=(*program.operations[:at], unread, *program.operations[at:])))
    assert abs(places["unread"] - places[read.out.name]) >= read.out.size


def test_an_empty_batch_has_no_logits(program):
    logits, taps = engine.Engine(program).run(np.empty((0, *program.image.shape), np.uint8), taps=True)
    assert logits.shape == (0, program.output.size)
    assert taps[program.output.name].shape == (0, *program.output.shape)


@pytest.mark.parametrize("threads", range(1, team.most_threads() + 1))
def test_a_program_without_scratch_runs_on_any_number_of_threads(threads):
    gather = Gather("image", Value("out", (3, 2), 8), np.array([5, 0, 5], np.int32), granule=2)
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    program = Verified("gather", Value("image", (2, 2, 3), 8), (gather,))
    np.testing.assert_array_equal(engine.Engine(program, threads).run(images), [[10, 11, 0, 1, 10, 11], [22, 23, 12, 13, 22, 23]])


@pytest.mark.parametrize("threads", [0, -1, 4096])
def test_threads_out_of_range_are_refused(program, threads):
    with pytest.raises(UserError, match=f"engine threads: expected 1 to .*, got {threads}"):
        engine.Engine(program, threads=threads)


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3), np.int32), np.zeros((1, 8, 9, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)])
def test_images_of_another_kind_are_refused(program, images):
    with pytest.raises(UserError, match=r"images: expected uint8 \[batch, 8, 8, 3\], got"):
        engine.Engine(program).run(images)


CHILD = """
import sys; sys.path.insert(0, "tests/support")
from programs import Shape, random_images, random_program
from eamsim import engine, golden
from eamsim.engine.ir import softmax
from eamsim.engine.kernels import linear
from eamsim.engine.kernels.fixedpoint import ROUNDINGS
from eamsim.engine.memory import Constants
from eamsim.engine.plan import ATTEND, make_plan, place_values
program = random_program(Shape(seed=1))
engine.Engine(program).run(random_images(program, 1, 1))
print(sum(engine.forward.stats.cache_hits.values()), sum(engine.forward.stats.cache_misses.values()))
"""


def test_another_process_loads_the_compiled_code_from_disk(program, request):
    engine.Engine(program).run(random_images(program, 1, 5))
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, cwd=request.config.rootpath)
    assert child.stdout.split() == ["1", "0"]


FLOAT = re.compile(r"\b(half|bfloat|float|double|fp128|x86_fp80|v\d+f\d+|[su]itofp|fpto[su]i)\b")


def module_of(function) -> str:
    """LLVM IR of a compiled function and all it calls; of one loaded from disk, too, for which Numba's inspect_llvm has nothing."""
    return "".join(str(overload.library._get_module_for_linking()) for overload in function.overloads.values())


def test_no_kernel_has_a_floating_point_type_or_instruction(program):
    engine.Engine(program).run(random_images(program, 1, 6))
    module = module_of(engine.forward)
    assert "define" in module
    assert not [line for line in module.splitlines() if FLOAT.search(line)]
    halved = numba.njit("int64(int64)")(lambda x: int(x * 0.5))
    assert FLOAT.search(module_of(halved))


@pytest.mark.parametrize("freeze", ["none", "scattered", "rows", "units", "heads"])
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
@pytest.mark.parametrize("rounding", ["half_up", *(pytest.param(name, marks=pytest.mark.slow) for name in ("half_away", "floor"))])
def test_long_rows_of_tokens_equal_golden_with_taps_and_without(freeze, softmax, rounding):
    """Beyond one vector and one register tile in every direction, as random programs rarely are; frozen heads have no scores."""
    shape = Shape(seed=len(freeze), side=18, heads=2, head_dim=32, freeze=freeze, softmax=softmax, datapath=Datapath(rounding=rounding))
    program = random_program(replace(shape, side=22) if freeze == "units" else shape)  # two blocks of rows
    images, outputs = random_images(program, 2, 7), {op.out.name for op in program.operations}
    loaded = engine.Engine(program)
    _, untapped = loaded.run(images, taps=outputs.__contains__)
    _, tapped = loaded.run(images, taps=True)
    for number, image in enumerate(images):
        expected: dict[str, np.ndarray] = {}
        golden.run(program, image, expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(tapped[name][number], array, name)
            if name in outputs:
                np.testing.assert_array_equal(untapped[name][number], array, name)


def sixteen_bits(op: Attention, fields: dict, difference: np.ndarray, half: int) -> np.ndarray:
    """Exponents of score differences as lanes of 16 bits find them."""
    shifted = np.minimum(difference, fields["word_cap"]) << fields["word_up"]
    assert shifted.max() < 1 << 16
    high = (shifted * fields["word_multiplier"] >> 16) + half * fields["word_half"]
    assert high.max() < 1 << 16
    return high >> fields["word_down"]


@pytest.mark.parametrize("half", [0, 1])
def test_sixteen_bits_are_chosen_only_where_no_power_and_no_code_differs(program, half):
    """Every difference of two scores, for many ratios: the exponent is exact, or both are beyond what a power or a code can tell."""
    rng, plain, chosen = np.random.default_rng(half), operation(program, "block0.attn", Attention), 0
    for _ in range(300):
        f, bound = int(rng.integers(1, 9)), (-int(rng.integers(1, 1 << 15)), int(rng.integers(1, 1 << 15)))
        exp2 = np.round(2.0 ** (15 - np.arange(1 << f) / (1 << f))).astype(np.int32)
        multiplier, shift = int(rng.integers(1, 1 << 16)), int(rng.integers(0, 31))
        op = replace(plain, exp2=exp2, score_multiplier=multiplier, score_shift=shift, log2_scale=int(rng.integers(-16 << f, 4 << f)))
        fields = softmax.plan_words(op, bound, Constants())
        if not fields["in_words"]:
            continue
        chosen += 1
        difference = np.arange(bound[1] - bound[0] + 1, dtype=np.int64)
        exact = difference * multiplier + (half << shift >> 1) >> shift
        found = sixteen_bits(op, fields, difference, half)
        assert found.max() < 1 << 15
        wrong = exact != found
        silent = (found[wrong] >> f > op.exp2_bits) & (2 * (found[wrong] + op.log2_scale) >> f >= op.last_code)
        assert silent.all()
        assert (exact[wrong] >= found[wrong]).all()
    assert chosen > 50


def test_scratch_holds_a_block_of_scores():
    """Of many tokens, so that nothing else in the program needs as much."""
    plan = make_plan(random_program(Shape(seed=3, side=40, heads=1, head_dim=16)))
    record = plan.records[plan.records["kind"] == ATTEND][0]
    scores = record["block_rows"] * record["row_bytes"]
    assert scores > linear.TOKENS * linear.CHANNELS
    assert plan.word_scratch >= scores
    assert plan.byte_scratch >= 3 * scores
