"""A generator small enough to be made in a test: real ONNX, real store, random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from models.calibration import Calibration
from models.golden import Golden
from models.manifest import DISCRIMINATOR_FILE, GOLDEN_FILE, GRAPH_FILE, Manifest
from models.sampling import latents_from_seeds
from models.store import Artifact, Store

Z_DIM, SIZE, CLASSES = 8, 12, 10


def toy_graph(
    *,
    channels: int = 3,
    conditional: bool = True,
    truncation: bool = True,
    weights_seed: int = 0,
    last_class_kills: bool = False,
    computes_shape: bool = False,
) -> bytes:
    """images = uint8(128 + 60 tanh(psi * latents @ W + E[class_idx])), as an ONNX file's bytes.

    With `last_class_kills` a row of the last class ends the process that runs it (SIGFPE, x86); with
    `computes_shape` the last shape is computed from the batch size, as in many graphs exported elsewhere.
    """
    random = np.random.RandomState(weights_seed)
    pixels = SIZE * SIZE * channels
    constants = {
        "W": random.randn(Z_DIM, pixels).astype(np.float32),
        "E": random.randn(CLASSES, pixels).astype(np.float32),
        "scale": np.float32(60.0),
        "offset": np.float32(128.0),
        "shape": np.array([-1, SIZE, SIZE, channels], dtype=np.int64),
        "column": np.array([1], dtype=np.int64),
    }
    inputs = [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", Z_DIM])]
    nodes, hidden = [], "latents"
    if truncation:
        inputs.append(helper.make_tensor_value_info("truncation_psi", TensorProto.FLOAT, ["N"]))
        nodes.append(helper.make_node("Unsqueeze", ["truncation_psi", "column"], ["psi"]))
        nodes.append(helper.make_node("Mul", [hidden, "psi"], ["truncated"]))
        hidden = "truncated"
    nodes.append(helper.make_node("MatMul", [hidden, "W"], ["features"]))
    hidden = "features"
    if conditional:
        inputs.append(helper.make_tensor_value_info("class_idx", TensorProto.INT64, ["N"]))
        nodes.append(helper.make_node("Gather", ["E", "class_idx"], ["embedding"]))
        nodes.append(helper.make_node("Add", [hidden, "embedding"], ["conditioned"]))
        hidden = "conditioned"
    if last_class_kills:
        # The least integer by -1 is more than the largest: the CPU's division traps.
        constants |= {"least": np.int64(-(2**63)), "after": np.int64(CLASSES), "none": np.int64(0)}
        nodes += [
            helper.make_node("Sub", ["class_idx", "after"], ["divisor"]),  # -1 for the last class
            helper.make_node("Div", ["least", "divisor"], ["quotient"]),
            helper.make_node("Mul", ["quotient", "none"], ["zeros"]),
            helper.make_node("Cast", ["zeros"], ["real_zeros"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["real_zeros", "column"], ["nothing"]),
            helper.make_node("Add", [hidden, "nothing"], ["survived"]),
        ]
        hidden = "survived"
    if computes_shape:
        del constants["shape"]
        constants |= {
            "first": np.array([0], dtype=np.int64),
            "size": np.array([SIZE], dtype=np.int64),
            "rest": np.array([SIZE, channels], dtype=np.int64),
        }
        nodes += [
            helper.make_node("Shape", [hidden], ["sizes"]),
            helper.make_node("Gather", ["sizes", "first"], ["batch"]),
            helper.make_node("Sub", ["batch", "batch"], ["nil"]),
            helper.make_node("Add", ["nil", "size"], ["height"]),  # two that optimizers cannot know
            helper.make_node("Concat", ["batch", "height", "rest"], ["shape"], axis=0),
        ]
    nodes += [
        helper.make_node("Tanh", [hidden], ["unit"]),
        helper.make_node("Mul", ["unit", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["levels"]),
        helper.make_node("Cast", ["levels"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["bytes", "shape"], ["images"]),
    ]
    output = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, channels])
    return _onnx(nodes, inputs, output, constants)


def toy_discriminator(*, channels: int = 3, conditional: bool = True) -> bytes:
    """realness = images · w / 255 + e[class_idx], as an ONNX file's bytes: around 0, a few units wide."""
    random = np.random.RandomState(1)
    pixels = SIZE * SIZE * channels
    weights = random.randn(1, pixels) / 2
    constants = {
        "w": (weights - weights.mean()).astype(np.float32),
        "white": np.float32(255.0),
        "flat": np.array([-1, pixels], dtype=np.int64),
        "axis": np.array([1], dtype=np.int64),
    }
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, channels])]
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "white"], ["unit"]),
        helper.make_node("Reshape", ["unit", "flat"], ["features"]),
        helper.make_node("Mul", ["features", "w"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "axis"], ["of_image"], keepdims=0),
    ]
    if conditional:
        constants["e"] = random.randn(CLASSES).astype(np.float32)
        inputs.append(helper.make_tensor_value_info("class_idx", TensorProto.INT64, ["N"]))
        nodes.append(helper.make_node("Gather", ["e", "class_idx"], ["of_class"]))
        nodes.append(helper.make_node("Add", ["of_image", "of_class"], ["realness"]))
    else:
        nodes.append(helper.make_node("Identity", ["of_image"], ["realness"]))
    output = helper.make_tensor_value_info("realness", TensorProto.FLOAT, ["N"])
    return _onnx(nodes, inputs, output, constants)


def _onnx(nodes: list[Any], inputs: list[Any], output: Any, constants: dict[str, Any]) -> bytes:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def publish_toy(
    root: Path,
    name: str = "toy",
    *,
    channels: int = 3,
    conditional: bool = True,
    truncation: bool = True,
    weights_seed: int = 0,
    last_class_kills: bool = False,
    computes_shape: bool = False,
    golden_off_by: int = 0,
    calibration: Calibration | None = None,
) -> Artifact:
    """Publish a toy generator into the store at `root`; `golden_off_by` spoils its golden rows.

    With a `calibration` a toy discriminator goes with it.
    """
    graph = toy_graph(
        channels=channels,
        conditional=conditional,
        truncation=truncation,
        weights_seed=weights_seed,
        last_class_kills=last_class_kills,
        computes_shape=computes_shape,
    )
    with Store(root).draft(name) as draft:
        manifest = Manifest(
            name=name,
            version=draft.version,
            z_dim=Z_DIM,
            img_height=SIZE,
            img_width=SIZE,
            img_channels=channels,
            num_classes=CLASSES if conditional else 0,
            class_names=tuple(f"class {k}" for k in range(CLASSES)) if conditional else (),
            truncation="z" if truncation else "none",
            licence="Apache-2.0",
            sampler=calibration and calibration.to_facts(),
        )
        (draft.path / GRAPH_FILE).write_bytes(graph)
        golden = _golden(graph, manifest)
        if calibration is not None:
            judge = toy_discriminator(channels=channels, conditional=conditional)
            (draft.path / DISCRIMINATOR_FILE).write_bytes(judge)
            values = {"images": golden.images, "class_idx": golden.class_idx}
            golden = dataclasses.replace(golden, realness=_run(judge, "realness", values))
        spoiled = dataclasses.replace(golden, images=golden.images + np.uint8(golden_off_by))
        spoiled.save(draft.path / GOLDEN_FILE)
        return draft.publish(manifest)


def republish(
    artifact: Artifact, root: Path, discriminator: bytes | None = None, logits_off_by: float = 0.0
) -> Artifact:
    """Publish a judged toy again, into the store at `root`, with another D or spoiled golden logits."""
    manifest = artifact.manifest
    with Store(root).draft(manifest.name) as draft:
        for file in manifest.files:
            (draft.path / file).write_bytes(artifact.file(file).read_bytes())
        if discriminator is not None:
            (draft.path / DISCRIMINATOR_FILE).write_bytes(discriminator)
        golden = Golden.load(artifact.file(GOLDEN_FILE), manifest)
        assert golden.realness is not None
        spoiled = golden.realness + np.float32(logits_off_by)
        dataclasses.replace(golden, realness=spoiled).save(draft.path / GOLDEN_FILE)
        return draft.publish(dataclasses.replace(manifest, version=draft.version))


def _golden(graph: bytes, manifest: Manifest) -> Golden:
    seeds = np.array([0, 1, 42, 2**32 - 1], dtype=np.int64)
    class_idx = seeds % manifest.num_classes if manifest.num_classes else np.zeros_like(seeds)
    truncation_psi = np.array([1, 1, 0.5, 1] if manifest.has_truncation else [1] * 4, dtype=np.float32)
    values = {
        "latents": latents_from_seeds(seeds, manifest.z_dim, manifest.prior),
        "class_idx": class_idx,
        "truncation_psi": truncation_psi,
    }
    images = _run(graph, "images", values)
    return Golden(seeds=seeds, class_idx=class_idx, truncation_psi=truncation_psi, images=images)


def _run(graph: bytes, output: str, values: dict[str, Any]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run([output], {name: values[name] for name in names})[0]
