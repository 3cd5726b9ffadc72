"""Weights in half the bytes: stored as float16, computed with as float32.

A `Cast` behind each stored weight gives the graph the same types and the same arithmetic as before. ONNX
Runtime folds it when it loads the file, so a run costs what it cost. A graph that computes in float16 would
cast around every node on the CPU provider, which has hardly any kernels in it, and give the activations a
range that they may leave. Measured on the shipped generator: half the bytes, the same time (0.99 of it), at
most 1 grey level in 1,000 images. Refuses to own: how far pixels may move (`training.promises`).
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import InvalidValue, show
from training.errors import GraphRefused

WeightPrecision = Literal["fp32", "fp16"]
WEIGHT_PRECISIONS: Final[tuple[WeightPrecision, ...]] = ("fp32", "fp16")
_MOST: Final = float(np.finfo(np.float16).max)
_NAMES: Final = ((TensorProto.FLOAT16, "fp16"), (TensorProto.DOUBLE, "fp64"))


def precision_of(model: onnx.ModelProto) -> str:
    """What the weights are stored in: "fp16" or "fp64" where some are, otherwise "fp32"."""
    stored = {tensor.data_type for tensor in model.graph.initializer}
    return next((name for data_type, name in _NAMES if data_type in stored), "fp32")


def store_weights(model: onnx.ModelProto, precision: WeightPrecision) -> None:
    """Store the weights of `model` in `precision`; "fp32" leaves them as they are.

    Raises InvalidValue for another precision, GraphRefused for weights that do not fit.
    """
    if precision not in WEIGHT_PRECISIONS:
        raise InvalidValue(f"precision must be one of {', '.join(WEIGHT_PRECISIONS)}, got {show(precision)}")
    if precision == "fp16":
        _halve(model)


def _halve(model: onnx.ModelProto) -> None:
    """Store every float32 weight of two dimensions or more as float16.

    Biases and the statistics of norms stay: they are few, and a variance may be too small for it.
    """
    halved = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2
    ]
    casts = []
    for tensor in halved:
        name, values = tensor.name, numpy_helper.to_array(tensor)
        most = float(np.abs(values).max(initial=0.0))
        if not most <= _MOST:  # also refuses NaN
            raise GraphRefused(
                f"weights in fp16 must be at most {_MOST:g}, {name} has {most:g}: leave the precision at fp32"
            )
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/fp16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
