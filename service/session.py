"""One generator on one device, and the discriminator beside it: ONNX Runtime, opened and checked.

Owns which runtime is installed, session options and providers, and the border check that a
graph is what the manifest says. Refuses to own batching, seeds and encoding. ONNX Runtime is
imported here only, and only when a session is opened.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import DamagedArtifact
from models.golden import Golden
from models.manifest import DISCRIMINATOR_FILE, GOLDEN_FILE, GRAPH_FILE
from models.sampling import LatentSampler
from models.store import Artifact
from service.batching import bucket_of
from service.buckets import Buckets, Tensors
from service.device import Accelerator, DeviceOptions
from service.errors import StartError

_PROVIDERS: Final[dict[Accelerator, str]] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DEVICES: Final[dict[Accelerator, str]] = {"cpu": "cpu", "cuda": "cuda"}
# What ONNX Runtime itself leaves on the CPU beside a GPU: arithmetic on shapes, a few integers each. On
# pixels these have CUDA kernels, so there they are elsewhere only where others are, too.
_SHAPE_OPS: Final = {
    "Shape", "Size", "Constant", "ConstantOfShape", "Gather", "Concat", "Slice", "Split", "Squeeze",
    "Unsqueeze", "Reshape", "Cast", "Identity", "Range", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max",
    "Neg", "Abs", "Floor", "Ceil", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Equal", "Greater",
    "Less", "Not", "And", "Or", "Where", "Expand",
}  # fmt: skip
_WAY_OUT: Final = "install exactly one of the extras 'cpu' and 'gpu': pip install -e '.[cpu]' in a clone"
_FATAL_ONLY: Final = 4  # ONNX Runtime's log severity: it warns of a missing GPU, we raise instead

_DEFAULT_OPTIONS: Final = DeviceOptions()

logger = logging.getLogger(__name__)


class Session:
    """Runs one artifact's graph. `run` is pure: rows in, the same rows' pixels out.

    Raises DamagedArtifact if the graph is not what the manifest says, StartError if the
    accelerator that was asked for is not the one that would run.
    """

    def __init__(
        self,
        artifact: Artifact,
        accelerator: Accelerator = "cpu",
        threads: int = 1,
        device_id: int = 0,
        options: DeviceOptions = _DEFAULT_OPTIONS,
    ):
        self.artifact = artifact
        self.runtime_version = check_runtime(accelerator)
        self.provider = provider_of(accelerator)
        self._buckets: Buckets | None = None
        self._session: Any = None
        sizes = options.buckets_on(accelerator)
        self.arithmetic = arithmetic_of(accelerator, options)
        """What besides provider and version decides the pixels; empty on the CPU, where nothing does."""

        def open_(graphs: bool) -> None:
            self._session = None  # its memory first
            tensors = artifact.manifest.graph_inputs, artifact.manifest.graph_outputs
            self._session = _open(
                artifact, GRAPH_FILE, tensors, accelerator, threads, device_id, options, graphs
            )
            if sizes:
                self._buckets = self._warm_buckets(sizes, _DEVICES[accelerator], device_id, graphs)

        if accelerator == "cuda" and options.cuda_graphs:
            _with_graphs_or_without(artifact.address, open_)
        else:
            open_(False)

    def _warm_buckets(self, sizes: Sequence[int], device: str, device_id: int, graphs: bool) -> Buckets:
        manifest = self.artifact.manifest
        seeds = np.arange(sizes[-1])
        latents = LatentSampler(manifest.z_dim, manifest.prior).draw(seeds)
        values = self._inputs(latents, seeds % max(1, manifest.num_classes), np.ones(len(seeds), np.float32))
        try:
            tensors = manifest.graph_inputs, manifest.graph_outputs
            buckets = Buckets(self._session, *tensors, sizes, device, device_id, graphs)
            buckets.warm(values)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            if graphs:  # a capture that fails can take the process with it when it is cleaned up
                address, why = self.artifact.address, _short(error)
                logger.warning("%s: CUDA graphs (--no-cuda-graphs) fail: %s", address, why)
                raise
            raise StartError(
                f"{self.artifact.address} does not run on {self.provider}: {_short(error)}"
            ) from None
        return buckets

    def bucket(self, rows: int) -> int:
        """How many rows the device runs when it is given `rows`, padding among them."""
        return rows if self._buckets is None else bucket_of(rows, self._buckets.sizes)

    def _inputs(
        self,
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> dict[str, npt.NDArray[Any]]:
        values: dict[str, npt.NDArray[Any]] = {
            "latents": latents,
            "class_idx": class_idx,
            "truncation_psi": truncation_psi,
        }
        return {name: values[name] for name in self.artifact.manifest.graph_inputs}

    def run(
        self,
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.uint8]:
        """latents [N, z_dim], class_idx [N], truncation_psi [N] -> images [N, H, W, C] uint8.

        Inputs that the graph does not have are ignored.
        """
        values = self._inputs(latents, class_idx, truncation_psi)
        if self._buckets is not None:
            return self._buckets.run(values)
        images: npt.NDArray[np.uint8]
        (images,) = self._session.run(["images"], values)
        if len(images) != len(latents):
            raise RuntimeError(f"the graph must make an image a row, it made {len(images)} of {len(latents)}")
        return images

    def golden_difference(self, rows: int | None = None) -> int:
        """Replay golden rows (the first `rows`, or all); return the largest grey-level difference."""
        golden = Golden.load(self.artifact.verified_file(GOLDEN_FILE), self.artifact.manifest)
        return golden.largest_difference(self.run, self.artifact.manifest, rows)


class DiscriminatorSession:
    """Runs an artifact's D. `score` is pure, as `Session.run` is. Raises as Session does."""

    def __init__(
        self,
        artifact: Artifact,
        accelerator: Accelerator = "cpu",
        threads: int = 1,
        device_id: int = 0,
        options: DeviceOptions = _DEFAULT_OPTIONS,
    ):
        self.artifact = artifact
        tensors = artifact.manifest.discriminator_inputs, artifact.manifest.discriminator_outputs
        self._session = _open(
            artifact, DISCRIMINATOR_FILE, tensors, accelerator, threads, device_id, options, False
        )
        # One size on a GPU: the last bits of a float, unlike a pixel, would differ between two.
        largest = options.buckets_on(accelerator)[-1:]
        self._buckets = (
            Buckets(self._session, *tensors, largest, _DEVICES[accelerator], device_id) if largest else None
        )

    def score(
        self, images: npt.NDArray[np.uint8], class_idx: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """images [N, H, W, C] uint8, class_idx [N] -> D's logits [N]."""
        values: dict[str, npt.NDArray[Any]] = {"images": images, "class_idx": class_idx}
        values = {name: values[name] for name in self.artifact.manifest.discriminator_inputs}
        if self._buckets is not None:
            return self._buckets.run(values)
        (logits,) = self._session.run(["realness"], values)
        return logits  # type: ignore[no-any-return]  # ONNX Runtime has no types

    def golden_difference(self, rows: int | None = None) -> float:
        """Score golden rows (the first `rows`, or all); return the largest difference of their logits."""
        golden = Golden.load(self.artifact.verified_file(GOLDEN_FILE), self.artifact.manifest)
        return golden.largest_realness_difference(self.score, rows)


def provider_of(accelerator: Accelerator) -> str:
    """ONNX Runtime's name of what runs on `accelerator`."""
    return _PROVIDERS[accelerator]


def arithmetic_of(accelerator: Accelerator, options: DeviceOptions = _DEFAULT_OPTIONS) -> str:
    """What besides provider and version decides the pixels that a session would make."""
    if accelerator == "cpu":
        return ""
    largest = options.buckets_on(accelerator)[-1]
    facts = {"bucket": largest, "deterministic": options.deterministic, "tf32": options.tf32}
    return " ".join(f"{name}={value:d}" for name, value in facts.items())


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


def _with_graphs_or_without(address: str, open_: Callable[[bool], None]) -> None:
    """`open_` with CUDA graphs; where it cannot, without them, and say so."""
    try:
        open_(True)
        return
    except DamagedArtifact:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
        why = _short(error)
    try:
        open_(False)
    except StartError as error:
        if _short(error) == why:  # not the graphs' fault
            raise
        # A capture that fails can leave the process without its device.
        raise StartError(f"{error}; CUDA graphs failed before it ({why}): try --no-cuda-graphs") from None
    logger.warning("%s runs without CUDA graphs: %s", address, why)


def _open(
    artifact: Artifact,
    file: str,
    tensors: tuple[Tensors, Tensors],
    accelerator: Accelerator,
    threads: int,
    device_id: int,
    options: DeviceOptions,
    graphs: bool,
) -> Any:
    """ONNX Runtime's session of one graph, with inputs and outputs as in `tensors`, on the provider that was
    asked for. Raises DamagedArtifact, StartError."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # Workers share the machine's cores: a thread that spins while it waits takes them from the others.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider: Any = _PROVIDERS[accelerator]
    if accelerator == "cuda":
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        settings.use_deterministic_compute = options.deterministic
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        provider = (provider, _cuda_options(device_id, options, graphs))
    graph = artifact.verified_file(file)
    try:
        with graph.open("rb") as opened:
            # By its descriptor, beside which no other file is found: weights outside are in no digest. The
            # fallback would open the session again on the CPU, and print that it did.
            session = onnxruntime.InferenceSession(
                f"/proc/self/fd/{opened.fileno()}", settings, providers=[provider], enable_fallback=0
            )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
        if accelerator == "cuda":
            raise StartError(
                f"accelerator cuda was asked for, but no session opens on it: {_short(error)}"
            ) from None
        raise DamagedArtifact(f"{artifact.address}: {file} cannot be loaded: {error}") from None
    found = session.get_providers()[0]
    if found != _PROVIDERS[accelerator]:
        raise StartError(
            f"accelerator {accelerator} was asked for, but ONNX Runtime runs on {found}: "
            "is there a GPU with its driver, and are the CUDA libraries of the extra 'gpu' installed?"
        )
    _check_tensors(artifact, "inputs", session.get_inputs(), tensors[0])
    _check_tensors(artifact, "outputs", session.get_outputs(), tensors[1])
    if accelerator == "cuda":
        _check_placement(artifact, session)
    return session


def _short(error: Exception) -> str:
    """The first line of what `error` says: ONNX Runtime may tell whole graphs behind it."""
    return str(error).partition("\n")[0][:500]


def _cuda_options(device_id: int, options: DeviceOptions, graphs: bool) -> dict[str, int | str]:
    return {
        "device_id": device_id,
        # The default search costs 0.6 s a new shape and may choose differently from run to run.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": int(options.tf32),
        "enable_cuda_graph": int(graphs),
    }


def _check_placement(artifact: Artifact, session: Any) -> None:
    """Raise StartError if nodes that make pixels would run elsewhere than was asked for.

    ONNX Runtime's own `session.disable_cpu_ep_fallback` refuses arithmetic on shapes too, which it places
    on the CPU by itself and which is no fallback.
    """
    elsewhere = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != _PROVIDERS["cuda"]
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPS
    )
    if elsewhere:
        names = ", ".join(f"{count} {op}" for op, count in sorted(elsewhere.items()))
        raise StartError(
            f"accelerator cuda was asked for, but ONNX Runtime would run {names} of {artifact.address} "
            "on the CPU: it has no CUDA kernel for them; serve it with --accelerator cpu"
        )


def _check_tensors(artifact: Artifact, kind: str, nodes: Any, wanted: Tensors) -> None:
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
