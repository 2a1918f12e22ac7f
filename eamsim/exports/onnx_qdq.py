"""A program as a float ONNX model with quantise-dequantise pairs and INT4 weights: for viewers and compilers, approximate.

A program holds no scales, only their ratios, so every tensor is in units of its own code: activations have scale 1 and a zero point,
weights the scale M / 2^S of their channel. LayerNorm, softmax and logarithm are those of the reals; rounding is half to even;
signed values are not rounded at all. The exact form is `eamsim.exports.onnx_integer`.
"""

from __future__ import annotations

from math import log
from typing import assert_never

import numpy as np
import onnx
from onnx import TensorProto, helper

from eamsim.constraints import Verified, expect_verified
from eamsim.exports.onnx_graph import Graph, OnnxTensor
from eamsim.exports.onnx_integer import finished, heads_of, pairs_of
from eamsim.files.packing import pack
from eamsim.program import (
    Attention,
    Embed,
    Gather,
    Gelu,
    InputQuant,
    LayerNorm,
    Linear,
    Operation,
    Pool,
    Raw,
    Requant,
    Residual,
    Value,
)

CODE_TYPES = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}  # each saturates at its own range
NEVER = -1e9  # a logit that softmax turns into 0, also where a row has no other


def export(program: Verified) -> onnx.ModelProto:
    """The model: uint8 image in, float logits out, in the program's units up to its rounding. UserError as `onnx_export.export`."""
    expect_verified(program)
    graph, image = Graph(program.datapath), program.image
    pixels = graph.node("Identity", OnnxTensor(graph, image.name), name=f"{image.name}.codes")
    values = {image.name: graph.node("DequantizeLinear", pixels, 1.0, code_constant(graph, image, 0))}
    for op in program.operations:
        graph.scope = op.out.name
        values[op.out.name] = fitted(graph, translate(graph, op, program, values), op.out)
    info = helper.make_tensor_value_info(program.output.name, TensorProto.FLOAT, program.output.shape)
    return finished(program, graph, [info], "approximate: float32 with quantise-dequantise pairs, not equal to the program")


def fitted(graph: Graph, x: OnnxTensor, out: Value) -> OnnxTensor:
    """In the range of the output value: through a quantise-dequantise pair if it holds codes."""
    if out.signed or out.bits not in CODE_TYPES:
        x = x.clip(float(out.low), float(out.high))
    if out.signed:
        return graph.node("Identity", x, name=out.name)
    codes = graph.node("QuantizeLinear", x, 1.0, code_constant(graph, out, 0), name=f"{out.name}.codes")
    return graph.node("DequantizeLinear", codes, 1.0, code_constant(graph, out, 0), name=out.name)


def code_constant(graph: Graph, value: Value, number: int) -> OnnxTensor:
    """A constant of the type that holds the value's codes; ONNX Runtime does not take Clip before a UINT4, so 2 and 3 bits have 8."""
    bits = value.bits if value.bits in CODE_TYPES else 8 if value.bits < 8 else 16
    return graph.stored(graph.label("zero"), CODE_TYPES[bits], (), number.to_bytes(max(bits // 8, 1), "little"))


def translate(graph: Graph, op: Operation, program: Verified, values: dict[str, OnnxTensor]) -> OnnxTensor:
    """The operation's output before it is fitted."""
    x = values[op.x]
    match op:
        case InputQuant():
            return looked_up(graph, op.table.ravel(), graph.node("Cast", x, to=TensorProto.INT64) + np.array([0, 256, 512]))
        case Gather():
            return x.reshape(-1, op.granule)[op.indices].reshape(*op.out.shape)
        case Embed():
            return graph.node("Concat", op.prefix.astype(np.float32), x + op.position.astype(np.float32), axis=0)
        case LayerNorm():
            epsilon = op.variance_offset / op.out.shape[1] ** 2
            gain, offset = op.gain * 2.0 ** (op.fraction_bits - op.shift), op.offset * 2.0**-op.shift
            return graph.node("LayerNormalization", x, gain, offset, axis=-1, epsilon=epsilon)
        case Linear():
            if op.levels is not None:
                return linear(graph, op, looked_up(graph, op.levels, graph.node("Cast", x, to=TensorProto.INT64)), values)
            codes, zero = OnnxTensor(graph, f"{op.x}.codes"), code_constant(graph, program.values[op.x], op.x_zero)
            return linear(graph, op, graph.node("DequantizeLinear", codes, 1.0, zero), values)
        case Attention():
            return attention(graph, op, x, values)
        case Pool():
            return x.transpose(1, 0).sum().transpose(1, 0) * (op.multiplier * 2.0**-op.shift) + float(op.zero)
        case _:
            assert_never(op)


def looked_up(graph: Graph, table: np.ndarray, index: OnnxTensor) -> OnnxTensor:
    return graph.constant(table.astype(np.float32))[index]


def linear(graph: Graph, op: Linear, x: OnnxTensor, values: dict[str, OnnxTensor]) -> OnnxTensor:
    """x: less its zero point, or the levels of its codes."""
    epilogue = op.epilogue
    scale = epilogue.multiplier * 2.0**-epilogue.shift
    product = x @ weight_of(graph, op, scale) + op.bias * scale
    match epilogue:
        case Requant():
            return product + epilogue.zero.astype(np.float32)
        case Gelu():
            index = graph.node("Round", product) + float(epilogue.index_zero)
            index = index.clip(0.0, float(len(epilogue.table) - 1))
            return looked_up(graph, epilogue.table, graph.node("Cast", index, to=TensorProto.INT64))
        case Residual():
            return values[epilogue.operand] * 2.0**-epilogue.exponent_change + product
        case Raw():
            return product
        case _:
            assert_never(epilogue)


def weight_of(graph: Graph, op: Linear, scale: np.ndarray) -> OnnxTensor:
    """INT4 where 4 bits hold the codes, INT8 otherwise; codes and zero points are moved down by half the range."""
    kind, packing, half = (TensorProto.INT4, "u4", 8) if op.weight_bits <= 4 else (TensorProto.INT8, "u8", 128)
    # Flipping the top bit of a code is subtracting half the range, in two's complement.
    weight, zero = (
        graph.stored(f"{graph.scope}.{name}", kind, codes.shape, pack(codes ^ half, packing))
        for name, codes in (("weight", op.weight), ("weight_zero", op.weight_zero))
    )
    return graph.node("DequantizeLinear", weight, scale, zero, axis=1)


def attention(graph: Graph, op: Attention, x: OnnxTensor, values: dict[str, OnnxTensor]) -> OnnxTensor:
    """Softmax to the base 2, codes by a real logarithm, and one product with the values of the codes."""
    pairs = pairs_of(op)
    q, k, v = (part - float(zero) for part, zero in zip(heads_of(graph, op, x, values), (op.q_zero, op.k_zero, op.v_zero), strict=True))
    scores = q @ k.transpose(0, 1, 3, 2)
    if op.logit_bias is not None:
        scores = scores + op.logit_bias.astype(np.float32)
    one = 2.0**op.fraction_bits  # of the exponents and logarithms
    logits = scores * (op.score_multiplier * 2.0**-op.score_shift / one * log(2))
    weights = graph.node("Softmax", graph.node("Where", pairs.computed, logits, NEVER), axis=-1)
    kept = op.frozen.row_log2[..., None] if op.frozen and op.softmax == "renormalised" else 0
    half_steps = graph.node("Log", weights.clip(1e-30, 1.0)) * (-2 / log(2))
    codes = graph.node("Round", half_steps + 2 * (kept + op.log2_scale) / one)
    codes = graph.node("Where", pairs.fixed, pairs.codes.astype(np.float32), codes.clip(0.0, float(op.last_code)))
    powers = 2.0 ** (op.top_power - np.arange(op.last_code + 1) / 2)
    powers[-1] *= not op.last_code_is_zero
    probabilities = looked_up(graph, powers, graph.node("Cast", codes, to=TensorProto.INT64))
    context = (probabilities * (~pairs.excluded).astype(np.float32)) @ v
    scaled = context * (op.multiplier_even * 2.0**-op.out_shift) + float(op.out_zero)
    return scaled.transpose(0, 2, 1, 3).reshape(*op.out.shape)
