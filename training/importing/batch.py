"""A graph exported for one batch size becomes one for any, where its batch is the first axis throughout.

Most exports fix the batch: not in the weights, but in the target shapes of Reshape, Expand and Resize.
Those are rewritten here. Whether that was enough shows when the graph is run (`training.importing.evidence`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from training.importing.interface import Interface

BATCH_AXIS = "N"
Shapes = dict[str, list[int | None]]


def prune(model: onnx.ModelProto, output: str) -> None:
    """Leave only `output`, and the nodes, weights and inputs that it needs."""
    wanted, kept = {output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= names_read(node)
    for values, needed in (
        (model.graph.node, kept[::-1]),
        (model.graph.input, [one for one in model.graph.input if one.name in wanted]),
        (model.graph.output, [one for one in model.graph.output if one.name == output]),
        (model.graph.initializer, [one for one in model.graph.initializer if one.name in wanted]),
    ):
        copies = [type(one).FromString(one.SerializeToString()) for one in needed]
        del values[:]
        values.extend(copies)
    del model.graph.quantization_annotation[:], model.training_info[:]


def names_read(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, those that its branches and bodies take from outside included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            made = {one.name for one in (*graph.input, *graph.initializer)}
            made |= {name for inner in graph.node for name in inner.output}
            read = set().union(
                *(names_read(inner) for inner in graph.node), {one.name for one in graph.output}
            )
            names |= read - made
    return names


def free_batch(model: onnx.ModelProto, interface: Interface, batch: int) -> None:
    """Make the first axis of inputs and output symbolic, and rewrite what holds `batch` as a constant."""
    shapes = _shapes_at(model, interface, batch)
    rows = {one.name for one in interface.inputs}  # values that depend on the inputs
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if rows & names_read(node):
            rows.update(node.output)
            nodes += _freed(model, node, shapes, rows, batch)
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(copies)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH_AXIS


def fold_shapes(model: onnx.ModelProto, interface: Interface) -> None:
    """Write the target of a Reshape as a constant where only the batch in it is computed.

    Fewer nodes to run, and a CUDA session has less arithmetic on shapes to leave to the CPU.
    """
    two, three = (_shapes_at(model, interface, batch) for batch in (2, 3))
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        at_two, at_three = (shapes.get(node.output[0]) or [None] for shapes in (two, three))
        if node.op_type != "Reshape" or node.input[1] in constants or None in (*at_two, *at_three):
            continue
        (first_of_two, *rest), (first_of_three, *rest_of_three) = at_two, at_three
        if rest == rest_of_three and 3 * (first_of_two or 0) == 2 * (first_of_three or 0):
            sizes = [size for size in rest if size is not None]
            node.input[1] = _constant(model, f"{node.output[0]}/folded", [-1, *sizes])
    prune(model, interface.output.name)


def _shapes_at(model: onnx.ModelProto, interface: Interface, batch: int) -> Shapes:
    """Shapes of all values when the inputs have `batch` rows, as far as they can be inferred."""
    at = onnx.ModelProto()
    at.CopyFrom(model)
    del at.graph.value_info[:], at.graph.output[0].type.tensor_type.shape.dim[:]
    at.graph.output[0].type.tensor_type.ClearField("shape")
    for value in at.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(at, data_prop=True).graph
    return {
        value.name: [
            one.dim_value if one.HasField("dim_value") else None for one in value.type.tensor_type.shape.dim
        ]
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }


def _freed(
    model: onnx.ModelProto, node: onnx.NodeProto, shapes: Shapes, rows: set[str], batch: int
) -> Iterable[onnx.NodeProto]:
    """The nodes that stand for `node` at any batch size. `rows` are the values that depend on the inputs."""
    target = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op_type)
    shape = shapes.get(node.output[0])
    fixed = (
        target is not None
        and len(node.input) > target
        and node.input[target]
        and node.input[target] not in rows
    )
    if not fixed or not shape or None in shape or node.input[0] not in rows:
        return (node,)
    rest = [size for size in shape[1:] if size is not None]
    if node.op_type == "Reshape":
        # The batch is the outermost axis, so it is a factor of the first one after a reshape too.
        node.input[1] = _constant(model, f"{node.output[0]}/shape", [-1, *rest])
    elif shapes.get(node.input[0], [None])[0] == batch == shape[0]:
        if node.op_type == "Expand" and len(shapes[node.input[0]]) == len(shape):
            node.input[1] = _constant(model, f"{node.output[0]}/shape", [1, *rest])  # 1: as many as there are
        elif node.op_type == "Resize" and not any(one.name == "axes" for one in node.attribute):
            return _resize_of_any_batch(model, node, rest)
    return (node,)


def _resize_of_any_batch(
    model: onnx.ModelProto, node: onnx.NodeProto, rest: list[int]
) -> Iterable[onnx.NodeProto]:
    """Resize to sizes whose first one is read from the input."""
    name = node.output[0]
    first, last = _constant(model, f"{name}/first", [0]), _constant(model, f"{name}/last", [1])
    node.input[3] = f"{name}/sizes"
    return (
        helper.make_node("Shape", [node.input[0]], [f"{name}/shape"]),
        helper.make_node("Slice", [f"{name}/shape", first, last], [f"{name}/batch"]),
        helper.make_node(
            "Concat", [f"{name}/batch", _constant(model, f"{name}/rest", rest)], [f"{name}/sizes"], axis=0
        ),
        node,
    )


def _constant(model: onnx.ModelProto, name: str, values: list[int]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name
