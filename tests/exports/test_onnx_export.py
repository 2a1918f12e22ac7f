"""The ONNX export: its primitives at their edges, what the model declares, and that a wrong one is found out."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import floor, isqrt

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from programs import Shape, operation, random_images, random_program

from eamsim import golden
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.exports import onnx_integer as onnx_export
from eamsim.exports.onnx_graph import Graph, OnnxTensor
from eamsim.program import Datapath, Linear, Value
from eamsim.traces.difference import Taps, first_difference

FULL = Shape(seed=5, windows=4, prefix=0, side=8, freeze="scattered", softmax="renormalised", biased=True)


def evaluated(build: Callable[[Graph, OnnxTensor], OnnxTensor], x: np.ndarray, datapath: Datapath | None = None) -> np.ndarray:
    """The tensor that `build` makes of x, as ONNX Runtime and the reference evaluator both find it."""
    graph = Graph(datapath or Datapath())
    graph.publish("y", build(graph, OnnxTensor(graph, "x")), x.shape)
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, x.shape)]
    proto = onnx.helper.make_graph(graph.nodes, "test", inputs, graph.taps, graph.initializers)
    opset = onnx.helper.make_opsetid("", onnx_export.OPSET)
    model = onnx.helper.make_model(proto, opset_imports=[opset], ir_version=onnx_export.IR_VERSION)
    found = onnx_export.runtime_onnxruntime(model)(x)["y"]
    assert_array_equal(found, onnx_export.runtime_reference(model)(x)["y"])
    return found


def nearest(exact: Fraction, rounding: str) -> int:
    below = floor(exact)
    if exact - below != Fraction(1, 2) or rounding == "floor":
        return below + (exact - below > Fraction(1, 2) and rounding != "floor")
    return {"half_up": below + 1, "half_even": below + below % 2, "half_away": below + (exact > 0)}[rounding]


@pytest.mark.parametrize("rounding", ["half_up", "half_even", "half_away", "floor"])
@pytest.mark.parametrize("shift", [0, 1, 2, 5, 31, 62])
def test_round_shift(rounding, shift):
    ties = np.arange(-5, 6) * (1 << max(shift - 1, 0)) if shift < 60 else np.array([-1, 0, 1]) * (1 << 61)
    x = np.unique(np.concatenate([ties - 1, ties, ties + 1, [-(2**63) + 1, 2**62]]))
    found = evaluated(lambda _, x: onnx_export.round_shift(x, 1 << shift, rounding), x)
    assert found.tolist() == [nearest(Fraction(n, 1 << shift), rounding) for n in x.tolist()]


def test_isqrt_and_bit_length():
    roots = np.array([1, 2, 3, 2**15, 2**16 - 1, 2**30 + 1, 2**31 - 1])
    x = np.concatenate([[0, 1, 2**62 - 1], roots**2, roots**2 - 1, (roots**2 + 2 * roots)])[:, None]
    found = evaluated(lambda graph, x: onnx_export.isqrt(graph, x, (len(roots) * 3 + 3, 1)), x)
    assert found.ravel().tolist() == [isqrt(n) for n in x.ravel().tolist()]
    x = np.array([[0], [1], [2], [3], [4], [255], [256], [2**31 - 1]])
    assert evaluated(lambda _, x: onnx_export.bit_length(x, 31), x).ravel().tolist() == [0, 1, 2, 2, 3, 8, 9, 31]


def test_narrow():
    x = np.array([-129, -128, 127, 128, 2**47, -(2**60) - 1])
    for rule, expected in {
        "wrap": [127, -128, 127, -128, 0, -1],
        "saturate": [-128, -128, 127, 127, 127, -128],
        "error": x.tolist(),
    }.items():
        path = Datapath(accumulator_bits=8, overflow=rule)  # pyright: ignore[reportArgumentType]
        assert evaluated(lambda _, x, path=path: onnx_export.narrow(x, path), x).tolist() == expected


@pytest.fixture(scope="module")
def program() -> Verified:
    return random_program(FULL)


def test_outputs_are_the_logits_or_every_tap(program: Verified):
    expected: Taps = {}
    golden.run(program, random_images(program, 1, 0)[0], expected)
    assert [output.name for output in onnx_export.export(program).graph.output] == ["head"]
    outputs = onnx_export.export(program, taps=True).graph.output
    assert [output.name for output in outputs] == list(expected)
    shapes = [tuple(axis.dim_value for axis in output.type.tensor_type.shape.dim) for output in outputs]
    assert shapes == [integers.shape for integers in expected.values()]


def test_the_model_is_of_integers_alone(program: Verified):
    model = onnx.shape_inference.infer_shapes(onnx_export.export(program), strict_mode=True, data_prop=True)
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {info.type.tensor_type.elem_type for info in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    name_of = onnx.TensorProto.DataType.Name
    assert {name_of(kind) for kind in types} <= {"INT64", "BOOL", "UINT4", "UINT8", "INT8", "UINT16", "INT16", "INT32"}
    assert {node.domain for node in model.graph.node} == {""}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = operation(program, "block0.mlp.fc1", Linear).weight
    assert_array_equal(onnx.numpy_helper.to_array(stored["block0.mlp.fc1.weight.u4"]).astype(np.uint8), weight)
    assert len(stored["block0.mlp.fc1.weight.u4"].raw_data) == weight.size / 2


def test_nodes_are_named_by_block(program: Verified):
    model = onnx_export.export(program)
    labels = {node.name for node in model.graph.node}
    assert len(labels) == len(model.graph.node)
    groups = {label.rsplit("/", 1)[0] for label in labels}
    assert groups == {"/image", *("/" + op.out.name.replace(".", "/") for op in program.operations)}
    assert model.doc_string == str(program)


def test_names_that_onnx_cannot_tell_apart(program: Verified):
    name = "constant_1"
    first, *rest = program.operations
    renamed = [replace(op, x=name) if op.x == "input" else op for op in rest]
    program = replace(program, operations=(replace(first, out=replace(first.out, name=name)), *renamed))
    with pytest.raises(UserError, match=r"random: expected names that ONNX can tell apart, got .*; rename the values"):
        onnx_export.export(program, taps=True)


FAULTS: dict[str, tuple[str, Callable]] = {
    "rounding": ("patch_embed", lambda x, power, rounding: right_shift(x, power, "floor")),
    "shift": ("patch_embed", lambda x, power, rounding: right_shift(x, power * np.int64(2), rounding)),
}
right_shift = onnx_export.round_shift


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_shift_is_named(program: Verified, fault: str, monkeypatch: pytest.MonkeyPatch):
    tap, wrong = FAULTS[fault]
    monkeypatch.setattr(onnx_export, "round_shift", wrong)
    assert first_wrong_tap(program, onnx_export.export(program, taps=True)) == tap


def test_a_wrong_integer_is_named(program: Verified):
    """Swapped nibbles of one weight, and one bit of the frozen codes."""
    for name, tap in {"block0.mlp.fc1.weight.u4": "block0.mlp.fc1.acc", "block0.attn.frozen.u4": "block0.attn.codes"}.items():
        model = onnx_export.export(program, taps=True)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.raw_data = bytes(byte >> 4 | byte << 4 & 0xF0 for byte in tensor.raw_data)
        assert first_wrong_tap(program, model) == tap


def first_wrong_tap(program: Verified, model: onnx.ModelProto) -> str | None:
    image, expected = random_images(program, 2, 0)[1], {}
    golden.run(program, image, expected)
    difference = first_difference(expected, onnx_export.runtime_onnxruntime(model)(image))
    return difference and difference.tap


def test_values_of_any_number_of_axes():
    program = random_program(Shape(seed=1))
    gather = program.operations[1]
    value = Value(gather.out.name, (2, 1, 2, 1, 12), gather.out.bits)
    program = replace(program, operations=(program.operations[0], replace(gather, out=value)))
    assert first_wrong_tap(program, onnx_export.export(program, taps=True)) is None
