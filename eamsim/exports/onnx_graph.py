"""An ONNX graph under construction: tensors whose operators append nodes.

Nodes are named `/block0/attn/Add_3`: viewers that group by name show the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from eamsim.files.packing import narrowest, pack
from eamsim.program import Datapath

STORED_TYPES = {
    "u1": TensorProto.UINT4,
    "u4": TensorProto.UINT4,
    "u8": TensorProto.UINT8,
    "i8": TensorProto.INT8,
    "u16": TensorProto.UINT16,
    "i16": TensorProto.INT16,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
}


@dataclass(frozen=True)
class OnnxTensor:
    """A tensor by name. Its operators append nodes; comparisons give 0 or 1; `/` truncates; `table[x]` picks rows of a table."""

    graph: Graph
    name: str

    def __add__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("Add", self, other)

    def __sub__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("Sub", self, other)

    def __mul__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("Mul", self, other)

    def __mod__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("Mod", self, other)

    def __truediv__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("Div", self, other)

    def __matmul__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("MatMul", self, other)

    def __gt__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("Cast", self.graph.node("Greater", self, other), to=TensorProto.INT64)

    def __ge__(self, other: Operand) -> OnnxTensor:
        return self.graph.node("Cast", self.graph.node("GreaterOrEqual", self, other), to=TensorProto.INT64)

    def __getitem__(self, index: Operand) -> OnnxTensor:
        return self.graph.node("Gather", self, index, axis=0)

    def clip(self, low: float, high: float) -> OnnxTensor:
        return self.graph.node("Clip", self, low, high)

    def reshape(self, *shape: int) -> OnnxTensor:
        return self.graph.node("Reshape", self, np.array(shape))

    def transpose(self, *axes: int) -> OnnxTensor:
        return self.graph.node("Transpose", self, perm=axes)

    def sum(self) -> OnnxTensor:
        """Over the last axis, which stays with extent 1."""
        return self.graph.node("ReduceSum", self, np.array([-1]), keepdims=1)

    def max(self) -> OnnxTensor:
        """Over the last axis, which stays with extent 1."""
        return self.graph.node("ReduceMax", self, np.array([-1]), keepdims=1)


Operand = OnnxTensor | np.ndarray | float


@dataclass
class Graph:
    """Nodes in the order of execution, initialisers, and the taps that were published so far."""

    datapath: Datapath
    scope: str = "image"
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    taps: list[ValueInfoProto] = field(default_factory=list)
    constants: dict[tuple, OnnxTensor] = field(default_factory=dict)

    def node(self, kind: str, *inputs: Operand, name: str | None = None, **attributes: Any) -> OnnxTensor:
        """Append a node; numbers and arrays among its inputs become constants. The output has the node's name unless given."""
        names = [(item if isinstance(item, OnnxTensor) else self.constant(item)).name for item in inputs]
        label = self.label(kind)
        self.nodes.append(helper.make_node(kind, names, [name or label], label, **attributes))
        return OnnxTensor(self, name or label)

    def label(self, kind: str) -> str:
        """A name for the next node, unlike those before it."""
        return f"/{self.scope.replace('.', '/')}/{kind}_{len(self.nodes)}"

    def constant(self, numbers: np.ndarray | float) -> OnnxTensor:
        """An int64, bool or float32 initialiser; equal ones are stored once."""
        array = np.asarray(numbers)
        array = array.astype({"b": np.bool_, "f": np.float32}.get(array.dtype.kind, np.int64))
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.initializers.append(numpy_helper.from_array(array, name))
            self.constants[key] = OnnxTensor(self, name)
        return self.constants[key]

    def packed(self, name: str, array: np.ndarray) -> OnnxTensor:
        """A large array under the operation's name, in the narrowest type that holds it, cast to int64 in the graph."""
        packing = "u4" if (packing := narrowest(array)) == "u1" else packing
        tensor = self.stored(f"{self.scope}.{name}.{packing}", STORED_TYPES[packing], array.shape, pack(array, packing))
        return self.node("Cast", tensor, to=TensorProto.INT64)

    def stored(self, name: str, kind: int, shape: tuple[int, ...], data: bytes) -> OnnxTensor:
        """An initialiser of any type from its bytes."""
        self.initializers.append(helper.make_tensor(name, kind, shape, data, raw=True))
        return OnnxTensor(self, name)

    def publish(self, name: str, tensor: OnnxTensor, shape: tuple[int, ...]) -> OnnxTensor:
        """The tensor under a tap's name, in the page's shape."""
        self.taps.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
        return self.node("Reshape", tensor, np.array(shape), name=name)

    def tap(self, name: str, tensor: OnnxTensor, shape: tuple[int, ...]) -> OnnxTensor:
        """`publish` for an intermediate of the operation in progress."""
        return self.publish(f"{self.scope}.{name}", tensor, shape)
