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
from models.manifest import GOLDEN_FILE, GRAPH_FILE
from models.store import Artifact
from service.errors import StartError
from service.settings import Accelerator

_PROVIDERS: Final[dict[Accelerator, str]] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_WAY_OUT: Final = "install exactly one of the extras 'cpu' and 'gpu': pip install -e '.[cpu]' in a clone"
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
            "pip uninstall -y onnxruntime, then install the extra 'gpu'"
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
    manifest = artifact.manifest
    _check_tensors(artifact, "inputs", session.get_inputs(), manifest.graph_inputs)
    _check_tensors(artifact, "outputs", session.get_outputs(), manifest.graph_outputs)
    return list(manifest.graph_inputs)


def _check_tensors(
    artifact: Artifact, kind: str, nodes: Any, wanted: dict[str, tuple[str, list[int]]]
) -> None:
    names = [node.name for node in nodes]
    if set(names) != set(wanted):
        raise DamagedArtifact(
            f"{artifact.address}: the graph's {kind} must be {', '.join(wanted)}, got {', '.join(names)}"
        )
    for node in nodes:
        dtype, sizes = wanted[node.name]
        batch, *found = node.shape or [0]
        # Sizes may be symbolic in the file: only a number that contradicts the manifest is wrong.
        numbers_fit = len(found) == len(sizes) and all(
            one == size for one, size in zip(found, sizes, strict=True) if isinstance(one, int)
        )
        if node.type != dtype or not numbers_fit or isinstance(batch, int):
            raise DamagedArtifact(
                f"{artifact.address}: the graph's {node.name} must be {dtype} {['N', *sizes]} "
                f"with N dynamic, got {node.type} {node.shape}"
            )
