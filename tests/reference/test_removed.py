"""Removed heads: what is left computes what it did, and the bias of the projection holds what the mean of the others adds."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import Shape, operation, random_images, random_program

pytest.importorskip("torch", reason="needs the extra 'reference'")

from cost_model.work.counts import count
from eamsim import artifact, engine, golden
from eamsim.errors import UserError
from eamsim.program import Attention, Linear
from eamsim.unread import without_unread_rows
from reference.lowering.removed import mean_outputs, without_heads

shapes = st.builds(
    Shape,
    seed=st.integers(0, 2**32 - 1),
    heads=st.sampled_from([2, 3]),
    depth=st.sampled_from([1, 2]),
    windows=st.sampled_from([1, 2]),
    queries=st.sampled_from([0, 0, 2]),
    prefix=st.just(0),
    softmax=st.just("renormalised"),
    biased=st.booleans(),
    pooled=st.booleans(),
    detour=st.sampled_from(["none", "class"]),
).filter(lambda shape: shape.detour != "class" or shape.windows == 1)


def taps_of(program, image):
    taps = {}
    golden.run(program, image, taps)
    return taps


def outputs(program, images):
    return [{name: tap[None] for name, tap in taps_of(program, image).items()} for image in images]


def reader(program, name):
    """The Linear that reads a value, through Gathers."""
    op = next(op for op in program.operations if op.x == name)
    return op if isinstance(op, Linear) else reader(program, op.out.name)


@examples(40)
@given(shapes, st.data(), st.booleans())
def test_heads_that_stay_are_the_same_and_the_others_their_mean(shape, data, short):
    program = random_program(shape)
    program = without_unread_rows(program) if short else program
    gone = data.draw(st.sets(st.integers(0, shape.heads - 1), max_size=shape.heads - 1))
    images = random_images(program, 2, shape.seed)
    means = mean_outputs(program, outputs(program, images))
    left = without_heads(program, [gone, *[()] * (shape.depth - 1)], means)

    before, after = taps_of(program, images[0]), taps_of(left, images[0])
    stay = np.delete(np.arange(shape.heads), list(gone))
    op = program.attentions[0]
    channels = np.arange(op.out.shape[1]).reshape(shape.heads, -1)[stay].ravel()
    for tap in ("scores", "exponents", "log_sum", "codes", "even", "odd"):
        np.testing.assert_array_equal(after[f"{op.out.name}.{tap}"], before[f"{op.out.name}.{tap}"][:, stay])
    np.testing.assert_array_equal(after[op.out.name], before[op.out.name][:, channels])

    proj, narrow = reader(program, op.out.name), reader(left, op.out.name)
    others = np.setdiff1d(np.arange(len(proj.weight)), channels)
    mean = means[op.out.name]
    weight = proj.weight.astype(int) - proj.weight_zero
    for channel, (old, new) in enumerate(zip(proj.bias, narrow.bias, strict=True)):
        added = sum(((Fraction(int(mean.sums[c]), mean.rows) - proj.x_zero) * int(weight[c, channel]) for c in others), Fraction())
        assert abs(int(new) - int(old) - added) <= Fraction(1, 2)
    np.testing.assert_array_equal(narrow.weight, proj.weight[channels])
    np.testing.assert_array_equal(engine.Engine(left).run(np.array(images)), [golden.run(left, image) for image in images])
    assert count(left).macs.full <= count(program).macs.full


def test_the_mean_is_of_the_rows_that_are_read():
    program = random_program(Shape(seed=3, depth=2))
    images = random_images(program, 3, 3)
    means = mean_outputs(program, outputs(program, images))
    short = without_unread_rows(program)
    of_short = mean_outputs(short, outputs(short, images))

    assert [means[name].rows for name in ("block0.attn", "block1.attn")] == [15, 3]
    for name, mean in means.items():
        assert mean.rows == of_short[name].rows
        np.testing.assert_array_equal(mean.sums, of_short[name].sums)


def test_what_is_left_is_counted():
    program = random_program(Shape(seed=3, heads=3, depth=2, softmax="renormalised"))
    means = mean_outputs(program, outputs(program, random_images(program, 1, 3)))
    left = without_heads(program, [{1}, ()], means)
    tokens, width, head_dim = 5, 12, 4

    assert count(program).macs.full - count(left).macs.full == 4 * tokens * width * head_dim + 2 * tokens**2 * head_dim
    assert artifact.program_sha256(without_heads(program, [(), ()], {})) == artifact.program_sha256(program)
    assert operation(left, "block0.attn", Attention).heads == 2


def test_a_block_keeps_a_head():
    program = random_program(Shape(seed=3))
    means = mean_outputs(program, outputs(program, random_images(program, 1, 3)))

    with pytest.raises(UserError, match=r"^block0.attn: expected a head that stays, got all 2 removed; freeze the last one instead$"):
        without_heads(program, [{0, 1}], means)
    with pytest.raises(UserError, match=r"^removed: "):
        without_heads(program, [], means)


def test_what_else_reads_the_heads_is_refused():
    program = random_program(Shape(seed=3, detour="split"))
    means = mean_outputs(program, outputs(program, random_images(program, 1, 3)))

    with pytest.raises(UserError, match=r"^block0.context: expected a Linear to read the heads' output, got Gather; remove no head there"):
        without_heads(program, [{0}], means)


def test_a_bias_that_leaves_32_bits_is_refused():
    program = random_program(Shape(seed=1, heads=2, depth=1))
    attention = program.attentions[0]
    means = mean_outputs(program, outputs(program, random_images(program, 1, 0)))
    means[attention.out.name] = replace(means[attention.out.name], sums=np.full(attention.out.shape[1], 1 << 50))
    with pytest.raises(UserError, match=r"its bias is .* beyond 32 bits"):
        without_heads(program, [{0}], means)
