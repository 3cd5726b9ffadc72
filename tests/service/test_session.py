"""The border check between an artifact and the runtime that shall run it."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy import SIZE, Z_DIM, publish_toy

from models.errors import DamagedArtifact
from models.sampling import latents_from_seeds
from models.store import Artifact, sha256_of
from service import session as session_module
from service.errors import StartError
from service.session import Session, check_runtime


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return publish_toy(tmp_path)


def rows(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return latents_from_seeds(range(n), Z_DIM), np.arange(n) % 10, np.ones(n, np.float32)


def test_rows_do_not_depend_on_their_batch_mates_or_order(artifact: Artifact) -> None:
    session = Session(artifact)
    latents, class_idx, psi = rows(64)
    together = session.run(latents, class_idx, psi)

    order = np.random.RandomState(0).permutation(64)
    shuffled = session.run(latents[order], class_idx[order], psi)
    alone = np.concatenate(
        [session.run(latents[k : k + 1], class_idx[k : k + 1], psi[:1]) for k in range(64)]
    )

    assert together.shape == (64, SIZE, SIZE, 3)
    assert np.array_equal(together[order], shuffled)
    assert np.array_equal(together, alone)


def test_golden_rows_are_bit_exact_where_they_were_made_and_a_difference_is_counted(
    artifact: Artifact, tmp_path: Path
) -> None:
    spoiled = publish_toy(tmp_path / "spoiled", golden_off_by=2)

    assert Session(artifact).golden_difference() == 0
    assert Session(spoiled).golden_difference() == 2


def with_manifest(artifact: Artifact, **facts: object) -> Artifact:
    return replace(artifact, manifest=replace(artifact.manifest, **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"num_classes": 0, "class_names": ()}, "inputs must be latents, truncation_psi, got"),
        ({"truncation": "none"}, "inputs must be latents, class_idx, got"),
        ({"z_dim": 16}, r"latents must be tensor\(float\) \['N', 16\]"),
        ({"img_height": 64}, r"images must be tensor\(uint8\)"),
        ({"img_channels": 1}, r"images must be tensor\(uint8\)"),
    ],
)
def test_a_graph_that_is_not_what_its_manifest_says_is_refused(
    artifact: Artifact, facts: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DamagedArtifact, match=sentence):
        Session(with_manifest(artifact, **facts))


def test_a_graph_that_is_no_onnx_is_refused(artifact: Artifact) -> None:
    artifact.file("model.onnx").write_bytes(b"no graph")
    digests = {**artifact.manifest.files, "model.onnx": sha256_of(artifact.file("model.onnx"))}

    with pytest.raises(DamagedArtifact, match=r"model\.onnx cannot be loaded"):
        Session(with_manifest(artifact, files=digests))


def installed(monkeypatch: pytest.MonkeyPatch, *distributions: str) -> None:
    def version(name: str) -> str:
        if name in distributions:
            return "1.31.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(session_module.importlib.metadata, "version", version)


def test_no_runtime_and_both_runtimes_are_sentences_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(StartError, match=r"no ONNX Runtime is installed; install exactly one of the extras"):
        check_runtime("cpu")

    installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(
        StartError, match=r"both onnxruntime and onnxruntime-gpu are installed.*pip uninstall"
    ):
        check_runtime("cpu")


def test_cuda_on_the_cpu_runtime_is_refused_and_the_gpu_runtime_serves_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, "onnxruntime")
    with pytest.raises(StartError, match="the installed ONNX Runtime is the CPU one"):
        check_runtime("cuda")

    installed(monkeypatch, "onnxruntime-gpu")
    assert check_runtime("cpu") == check_runtime("cuda") == "1.31.1"
