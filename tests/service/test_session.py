"""The border check between an artifact and the runtime that shall run it."""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from toy import SIZE, Z_DIM, publish_toy

from models.errors import DamagedArtifact
from models.sampling import latents_from_seeds
from models.store import Artifact, sha256_of
from service import session as session_module
from service.device import DeviceOptions
from service.errors import StartError
from service.provenance import Rendering
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


def test_a_graph_that_loses_a_row_makes_no_image(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(artifact)

    class Fewer:
        def run(self, names: list[str], values: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros((len(values["latents"]) - 1, SIZE, SIZE, 3), np.uint8)]

    monkeypatch.setattr(session, "_session", Fewer())
    with pytest.raises(RuntimeError, match=r"must make an image a row, it made 2 of 3"):
        session.run(*rows(3))


def test_weights_beside_the_graph_which_no_digest_holds_are_refused(artifact: Artifact) -> None:
    graph = artifact.file("model.onnx")
    onnx.save_model(
        onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=1024
    )
    files = {**artifact.manifest.files, "model.onnx": sha256_of(graph)}

    with pytest.raises(DamagedArtifact, match=r"model\.onnx cannot be loaded: .*External data"):
        Session(with_manifest(artifact, files=files))


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


# -- CUDA, as far as it goes without a device -----------------------------------------------------


@pytest.fixture
def played_cuda(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Accelerator cuda on the CPU provider; the provider options of each session that was opened."""
    import onnxruntime

    opened: list[dict[str, Any]] = []

    class Recorded(onnxruntime.InferenceSession):  # type: ignore[misc]  # ONNX Runtime has no types
        def __init__(self, path: str, settings: Any, providers: list[Any], **how: Any) -> None:
            (name,) = providers
            if isinstance(name, tuple):
                name, options = name
                opened.append({**options, "deterministic": settings.use_deterministic_compute, **how})
            super().__init__(path, settings, [name], **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    monkeypatch.setitem(session_module._PROVIDERS, "cuda", "CPUExecutionProvider")
    monkeypatch.setitem(session_module._DEVICES, "cuda", "cpu")
    installed(monkeypatch, "onnxruntime-gpu")
    return opened


def test_cuda_is_opened_for_one_result_and_without_a_way_back_to_the_cpu(
    artifact: Artifact, played_cuda: list[dict[str, Any]]
) -> None:
    plain = Session(artifact, "cuda", device_id=1)
    strict = Session(
        artifact, "cuda", options=DeviceOptions(deterministic=True, tf32=True, cuda_graphs=False)
    )

    assert played_cuda == [
        {
            "device_id": 1,
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": 0,
            "enable_cuda_graph": 1,
            "deterministic": False,
            "enable_fallback": 0,
        },
        {
            "device_id": 0,
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": 1,
            "enable_cuda_graph": 0,
            "deterministic": True,
            "enable_fallback": 0,
        },
    ]
    assert [plain.bucket(rows) for rows in (1, 2, 5, 17)] == [1, 4, 16, 64]
    assert plain.golden_difference() == strict.golden_difference() == 0


def test_what_changes_pixels_on_cuda_is_part_of_the_render_id(
    artifact: Artifact, played_cuda: list[dict[str, Any]]
) -> None:
    def render_id(*args: Any, **options: Any) -> str:
        session = Session(artifact, *args, options=DeviceOptions(**options))
        return Rendering(artifact.manifest, "P", "1", True, session.arithmetic).render_id

    ids = {
        render_id("cuda"),
        render_id("cuda", tf32=True),
        render_id("cuda", deterministic=True),
        render_id("cuda", buckets=(1, 4)),
        render_id("cpu"),
    }

    assert len(ids) == 5
    assert render_id("cuda") == render_id("cuda", cuda_graphs=False) == render_id("cuda", buckets=(64,))
    assert render_id("cpu") == render_id("cpu", tf32=True, buckets=(1, 4))


def refuse_graphs(monkeypatch: pytest.MonkeyPatch, without_too: str | None = None) -> None:
    """Have sessions with CUDA graphs not open, and those without refuse with `without_too`."""
    open_ = session_module._open

    def refusing(*args: Any) -> Any:
        if args[-1]:
            raise StartError("this session cannot use the graph capture feature")
        if without_too is not None:
            raise StartError(without_too)
        return open_(*args)

    monkeypatch.setattr(session_module, "_open", refusing)


def test_a_model_that_cannot_be_captured_runs_without_graphs_and_says_so(
    artifact: Artifact,
    played_cuda: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refuse_graphs(monkeypatch)

    with caplog.at_level(logging.WARNING):
        session = Session(artifact, "cuda")

    assert session.golden_difference() == 0
    assert [one["enable_cuda_graph"] for one in played_cuda] == [0]
    assert "toy:1 runs without CUDA graphs: this session cannot use the graph capture" in caplog.text


def test_a_device_that_opens_neither_with_nor_without_graphs_is_one_sentence(
    artifact: Artifact, played_cuda: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_graphs(monkeypatch, without_too="no device")
    with pytest.raises(StartError, match=r"^no device; CUDA graphs failed before it .*try --no-cuda-graphs$"):
        Session(artifact, "cuda")

    refuse_graphs(monkeypatch, without_too="this session cannot use the graph capture feature")
    with pytest.raises(StartError, match=r"^this session cannot use the graph capture feature$"):
        Session(artifact, "cuda")


def test_a_bucket_that_cannot_run_is_a_sentence(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: Any) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer")

    monkeypatch.setattr("service.buckets.Buckets.warm", out_of_memory)

    with pytest.raises(StartError, match=r"^toy:1 does not run on CPUExecutionProvider: Failed to allocate"):
        Session(artifact, options=DeviceOptions((1, 4)))


def placed(graph: bytes) -> Any:
    """A session on the CPU that recorded where its nodes run."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def test_nodes_that_make_pixels_on_the_cpu_are_refused_on_cuda_and_arithmetic_on_shapes_is_not(
    artifact: Artifact,
) -> None:
    from onnx import TensorProto, helper

    shape_of = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Concat", ["n", "first"], ["sizes"], axis=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, [2])
    first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
    shapes = helper.make_model(
        helper.make_graph(shape_of, "shapes", [x], [sizes], [first]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )

    with pytest.raises(StartError, match=r"would run 1 (Gemm|MatMul), 1 Tanh of toy:1 on the CPU"):
        session_module._check_placement(artifact, placed(artifact.file("model.onnx").read_bytes()))
    session_module._check_placement(artifact, placed(shapes.SerializeToString()))
