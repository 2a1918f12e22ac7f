"""A program as an ONNX model of standard integer operators: docs/spec/datapath.md, read once more, and two runtimes that execute it.

No node computes a float. ONNX's `Div` truncates and `Mod` takes the divisor's sign, so `x >> s` is `(x - Mod(x, 2^s)) / 2^s`;
`BitShift` takes no signed integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from eamsim import __version__
from eamsim.constraints import Verified, expect_verified
from eamsim.errors import UserError
from eamsim.exports.onnx_graph import Graph, OnnxTensor, Operand
from eamsim.program import (
    Attention,
    Datapath,
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
    Rounding,
    Value,
)

OPSET, IR_VERSION = 21, 10  # the first with 4-bit tensors
ROOT_BITS = 31  # a variance is below 2^62
POWERS = np.int64(1) << np.arange(63)

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def export(program: Verified, taps: bool = False) -> onnx.ModelProto:
    """The model: one image in, as the program takes it; the last value out, and every other tap too where `taps` is set.

    Outputs are int64 and named as the taps are (docs/spec/datapath.md section 4), in the order of the page. The model has passed
    `onnx.checker`, shapes included. Raises UserError for names that ONNX cannot tell apart.
    """
    expect_verified(program)
    image = program.image
    graph = Graph(program.datapath)
    values = {image.name: graph.node("Cast", OnnxTensor(graph, image.name), to=TensorProto.INT64)}
    for op in program.operations:
        graph.scope = op.out.name
        values[op.out.name] = graph.publish(op.out.name, translate(graph, op, values), op.out.shape)
    outputs = graph.taps if taps else graph.taps[-1:]
    return finished(program, graph, outputs, "exact: int64, equal to the golden interpreter at every tap")


def finished(program: Verified, graph: Graph, outputs: list[onnx.ValueInfoProto], arithmetic: str) -> onnx.ModelProto:
    """The checked model around a graph; taps that are no outputs keep their shapes. UserError where names collide."""
    image, inner = program.image, [tap for tap in graph.taps if tap not in outputs]
    inputs = [helper.make_tensor_value_info(image.name, TensorProto.UINT8, image.shape)]
    proto = helper.make_graph(graph.nodes, program.name or "program", inputs, outputs, graph.initializers, value_info=inner)
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="eamsim",
        producer_version=__version__,
        doc_string=str(program),
    )
    helper.set_model_props(model, {"arithmetic": arithmetic})
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{program.name}: expected names that ONNX can tell apart, got '{reason}'; rename the values") from error
    return model


def runtime_onnxruntime(model: onnx.ModelProto) -> Run:
    """Image -> outputs by name, executed by ONNX Runtime as written: no graph optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda image: _by_name(model, session.run(None, {model.graph.input[0].name: image}))


def runtime_reference(model: onnx.ModelProto) -> Run:
    """Image -> outputs by name, executed by onnx's ReferenceEvaluator."""
    evaluator = ReferenceEvaluator(model)
    return lambda image: _by_name(model, evaluator.run(None, {model.graph.input[0].name: image}))


def _by_name(model: onnx.ModelProto, outputs: Iterable) -> dict[str, np.ndarray]:
    return {info.name: np.asarray(array) for info, array in zip(model.graph.output, outputs, strict=True)}


# Arithmetic of section 1.


def round_shift(x: OnnxTensor, power: Operand, rounding: Rounding) -> OnnxTensor:
    """x / 2^s, where power = 2^s: the floor, plus 1 where the remainder is above a half, or at one and the tie goes up."""
    remainder = x % power
    floor = (x - remainder) / power
    match rounding:
        case "floor":
            return floor
        case "half_up":
            tie_goes_up = 1
        case "half_even":
            tie_goes_up = floor % 2
        case "half_away":
            tie_goes_up = x >= 0
        case _:
            assert_never(rounding)
    return floor + (remainder * 2 + tie_goes_up > power)


def narrow(total: OnnxTensor, datapath: Datapath) -> OnnxTensor:
    """The finished sum in the accumulator."""
    half = 1 << (datapath.accumulator_bits - 1)
    match datapath.overflow:
        case "error":
            return total
        case "wrap":
            return (total + half) % (2 * half) - half
        case "saturate":
            return total.clip(-half, half - 1)
        case _:
            assert_never(datapath.overflow)


def fit(x: OnnxTensor, out: Value) -> OnnxTensor:
    """clip of the page: into the range of the output value."""
    return x.clip(out.low, out.high)


def bit_length(x: OnnxTensor, bits: int) -> OnnxTensor:
    """Of x [..., 1] below 2^bits: how many of 1, 2, 4, ... x reaches."""
    return (x >= POWERS[:bits]).sum()


def isqrt(graph: Graph, x: OnnxTensor, shape: tuple[int, ...]) -> OnnxTensor:
    """floor(sqrt(x)) of x below 2^62, bit by bit from the top, as a Scan over the powers of two."""
    body = Graph(graph.datapath, f"{graph.scope}.isqrt")
    rest, root, power = (OnnxTensor(body, f"{body.scope}.{name}") for name in ("x", "root", "power"))
    trial = root + power
    results = [body.node("Identity", rest), root + power * (rest >= trial * trial)]

    def info(tensor: OnnxTensor, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor.name, TensorProto.INT64, shape)

    inputs, outputs = [info(rest, shape), info(root, shape), info(power, ())], [info(result, shape) for result in results]
    loop = helper.make_graph(body.nodes, "isqrt", inputs, outputs)
    zero, powers = graph.constant(np.zeros(shape, np.int64)), graph.constant(POWERS[:ROOT_BITS][::-1])
    label = graph.label("Scan")
    names = [f"{label}_x", label]
    graph.nodes.append(helper.make_node("Scan", [x.name, zero.name, powers.name], names, label, body=loop, num_scan_inputs=1))
    return OnnxTensor(graph, label)


# The operations of section 2.


def translate(graph: Graph, op: Operation, values: dict[str, OnnxTensor]) -> OnnxTensor:
    """The operation's output from its inputs; intermediates are published on the way."""
    x = values[op.x]
    match op:
        case InputQuant():
            return graph.constant(op.table.ravel())[x + np.array([0, 256, 512])]
        case Gather():
            return x.reshape(-1, op.granule)[op.indices]
        case Embed():
            position = graph.packed("position", op.position)
            return graph.node("Concat", op.prefix, fit(x + position, op.out), axis=0)
        case LayerNorm():
            return layer_norm(graph, op, x)
        case Linear():
            return linear(graph, op, x, values)
        case Attention():
            return attention(graph, op, x, values)
        case Pool():
            total = x.transpose(1, 0).sum().transpose(1, 0)
            return fit(round_shift(total * op.multiplier, 1 << op.shift, graph.datapath.rounding) + op.zero, op.out)
        case _:
            assert_never(op)


def layer_norm(graph: Graph, op: LayerNorm, x: OnnxTensor) -> OnnxTensor:
    rounding, (tokens, channels) = graph.datapath.rounding, op.out.shape
    s1, s2 = x.sum(), (x * x).sum()
    y = x * channels - s1
    variance = s2 * channels - s1 * s1 + op.variance_offset
    graph.tap("variance", variance, (tokens,))
    d = isqrt(graph, variance, (tokens, 1))
    e = bit_length(d, ROOT_BITS) + op.reciprocal_bits
    powers = graph.constant(POWERS)
    r = powers[e] / d
    graph.tap("reciprocal", r, (tokens,))
    t = round_shift(y * r, powers[e - op.fraction_bits], rounding)
    t = graph.tap("normalised", t, op.out.shape)
    return fit(round_shift(t * op.gain + op.offset, 1 << op.shift, rounding), op.out)


def linear(graph: Graph, op: Linear, x: OnnxTensor, values: dict[str, OnnxTensor]) -> OnnxTensor:
    weight = graph.packed("weight", op.weight) - op.weight_zero
    operand = x - op.x_zero if op.levels is None else graph.constant(op.levels)[x]
    acc = graph.tap("acc", narrow(operand @ weight + op.bias, graph.datapath), op.out.shape)
    epilogue, rounding = op.epilogue, graph.datapath.rounding
    scaled, power = acc * epilogue.multiplier, POWERS[epilogue.shift]
    match epilogue:
        case Requant():
            return fit(round_shift(scaled, power, rounding) + epilogue.zero, op.out)
        case Gelu():
            index = round_shift(scaled, power, rounding) + epilogue.index_zero
            index = graph.tap("index", index.clip(0, (1 << epilogue.index_bits) - 1), op.out.shape)
            return graph.constant(epilogue.table)[index]
        case Residual():
            aligned = values[epilogue.operand] * POWERS[epilogue.shift - epilogue.exponent_change]
            return fit(round_shift(aligned + scaled, power, rounding), op.out)
        case Raw():
            return fit(round_shift(scaled, power, rounding), op.out)
        case _:
            assert_never(epilogue)


@dataclass(frozen=True)
class Pairs:
    """What the file says of the pairs (i, j) of an Attention, each an array that broadcasts to [windows, heads, rows, tokens].

    computed: the score counts. fixed: the code does not depend on the image; then it is `codes`. excluded: no part in A.V.
    """

    computed: np.ndarray
    fixed: np.ndarray
    codes: np.ndarray
    excluded: np.ndarray


def pairs_of(op: Attention) -> Pairs:
    none = np.zeros((1, 1, 1, 1), np.bool_)
    frozen, codes = (
        (op.frozen.mask, op.frozen.codes << (op.attention_bits - op.frozen.bits)) if op.frozen else (none, none.astype(np.uint8))
    )
    excluded = none if op.excluded is None else op.excluded[:, None]
    computed = ~(excluded | frozen) if op.softmax == "renormalised" else ~excluded
    return Pairs(computed, frozen | excluded, np.where(excluded, np.uint8(op.last_code), codes), excluded)


def heads_of(graph: Graph, op: Attention, x: OnnxTensor, values: dict[str, OnnxTensor]) -> tuple[OnnxTensor, ...]:
    """q [windows, heads, rows, head_dim], k and v [windows, heads, tokens, head_dim] of every head.

    A head without scores is given those of another: it is wholly frozen, so none of them counts.
    """
    scored, heads = len(op.score_heads), range(op.heads)
    own = 0 if op.queries is None else scored  # columns of x less than with q in it
    keys = x.reshape(op.windows, op.tokens, 2 * scored - own + op.heads, op.head_dim).transpose(0, 2, 1, 3)
    queries = values[op.queries.operand].reshape(op.windows, op.rows, scored, op.head_dim).transpose(0, 2, 1, 3) if op.queries else keys
    position = np.array([op.score_heads.index(head) if head in op.score_heads else 0 for head in heads])
    parts = (queries, position), (keys, scored - own + position), (keys, 2 * scored - own + np.array(heads))
    return tuple(graph.node("Gather", groups, index, axis=1) for groups, index in parts)


def attention(graph: Graph, op: Attention, x: OnnxTensor, values: dict[str, OnnxTensor]) -> OnnxTensor:
    pairs, maps = pairs_of(op), (op.windows, op.heads, op.rows, op.tokens)
    q, k, v = heads_of(graph, op, x, values)
    total = (q - op.q_zero) @ (k - op.k_zero).transpose(0, 1, 3, 2)
    if op.logit_bias is not None:
        total = total + graph.packed("logit_bias", op.logit_bias)
    scores = graph.node("Where", pairs.computed, narrow(total, graph.datapath), 0)
    codes = attention_codes(graph, op, pairs, graph.tap("scores", scores, maps))
    return context(graph, op, pairs, codes, v - op.v_zero)


def attention_codes(graph: Graph, op: Attention, pairs: Pairs, scores: OnnxTensor) -> OnnxTensor:
    """From the scores to the codes: base-2 softmax, logarithm of the sum, frozen and excluded codes merged in."""
    f, rounding, maps = op.fraction_bits, graph.datapath.rounding, (op.windows, op.heads, op.rows, op.tokens)
    low = -(1 << (graph.datapath.accumulator_bits - 1))
    greatest = graph.node("Where", pairs.computed, scores, low).max()
    distance = graph.node("Where", pairs.computed, greatest - scores, 0)
    t = graph.tap("exponents", round_shift(distance * op.score_multiplier, 1 << op.score_shift, rounding), maps)
    whole = ((t - t % (1 << f)) / (1 << f)).clip(0, len(POWERS) - 1)  # exp2 is below 2^25: farther shifts give 0 as well
    exponentials = graph.constant(op.exp2)[t % (1 << f)] / graph.constant(POWERS)[whole]
    total = (exponentials * pairs.computed.astype(np.int64)).sum()
    any_computed = np.logical_or.reduce(pairs.computed, axis=-1, keepdims=True)
    log_sum = graph.node("Where", any_computed, log2(graph, op, total.clip(1, 1 << ROOT_BITS)) - op.exp2_bits * (1 << f), 0)
    graph.tap("log_sum", log_sum, maps[:3])
    kept = op.frozen.row_log2[..., None] if op.frozen and op.softmax == "renormalised" else 0
    code = round_shift((t + log_sum + kept + op.log2_scale) * 2, 1 << f, rounding).clip(0, op.last_code)
    return graph.tap("codes", graph.node("Where", pairs.fixed, graph.packed("frozen", pairs.codes), code), maps)


def log2(graph: Graph, op: Attention, n: OnnxTensor) -> OnnxTensor:
    """With f fractional bits, of n [..., 1] in 1..2^31 - 1, from the table over the leading bits."""
    entries = len(op.log2)
    p = bit_length(n, ROOT_BITS) - 1
    entry = n * entries / graph.constant(POWERS)[p] - entries
    return p * (1 << op.fraction_bits) + graph.constant(op.log2)[entry]


def context(graph: Graph, op: Attention, pairs: Pairs, codes: OnnxTensor, v: OnnxTensor) -> OnnxTensor:
    """A.V as an even and an odd product of powers of two, scaled and added."""
    code = np.arange(op.last_code + 1)
    power = POWERS[op.top_power - code // 2]
    power[-1] = 0 if op.last_code_is_zero else power[-1]
    takes_part = (~pairs.excluded).astype(np.int64)
    sums = []
    for name, parity in (("even", 0), ("odd", 1)):
        operand = graph.constant(np.where(code % 2 == parity, power, 0))[codes] * takes_part
        sums.append(graph.tap(name, narrow(operand @ v, graph.datapath), (op.windows, op.heads, op.rows, op.head_dim)))
    scaled = sums[0] * op.multiplier_even + sums[1] * op.multiplier_odd
    out = round_shift(scaled, 1 << op.out_shift, graph.datapath.rounding) + op.out_zero
    return fit(out, op.out).transpose(0, 2, 1, 3)
