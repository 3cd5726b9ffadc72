"""The reference generator of the serving benchmarks: a DCGAN of 3.8 M parameters, 64x64 RGB, random weights.

    python tests/bench/reference.py reference.onnx
    gantrain import reference.onnx --name reference --store store

Written as most exports are: latents [N, 128] in, images [N, 3, 64, 64] in [-1, 1] out, nothing of
ours in it; `gantrain import` adds what serving needs. Radford 2015, arXiv:1511.06434, with 512 to
64 channels; normalisation is folded into the weights, as exporters do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Z_DIM = 128
CHANNELS = (512, 256, 128, 64, 3)  # after each transposed convolution: 4x4, 8x8, 16x16, 32x32, 64x64


def reference_graph() -> bytes:
    """The ONNX file's bytes; the same each time."""
    random = np.random.RandomState(0)
    nodes = [helper.make_node("Reshape", ["latents", "latents_shape"], ["x0"])]
    weights = [numpy_helper.from_array(np.array([-1, Z_DIM, 1, 1], dtype=np.int64), "latents_shape")]
    width = Z_DIM
    for layer, channels in enumerate(CHANNELS):
        last = layer == len(CHANNELS) - 1
        # He's scale for a kernel of 4 and stride 2, where 4 of 16 taps meet: activations keep their size.
        scale = np.sqrt(2 / (width * (1 if layer == 0 else 4)))
        kernel = (random.randn(width, channels, 4, 4) * scale).astype(np.float32)
        weights += [
            numpy_helper.from_array(kernel, f"w{layer}"),
            numpy_helper.from_array(np.zeros(channels, dtype=np.float32), f"b{layer}"),
        ]
        steps = {"strides": [1, 1], "pads": [0] * 4} if layer == 0 else {"strides": [2, 2], "pads": [1] * 4}
        nodes += [
            helper.make_node(
                "ConvTranspose",
                [f"x{layer}", f"w{layer}", f"b{layer}"],
                [f"y{layer}"],
                kernel_shape=[4, 4],
                **steps,
            ),
            helper.make_node(
                "Tanh" if last else "Relu", [f"y{layer}"], ["output" if last else f"x{layer + 1}"]
            ),
        ]
        width = channels
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", Z_DIM])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3, 64, 64])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(reference_graph())
