"""An extractor small enough to be made in a test: a real ONNX file, random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES = 6


def save_toy_extractor(path: Path, *, size: int, channels: int, num_classes: int) -> Path:
    """features = relu(pixels / 255 @ W) [N, 6], logits = features @ V [N, num_classes]."""
    random = np.random.RandomState(0)
    pixels = size * size * channels
    constants = {
        "scale": np.float32(255),
        "W": (random.randn(pixels, FEATURES) / np.sqrt(pixels)).astype(np.float32),
        "V": random.randn(FEATURES, num_classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "scale"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["projected"]),
        helper.make_node("Relu", ["projected"], ["features"]),
        helper.make_node("MatMul", ["features", "V"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, channels])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in (("features", FEATURES), ("logits", num_classes))
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
