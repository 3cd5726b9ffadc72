"""One generator on one device: ONNX Runtime, opened and checked.

Owns which runtime is installed, session options and providers, and the border check that the
graph is what the manifest says. Refuses to own batching, seeds and encoding. ONNX Runtime is
imported here only, and only when a session is opened.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import DamagedArtifact
from models.golden import Golden
from models.manifest import GOLDEN_FILE, GRAPH_FILE, Manifest
from models.store import Artifact
from service.errors import StartError
from service.settings import Accelerator

_PROVIDERS: Final[dict[Accelerator, str]] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_WAY_OUT: Final = "install exactly one: pip install 'ganserve[cpu]' or pip install 'ganserve[gpu]'"
_FATAL_ONLY: Final = 4  # ONNX Runtime's log severity: it warns of a missing GPU, we raise instead


class Session:
    """Runs one artifact's graph. `run` is pure: rows in, the same rows' pixels out.

    Raises DamagedArtifact if the graph is not what the manifest says, StartError if the
    accelerator that was asked for is not the one that would run.
    """

    def __init__(
        self, artifact: Artifact, accelerator: Accelerator = "cpu", threads: int = 1, device_id: int = 0
    ):
        self.artifact = artifact
        self.runtime_version = check_runtime(accelerator)
        self._session = _open(artifact, accelerator, threads, device_id)
        self.provider: str = self._session.get_providers()[0]
        if self.provider != _PROVIDERS[accelerator]:
            raise StartError(
                f"accelerator {accelerator} was asked for, but ONNX Runtime runs on {self.provider}: "
                "is there a GPU with its driver, and are the CUDA libraries of the extra 'gpu' installed?"
            )
        self._input_names = _check_graph(self._session, artifact)

    def run(
        self,
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.uint8]:
        """latents [N, z_dim], class_idx [N], truncation_psi [N] -> images [N, H, W, C] uint8.

        Inputs that the graph does not have are ignored.
        """
        values = {"latents": latents, "class_idx": class_idx, "truncation_psi": truncation_psi}
        (images,) = self._session.run(["images"], {name: values[name] for name in self._input_names})
        return images  # type: ignore[no-any-return]  # ONNX Runtime has no types

    def golden_difference(self, rows: int | None = None) -> int:
        """Replay golden rows (the first `rows`, or all); return the largest grey-level difference."""
        golden = Golden.load(self.artifact.verified_file(GOLDEN_FILE), self.artifact.manifest)
        return golden.largest_difference(self.run, self.artifact.manifest, rows)


def check_runtime(accelerator: Accelerator) -> str:
    """Return the version of the one ONNX Runtime installed. Raises StartError for none, both, the wrong one.

    onnxruntime and onnxruntime-gpu write the same folder and whichever was installed last wins in
    silence, so package metadata is asked, not the import.
    """
    versions = {}
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not versions:
        raise StartError(f"no ONNX Runtime is installed; {_WAY_OUT}")
    if len(versions) == 2:
        raise StartError(
            "both onnxruntime and onnxruntime-gpu are installed, and they overwrite each other: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu, then {_WAY_OUT}"
        )
    if accelerator == "cuda" and "onnxruntime-gpu" not in versions:
        raise StartError(
            "accelerator cuda was asked for, but the installed ONNX Runtime is the CPU one: "
            "pip uninstall -y onnxruntime, then pip install 'ganserve[gpu]'"
        )
    return next(iter(versions.values()))


def _open(artifact: Artifact, accelerator: Accelerator, threads: int, device_id: int) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Workers share the machine's cores: a thread that spins while it waits takes them from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider: Any = _PROVIDERS[accelerator]
    if accelerator == "cuda":
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # HEURISTIC: the default search costs 0.6 s a new shape and may choose differently from run to run.
        provider = (provider, {"device_id": device_id, "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0})
    graph = artifact.verified_file(GRAPH_FILE)
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=[provider])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
        if accelerator == "cuda":
            raise StartError(f"accelerator cuda was asked for, but no session opens on it: {error}") from None
        raise DamagedArtifact(f"{artifact.address}: {GRAPH_FILE} cannot be loaded: {error}") from None


def _check_graph(session: Any, artifact: Artifact) -> list[str]:
    """Hold the graph's inputs and output against the manifest; return the input names."""
    wanted = expected_inputs(artifact.manifest)
    found = {node.name: (node.type, list(node.shape)) for node in session.get_inputs()}
    if set(found) != set(wanted):
        raise DamagedArtifact(
            f"{artifact.address}: the graph's inputs must be {', '.join(wanted)}, got {', '.join(found)}"
        )
    for name, (dtype, tail) in wanted.items():
        _check_tensor(artifact, name, found[name], dtype, tail)
    outputs = {node.name: (node.type, list(node.shape)) for node in session.get_outputs()}
    if set(outputs) != {"images"}:
        raise DamagedArtifact(
            f"{artifact.address}: the graph's output must be images, got {', '.join(outputs)}"
        )
    _check_tensor(artifact, "images", outputs["images"], "tensor(uint8)", list(artifact.manifest.img_shape))
    return list(wanted)


def expected_inputs(manifest: Manifest) -> dict[str, tuple[str, list[int]]]:
    """Graph inputs that `manifest` implies: name -> (ONNX Runtime's type, shape after the batch axis)."""
    inputs: dict[str, tuple[str, list[int]]] = {"latents": ("tensor(float)", [manifest.z_dim])}
    if manifest.num_classes:
        inputs["class_idx"] = ("tensor(int64)", [])
    if manifest.has_truncation:
        inputs["truncation_psi"] = ("tensor(float)", [])
    return inputs


def _check_tensor(
    artifact: Artifact, name: str, found: tuple[str, list[Any]], wanted_type: str, wanted_tail: list[int]
) -> None:
    found_type, found_shape = found
    static_batch = bool(found_shape) and isinstance(found_shape[0], int)
    # An output's sizes may be symbolic in the file; only a number that contradicts the manifest is wrong.
    contradicts = len(found_shape) != len(wanted_tail) + 1 or any(
        isinstance(size, int) and size != wanted
        for size, wanted in zip(found_shape[1:], wanted_tail, strict=False)
    )
    if found_type != wanted_type or static_batch or contradicts:
        raise DamagedArtifact(
            f"{artifact.address}: the graph's {name} must be {wanted_type} {['N', *wanted_tail]} "
            f"with N dynamic, got {found_type} {found_shape}"
        )
