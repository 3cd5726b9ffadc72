"""Generators as other people bring them: written by hand in ONNX, each a little different from ours.

images = tanh(psi * z @ W + E[y]) in the range and layout that is asked for; `pixels` works them out in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Z_DIM, HEIGHT, WIDTH, CHANNELS, CLASSES = 8, 4, 6, 3, 5


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """The shape of one foreign file."""

    batch: int | str = "batch"
    """A number: fixed in the inputs, in the output and in every Reshape."""
    z_rank: int = 2
    z_type: int = TensorProto.FLOAT
    classes: str | None = None
    """None, "int64", "int32", "column" or "one_hot"."""
    psi: str | None = None
    """None, "vector" or "column"."""
    value_range: str = "-1,1"
    layout: str = "NCHW"
    opset: int = 18
    truncation: str = "z"
    """What psi scales: "z" the latents, "w" what comes of them."""

    def model(
        self, *extra: onnx.NodeProto, image: str = "x", outputs: tuple[str, ...] = ()
    ) -> onnx.ModelProto:
        """The file. `extra` nodes come last; `image` names the value that is the output."""
        float_type = helper.tensor_dtype_to_np_dtype(self.z_type)
        fixed = self.batch if isinstance(self.batch, int) else -1
        constants = {name: array.astype(float_type) for name, array in weights().items()}
        constants["rows"] = np.array([fixed, Z_DIM], dtype=np.int64)
        constants["column"] = np.array([fixed, 1], dtype=np.int64)
        constants["flat_class"] = np.array([-1], dtype=np.int64)
        constants["image_shape"] = np.array([fixed, CHANNELS, HEIGHT, WIDTH], dtype=np.int64)
        z_shape = [self.batch, Z_DIM] + [1, 1] * (self.z_rank == 4)
        inputs = [helper.make_tensor_value_info("z", self.z_type, z_shape)]
        nodes = [helper.make_node("Reshape", ["z", "rows"], ["flat_z"], name="flatten")]
        value, scaled = "flat_z", None
        if self.psi is not None:
            tail = [1] if self.psi == "column" else []
            inputs.append(helper.make_tensor_value_info("psi", self.z_type, [self.batch, *tail]))
            nodes.append(helper.make_node("Reshape", ["psi", "column"], ["psi_column"]))
            scaled = "psi_column"
        if scaled and self.truncation == "z":
            nodes.append(helper.make_node("Mul", [value, scaled], ["truncated"]))
            value = "truncated"
        if scaled and self.truncation == "w":
            nodes.append(helper.make_node("Tanh", [value], ["w"]))
            nodes.append(helper.make_node("Mul", ["w", scaled], ["truncated"]))
            value = "truncated"
        nodes.append(helper.make_node("MatMul", [value, "W"], ["features"]))
        value = "features"
        if self.classes == "one_hot":
            inputs.append(helper.make_tensor_value_info("y", self.z_type, [self.batch, CLASSES]))
            nodes.append(helper.make_node("MatMul", ["y", "E"], ["embedding"]))
        elif self.classes is not None:
            kind = TensorProto.INT32 if self.classes == "int32" else TensorProto.INT64
            tail = [1] if self.classes == "column" else []
            inputs.append(helper.make_tensor_value_info("y", kind, [self.batch, *tail]))
            index = "y"
            if self.classes == "column":
                nodes.append(helper.make_node("Reshape", ["y", "flat_class"], ["index"]))
                index = "index"
            nodes.append(helper.make_node("Gather", ["E", index], ["embedding"]))
        if self.classes is not None:
            nodes.append(helper.make_node("Add", [value, "embedding"], ["conditioned"]))
            value = "conditioned"
        nodes.append(helper.make_node("Tanh", [value], ["unit"]))
        value = "unit"
        if self.value_range != "-1,1":
            constants["half"] = np.array(127.5 if self.value_range == "0,255" else 0.5, dtype=float_type)
            nodes.append(helper.make_node("Mul", [value, "half"], ["halved"]))
            nodes.append(helper.make_node("Add", ["halved", "half"], ["positive"]))
            value = "positive"
        shape = [CHANNELS, HEIGHT, WIDTH]
        if self.layout == "flat":
            shape = [CHANNELS * HEIGHT * WIDTH]
            nodes.append(helper.make_node("Identity", [value], ["x"]))
        elif self.layout == "NHWC":
            shape = [HEIGHT, WIDTH, CHANNELS]
            nodes.append(helper.make_node("Reshape", [value, "image_shape"], ["nchw"]))
            nodes.append(helper.make_node("Transpose", ["nchw"], ["x"], perm=[0, 2, 3, 1]))
        else:
            nodes.append(helper.make_node("Reshape", [value, "image_shape"], ["x"], name="to_image"))
        out = [
            helper.make_tensor_value_info(name, self.z_type, [self.batch, *shape] if name == image else None)
            for name in (image, *outputs)
        ]
        tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
        graph = helper.make_graph([*nodes, *extra], "foreign", inputs, out, tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="by hand")

    def pixels(
        self,
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64] | int = 0,
        psi: npt.NDArray[np.float32] | float = 1.0,
    ) -> npt.NDArray[np.uint8]:
        """The images [N, H, W, C] uint8 that latents [N, Z_DIM] are, worked out in float64."""
        arrays = {name: array.astype(np.float64) for name, array in weights().items()}
        z = latents.astype(np.float64)
        if self.psi is not None:
            z = (np.tanh(z) if self.truncation == "w" else z) * np.reshape(psi, (-1, 1))
        features = z @ arrays["W"]
        if self.classes is not None:
            features = features + arrays["E"][class_idx]
        images = np.tanh(features).reshape(-1, CHANNELS, HEIGHT, WIDTH).transpose(0, 2, 3, 1)
        return np.rint((images + 1) * 127.5).astype(np.uint8)


def weights() -> dict[str, npt.NDArray[np.float32]]:
    """W [Z_DIM, C*H*W] and the class embedding E [CLASSES, C*H*W]."""
    random = np.random.RandomState(0)
    pixels = CHANNELS * HEIGHT * WIDTH
    return {
        "W": (random.randn(Z_DIM, pixels) / 3).astype(np.float32),
        "E": random.randn(CLASSES, pixels).astype(np.float32),
    }
