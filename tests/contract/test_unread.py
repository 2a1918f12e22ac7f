"""A program without its unread rows: equal outputs in fewer multiply-accumulates."""

from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import DETOURS, FREEZES, Shape, random_images, random_program

from cost_model.work.counts import count
from cost_model.work.unread import unread_macs
from eamsim import artifact, engine, golden
from eamsim.unread import without_unread_rows

ROOT = Path(__file__).parents[2]
TRAINED = {  # program, photographs, share of the MACs that nobody reads
    "digits": (ROOT / "traces" / "digits.eam", ROOT / "eamsim" / "data" / "digits" / "digits_test.npz", 0.2622),
    "cifar10": (ROOT / "traces" / "cifar10-deit.eam", ROOT.parent / "shared" / "data" / "cifar10_test5k.npz", 0.1376),
}
shapes = st.builds(
    Shape,
    seed=st.integers(0, 2**32 - 1),
    depth=st.sampled_from([1, 2]),
    windows=st.sampled_from([1, 2]),
    queries=st.sampled_from([0, 0, 2]),
    prefix=st.just(0),
    freeze=st.sampled_from(FREEZES),
    softmax=st.sampled_from(["paper", "renormalised"]),
    biased=st.booleans(),
    pooled=st.booleans(),
    detour=st.sampled_from(DETOURS),
).filter(lambda shape: shape.detour not in ("class", "split") or shape.windows == 1)


@examples(60)
@given(shapes)
def test_outputs_are_equal_and_what_stays_is_read_or_cannot_be_left_out(shape):
    program = random_program(shape)
    short = without_unread_rows(program)
    for image in random_images(program, 2, shape.seed):
        np.testing.assert_array_equal(golden.run(short, image), golden.run(program, image))
    saved = count(program).macs.full - count(short).macs.full
    assert saved == sum(unread_macs(program).values()) - sum(unread_macs(short).values()) >= 0
    assert artifact.program_sha256(without_unread_rows(short)) == artifact.program_sha256(short)


@pytest.mark.parametrize("freeze", ["none", "rows", "scattered"])
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
def test_of_the_last_block_only_the_class_token_is_left_but_for_keys_and_values(freeze, softmax):
    program = random_program(Shape(seed=3, depth=2, freeze=freeze, softmax=softmax))
    short = without_unread_rows(program)
    assert list(unread_macs(program)) == [f"block1.{name}" for name in ("attn.qkv", "attn", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert short.values["block1.mlp.fc2"].shape == (1, 8)
    added, gone = {"block1.attn.q", "block1.attn.q.x", "block1.attn.kv", "block1.attn.proj.operand"}, {"block1.attn.qkv"}
    assert set(short.values) ^ set(program.values) == added | gone
    assert unread_macs(short) == {}


@pytest.mark.parametrize("detour", ["twice", "qkv.norm", "qkv.gather"])
def test_where_no_linear_of_its_own_makes_q_the_rows_leave_after_the_attention(detour):
    short = without_unread_rows(random_program(Shape(seed=3, detour=detour)))
    assert {"block0.attn.proj.x", "block0.attn.proj.operand"} <= set(short.values)
    assert (short.values["block0.attn"].shape[0], short.values["block0.mlp.fc2"].shape[0]) == (5, 1)


@pytest.mark.parametrize("detour", ["none", "split"])
def test_a_program_that_reads_all_its_rows_is_the_same(detour):
    program = random_program(Shape(seed=5, pooled=True, detour=detour))
    assert without_unread_rows(program).operations == program.operations


@pytest.mark.parametrize("name", TRAINED)
def test_logits_of_trained_networks_are_equal_on_photographs(name):
    path, data, saved = TRAINED[name]
    if not data.exists():
        pytest.skip(f"needs {data.name} in ../shared/data")
    program, _ = artifact.read(path)
    short, images = without_unread_rows(program), np.load(data)["images"][:2000]
    before, after = engine.Engine(program, threads=1), engine.Engine(short, threads=1)
    for start in range(0, len(images), 50):
        batch = images[start : start + 50]
        np.testing.assert_array_equal(after.run(batch), before.run(batch))
    assert 1 - count(short).macs.full / count(program).macs.full == pytest.approx(saved, abs=1e-4)
    assert unread_macs(short) == {}
