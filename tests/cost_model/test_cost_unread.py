"""Elements that nobody reads: spoiling them changes no logit, and a DeiT-T's are all but one of its last block."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_images, random_program

from cost_model.models.architectures import ARCHITECTURES
from cost_model.models.skeleton import skeleton
from cost_model.work.counts import count_operations
from cost_model.work.unread import read_elements, unread_macs
from eamsim import golden

shapes = st.builds(
    Shape,
    seed=st.integers(0, 2**32 - 1),
    depth=st.sampled_from([1, 2]),
    windows=st.sampled_from([1, 2]),
    queries=st.sampled_from([0, 0, 2]),
    prefix=st.just(0),
    freeze=st.sampled_from(FREEZES),
    softmax=st.sampled_from(["paper", "renormalised"]),
    pooled=st.booleans(),
)


@examples(30)
@given(shapes)
def test_spoiled_elements_change_no_logit(shape):
    program = random_program(shape)
    (image,) = random_images(program, 1, 0)
    read, values = read_elements(program), {program.image.name: image.astype(np.int64)}
    for op in program.operations:
        out = golden.execute(op, values, program.datapath, lambda name, value: None)
        out[~read[op.out.name]] = op.out.high
        values[op.out.name] = out
    np.testing.assert_array_equal(values[program.output.name].ravel(), golden.run(program, image))


def test_all_rows_but_one_of_the_last_block():
    found = unread_macs(skeleton(ARCHITECTURES["deit_tiny_patch16_224"]))
    n, d, rest = 197, 192, 196
    assert found == {
        "block11.attn.qkv": rest * d * d,  # q
        "block11.attn": rest * 2 * n * d,
        "block11.attn.proj": rest * d * d,
        "block11.mlp.fc1": rest * 4 * d * d,
        "block11.mlp.fc2": rest * 4 * d * d,
    }


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("swin")])
def test_a_pooled_network_reads_everything(name):
    assert unread_macs(skeleton(ARCHITECTURES[name])) == {}


@pytest.mark.parametrize("freeze", FREEZES)
def test_what_is_left_out_is_part_of_the_count(freeze):
    program = random_program(Shape(seed=4, depth=2, freeze=freeze, softmax="renormalised"))
    costs, found = count_operations(program), unread_macs(program)
    q = ["attn.qkv"] if freeze != "all" else []  # wholly frozen heads have none
    assert list(found) == [f"block1.{name}" for name in (*q, "attn", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert found["block1.mlp.fc1"] * 5 == costs["block1.mlp.fc1"].macs.full * 4
    assert all(macs < costs[name].macs.full for name, macs in found.items())


@pytest.mark.parametrize("freeze", FREEZES)
def test_a_window_that_nobody_reads_is_counted_once(freeze):
    program = random_program(Shape(seed=4, windows=4, prefix=0, freeze=freeze, softmax="renormalised"))
    costs, found = count_operations(program), unread_macs(program)
    assert found["block0.attn.qkv"] * 4 >= costs["block0.attn.qkv"].macs.full * 3
    assert all(macs <= costs[name].macs.full for name, macs in found.items())
