"""Around a foreign graph: the inputs that serving feeds, and the pixels it wants.

Before it: names, dtypes, ranks, one-hot. After it: range to 0..255, rounding, NHWC, uint8. The foreign
nodes stay as they are. Refuses to own: whether the result keeps its promises (`training.proof`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.manifest import Manifest
from training.graph import opset_of
from training.importing.batch import BATCH_AXIS
from training.importing.interface import FLOATS, Interface, Port
from training.pixels import RANGES, axes_to_nhwc

_FOREIGN = "imported/"


def wrap(
    free: onnx.ModelProto, interface: Interface, manifest: Manifest, value_range: str, layout: str
) -> onnx.ModelProto:
    """Return a copy of `free` with the inputs and the output that `manifest` tells of."""
    model = onnx.ModelProto()
    model.CopyFrom(free)
    graph = model.graph
    _rename_all(graph)
    before = _Nodes(model, "before")
    before.floats("latents", interface.latents, rank=2)
    if interface.class_idx is not None:
        before.classes(interface.class_idx, interface.num_classes)
    if interface.truncation_psi is not None:
        before.floats("truncation_psi", interface.truncation_psi, rank=1)
    after = _Nodes(model, "after")
    after.pixels(_FOREIGN + interface.output.name, manifest, value_range, layout)

    foreign_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*before.nodes, *foreign_nodes, *after.nodes])
    for values, tensors in ((graph.input, manifest.graph_inputs), (graph.output, manifest.graph_outputs)):
        for name, (dtype, sizes) in tensors.items():
            values.append(helper.make_tensor_value_info(name, _ELEM_TYPE[dtype], [BATCH_AXIS, *sizes]))
    return model


_ELEM_TYPE = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(int64)": TensorProto.INT64,
    "tensor(uint8)": TensorProto.UINT8,
}


class _Nodes:
    """A chain of nodes in the making; constants go to the graph at once."""

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph = model.graph
        self._opset = opset_of(model)
        self._prefix = prefix
        self._count = 0

    def floats(self, name: str, port: Port, rank: int) -> None:
        """Feed the foreign input `port` from the float input `name` of `rank`, in its dtype and rank."""
        value = name
        if port.elem_type != TensorProto.FLOAT:
            value = self._add("Cast", [value], to=port.elem_type)
        self._feed(port, value, rank)

    def classes(self, port: Port, num_classes: int) -> None:
        """Feed the foreign input of classes from class_idx int64 [N]."""
        value = "class_idx"
        if port.elem_type in FLOATS:
            depth = self._constant(np.array([num_classes], dtype=np.int64))
            value = self._add("OneHot", [value, depth, self._constant(np.array([0, 1], dtype=np.float32))])
        if port.elem_type not in (TensorProto.INT64, TensorProto.FLOAT):
            value = self._add("Cast", [value], to=port.elem_type)
        self._feed(port, value, rank=2 if port.elem_type in FLOATS else 1)

    def pixels(self, value: str, manifest: Manifest, value_range: str, layout: str) -> None:
        """Make `images` of the foreign output: (x - low) * 255 / (high - low), clamped and rounded."""
        low, high = RANGES[value_range]
        height, width, channels = manifest.img_shape
        value = self._add("Cast", [value], to=TensorProto.FLOAT)
        if low != 0:
            value = self._add("Sub", [value, self._constant(np.float32(low))])
        if high - low != 255:
            value = self._add("Mul", [value, self._constant(np.float32(255 / (high - low)))])
        value = self._rounded(value)
        value = self._add("Cast", [value], to=TensorProto.UINT8)
        if layout.startswith("flat"):
            shape = np.array([-1, channels, height, width], dtype=np.int64)
            value = self._add("Reshape", [value, self._constant(shape)])
        self.nodes.append(helper.make_node("Transpose", [value], ["images"], perm=axes_to_nhwc(layout)))

    def _rounded(self, value: str) -> str:
        """Clamp to 0..255 and round to the nearest level, halves to even, with what the graph's opset has."""
        if self._opset >= 11:
            value = self._add("Clip", [value, self._constant(np.float32(0)), self._constant(np.float32(255))])
            return self._add("Round", [value])
        value = self._add("Max", [value, self._constant(np.float32(0))])
        value = self._add("Min", [value, self._constant(np.float32(255))])
        no_fraction = self._constant(np.float32(2**23))  # from here on float32 has whole numbers only
        return self._add("Sub", [self._add("Add", [value, no_fraction]), no_fraction])

    def _feed(self, port: Port, value: str, rank: int) -> None:
        if port.dims is not None and len(port.dims) != rank:
            sizes = [size or 0 for size in port.dims[1:]]  # 0: as wide as it is
            value = self._add("Reshape", [value, self._constant(np.array([-1, *sizes], dtype=np.int64))])
        self.nodes.append(helper.make_node("Identity", [value], [_FOREIGN + port.name]))

    def _add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = self._name(op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def _constant(self, value: Any) -> str:
        name = self._name("constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}/{kind}{self._count}"


def _rename_all(graph: onnx.GraphProto) -> None:
    """Put every name of a value under a prefix, in branches and bodies too: none can meet one of ours."""
    for node in graph.node:
        node.input[:] = [name and _FOREIGN + name for name in node.input]
        node.output[:] = [name and _FOREIGN + name for name in node.output]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename_all(inner)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = _FOREIGN + value.name
    for sparse in graph.sparse_initializer:
        sparse.values.name = _FOREIGN + sparse.values.name
