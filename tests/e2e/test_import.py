"""Generators of others and of other kinds, served: imported or published, asked of a real server."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from server_process import Server
from torch import nn
from toy_foreign import Foreign
from toy_training import toy_config

from models.manifest import GRAPH_FILE
from models.sampling import latents_from_seeds
from training.data import DataShape
from training.export import publish
from training.graph_session import GraphSession
from training.networks.style import StyleGenerator

GANTRAIN = Path(sys.executable).parent / "gantrain"


def bring(file: Path, store: Path, name: str, *flags: str) -> str:
    """Run `gantrain import`; return what it says."""
    command = [str(GANTRAIN), "import", str(file), "--name", name, "--store", str(store), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def torch_file(path: Path) -> Path:
    """A DCGAN as most people export theirs: NCHW in [-1, 1], latents [1, z, 1, 1], one image a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G = nn.Sequential(
            nn.ConvTranspose2d(16, 24, 4),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this exporter is the old one
        torch.onnx.export(G, (torch.randn(1, 16, 1, 1),), path, dynamo=False)
    return path


def pixels_of(file: Path, **rows: np.ndarray) -> np.ndarray:
    """What the foreign file itself gives, a row at a time, as images [N, H, W, C] uint8."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = []
    for row in range(len(next(iter(rows.values())))):
        feed = {name: values[row : row + 1] for name, values in rows.items()}
        (image,) = session.run(None, feed)  # [1, C, H, W] in [-1, 1]
        images.append(np.rint((image.astype(np.float64) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(images)


def test_foreign_generators_are_imported_and_served_with_their_own_pixels(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    store, seeds = tmp_path / "store", list(range(20))
    dcgan, conditional = torch_file(tmp_path / "dcgan.onnx"), tmp_path / "conditional.onnx"
    onnx.save(Foreign(classes="int32", psi="column").model(), conditional)

    said = bring(dcgan, store, "dcgan") + bring(conditional, store, "mine", "--truncation-input", "psi")
    server = serve("--model", "dcgan,mine", store=store)
    array = server.http.post("/v1/samples", json={"model": "dcgan", "seeds": seeds, "format": "npy"})
    asked = {"model": "mine", "seed": 42, "class_idx": 3, "truncation_psi": 0.5}
    image = server.http.post("/v1/samples", json=asked)
    models = {one["name"]: one for one in server.http.get("/v1/models").json()["models"]}

    assert "published dcgan:1" in said
    assert "largest difference to conditional.onnx: 0 of 255 grey levels" in said
    z = latents_from_seeds(seeds, 16).reshape(-1, 16, 1, 1)
    (name,) = [one.name for one in onnx.load(dcgan).graph.input]
    assert np.array_equal(np.load(io.BytesIO(array.content)), pixels_of(dcgan, **{name: z}))
    rows = {
        "z": latents_from_seeds([42], 8),
        "y": np.array([3], dtype=np.int32),
        "psi": np.array([[0.5]], dtype=np.float32),
    }
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(image.content))), pixels_of(conditional, **rows)[0]
    )
    assert {one["determinism"] for one in models.values()} == {"bit_exact"}
    assert (models["mine"]["num_classes"], models["dcgan"]["num_classes"]) == (5, 0)


def test_a_network_of_the_style_kind_is_truncated_toward_w_avg_by_the_server(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G = StyleGenerator(toy_config(network="style"), DataShape(img_channels=3, num_classes=3))
        G.mapping.w_avg.normal_()
    store, seeds, class_idx = tmp_path / "store", list(range(12)), [2, 0, 1] * 4
    artifact = publish(G.eval(), store, name="style", z_dim=8, num_classes=3, truncation="w")

    server = serve("--model", "style", store=store)
    asked = {"seeds": seeds, "class_idx": class_idx, "truncation_psi": 0.7, "format": "npy"}
    served = np.load(io.BytesIO(server.http.post("/v1/samples", json=asked).content))
    (model,) = server.http.get("/v1/models").json()["models"]

    rows = latents_from_seeds(seeds, 8), np.array(class_idx), np.full(12, 0.7, dtype=np.float32)
    with torch.no_grad():
        images = G(*(torch.from_numpy(values) for values in rows)).permute(0, 2, 3, 1)
        untruncated = G(*(torch.from_numpy(values) for values in rows[:2])).permute(0, 2, 3, 1)
    assert np.array_equal(served, GraphSession(artifact.file(GRAPH_FILE)).render(*rows))
    assert np.abs(served - ((images + 1) * 127.5).round().numpy()).max() <= 1
    assert np.abs(served - ((untruncated + 1) * 127.5).round().numpy()).max() > 10
    assert model["determinism"] == "bit_exact"
