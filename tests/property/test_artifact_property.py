"""The .eam file over random programs, arrays and manifests."""

import copy

import numpy as np
import pytest
from eam_files import parts, put_together
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from programs import FREEZES, Shape, random_program

from eamsim.artifact import ArtifactError, read, write
from eamsim.files.packing import BITS, limits, narrowest, pack, packed_bytes, unpack

SHAPES = st.builds(
    Shape,
    seed=st.integers(0, 1 << 32),
    depth=st.integers(0, 2),
    prefix=st.integers(1, 2),
    weight_bits=st.integers(2, 8),
    activation_bits=st.integers(2, 5),
    freeze=st.sampled_from(FREEZES),
    softmax=st.sampled_from(["paper", "renormalised"]),
    biased=st.booleans(),
    pooled=st.booleans(),
    extreme=st.booleans(),
)
INTEGERS = st.sampled_from([np.uint8, np.int32, np.int64]).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_side=0)))
NARROW_INTEGERS = st.sampled_from(sorted(BITS)[:-1]).flatmap(
    lambda packing: hnp.arrays(np.int64, hnp.array_shapes(), elements=st.integers(*limits(packing)))
)
BOOLEANS = hnp.arrays(np.bool_, hnp.array_shapes(min_side=0))
HOSTILE_NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 63, 64, 65, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, -1 << 63, 1 << 70])
HOSTILE = HOSTILE_NUMBERS | st.sampled_from(
    [None, True, 0.5, "", "image", "int32", "u1", "i64", "wrap", "saturate", [], [1], {}, {"kind": "Frozen"}]
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("artifact") / "a.eam"


@pytest.mark.slow
@examples(60)
@given(SHAPES)
def test_a_program_read_and_written_again_makes_the_same_bytes(path, shape):
    program = random_program(shape)
    write(path, program, {"seed": shape.seed})
    content = path.read_bytes()

    got, provenance = read(path)
    write(path, got, provenance)

    assert path.read_bytes() == content
    assert str(got) == str(program)


@given(INTEGERS | NARROW_INTEGERS | BOOLEANS)
def test_an_array_comes_back_from_the_narrowest_packing_that_holds_it(array):
    packing = narrowest(array)
    data = pack(array, packing)
    got = unpack(data, packing, array.shape, array.dtype.name)

    assert len(data) == packed_bytes(array.size, packing)
    assert got.flags.writeable
    np.testing.assert_array_equal(got, array, strict=True)
    for narrower in list(BITS)[: list(BITS).index(packing)]:
        low, high = limits(narrower)
        assert (array < low).any() or (array > high).any()


@given(hnp.arrays(np.uint8, st.integers(0, 40), elements=st.integers(0, 15)))
def test_codes_lie_low_nibble_first(codes):
    data = pack(codes, "u4")

    assert [byte >> shift & 15 for byte in data for shift in (0, 4)] == [*codes, *[0] * (len(codes) % 2)]


@given(BOOLEANS)
def test_masks_lie_lowest_bit_first(mask):
    data = int.from_bytes(pack(mask, "u1"), "little")

    assert data == sum(1 << index for index, is_set in enumerate(mask.ravel()) if is_set)


def leaves(tree, path=()):
    """Key paths of every value in a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] + [leaf for key, child in items for leaf in leaves(child, (*path, key))]


def put(tree, path, value):
    """The tree with the value at a key path."""
    if not path:
        return value
    tree[path[0]] = put(tree[path[0]], path[1:], value)
    return tree


@pytest.fixture(scope="module", params=[Shape(1, freeze="scattered"), Shape(2, windows=2, prefix=0, biased=True, pooled=True)])
def streams(path, request):
    write(path, random_program(request.param), {})
    return parts(path)


@pytest.mark.slow
@examples(200)
@given(data=st.data())
def test_a_manifest_with_one_value_replaced_is_refused_or_is_a_verified_program(path, streams, data):
    head, tensors = streams
    head = put(copy.deepcopy(head), data.draw(st.sampled_from(leaves(head))), data.draw(HOSTILE))
    put_together(path, head if isinstance(head, dict) else {"program": head}, tensors)

    try:
        program, _ = read(path)
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        write(path, program, {})
