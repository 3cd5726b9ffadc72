"""What an ONNX file promises before it is run: no random node, no node that trains, a free batch size.

Reads and writes the graph with the `onnx` package; nothing is executed. What only shows when it runs is
checked in `training.promises`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import Message

from models.errors import show
from training.errors import GraphRefused

MAX_BYTES: Final = 2**31 - 1
"""What protobuf can hold in one message, and so the largest artifact of one file."""
_FLOATS: Final = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)
RANDOM_OPS: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def check_graph(model: onnx.ModelProto) -> None:
    """Raise GraphRefused if `model` has a random node, a node in training mode or a fixed batch size."""
    check_nodes(model)
    for value in (*model.graph.input, *model.graph.output):
        _check_symbolic_batch(value)


def check_nodes(model: onnx.ModelProto) -> None:
    """Raise GraphRefused if `model` has a random node or a node in training mode."""
    nodes = list(nodes_of(model))
    constants = _constants(model, nodes)
    for node in nodes:
        _check_not_random(node)
        _check_not_training(node, constants)


def strip_trace(model: onnx.ModelProto) -> None:
    """Remove what the exporter tells of the trace: stack traces, and with them paths of this machine.

    What is left depends on the weights and the code alone, so equal runs give equal digests.
    """
    for message in messages_of(model):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def tell_classes(model: onnx.ModelProto, num_classes: int) -> None:
    """Write the number of classes into a graph of them: by it a seed names its class, and so its image.

    An artifact's digest holds the graph's bytes. One that is exported from a run needs it not: there the
    number decides the shape of weights.
    """
    if num_classes:
        onnx.helper.set_model_props(model, {"num_classes": str(num_classes)})


def check_weights(model: onnx.ModelProto) -> None:
    """Raise GraphRefused for weights that are not a number: rows that few of a sample's images use hide."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in _FLOATS:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise GraphRefused(f"the weights {show(tensor.name)} cannot be read: {error}") from None
        if np.isnan(values).any():
            raise GraphRefused(
                f"the weights must be numbers, {show(tensor.name)} has NaN: was the generator saved "
                "from a run that had diverged?"
            )


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` as one file, equal models as equal bytes. Raises GraphRefused if it is too large."""
    if model.ByteSize() > MAX_BYTES:
        raise GraphRefused(too_large("the graph", model.ByteSize()))
    path.write_bytes(model.SerializeToString(deterministic=True))


def too_large(what: str, size: int) -> str:
    """The sentence for more bytes than MAX_BYTES."""
    return (
        f"{what} must have at most {MAX_BYTES:,} bytes, protobuf's limit for one file, it has {size:,}: "
        "bring a smaller generator, or the same in float16"
    )


def messages_of(message: Message) -> Iterator[Message]:
    """The message and everything in it at any depth: graphs, nodes, attributes, values, tensors."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, Sequence) else (value,):
                yield from messages_of(inner)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default ONNX operator set that `model` was written for."""
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of the functions it calls, of the branches and bodies inside nodes."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for graph in _graphs(node):
            pending.extend(graph.node)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: branches of If, bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _constants(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> dict[str, bool]:
    """Scalar truths of the graph by name: what can switch a node to training."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = attribute.t
    return {
        name: bool(onnx.numpy_helper.to_array(tensor))
        for name, tensor in tensors.items()
        if tensor.data_type == onnx.TensorProto.BOOL and not tensor.dims and _has_data(tensor)
    }


def _has_data(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.raw_data or tensor.int32_data)


def _check_not_random(node: onnx.NodeProto) -> None:
    if node.op_type in RANDOM_OPS:
        raise GraphRefused(
            f"the graph must have no random node, {node.name or 'a node'} is {node.op_type}: a seed would "
            "not name an image. Draw the noise once and register it as a buffer, or take it from the latents"
        )


def _check_not_training(node: onnx.NodeProto, constants: dict[str, bool]) -> None:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    trains = node.op_type == "BatchNormalization" and (
        attributes.get("training_mode", 0) or len(node.output) > 1
    )
    # The third input of Dropout is its training mode; absent or empty means off.
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        trains = constants.get(node.input[2], True)
    if trains:
        raise GraphRefused(
            f"the graph must have no node in training mode, {node.name or 'a node'} ({node.op_type}) is: an "
            "image would depend on its batch mates. Call .eval() on the module before the export"
        )


def _check_symbolic_batch(value: onnx.ValueInfoProto) -> None:
    dims = value.type.tensor_type.shape.dim
    if not dims or not dims[0].dim_param:
        size = dims[0].dim_value if dims else "missing"
        raise GraphRefused(
            f"the batch size of {value.name} must be symbolic, it is {size}: len(z), int() or a fixed size "
            "in a view makes it static without an error. Use z.shape[0] and -1 in the module's forward"
        )
