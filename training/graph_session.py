"""An artifact's graphs on ONNX Runtime's CPU provider with one thread: the reference for golden pixels.

Refuses to own: serving (that is `service`, with its own sessions); checks (`training.promises`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.errors import DamagedArtifact

# Asked of the module: the distribution is onnxruntime or onnxruntime-gpu.
ONNXRUNTIME_VERSION: Final = str(onnxruntime.__version__)
_ROWS_A_RUN: Final = 64
MAX_PIXELS_A_RUN: Final = 2**20  # 64 images of 128×128: the activations of more would fill the memory
_FATAL_ONLY: Final = 4  # ONNX Runtime's log severity: what goes wrong is raised, and told once


def open_session(graph: Path | bytes, name: str, *, fuse: bool = True) -> Any:
    """An ONNX Runtime session on the CPU provider with one thread. Raises DamagedArtifact naming `name`.

    Without `fuse` each node runs as it is written, so that an error names a node of the file.
    """
    options = onnxruntime.SessionOptions()
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        raise DamagedArtifact(f"{name} cannot be loaded by ONNX Runtime: {error}") from None


class _OpenGraph:
    """One graph of an artifact. Raises DamagedArtifact for a file that is no graph."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path, str(path))
        self.inputs = {one.name: (one.type, one.shape) for one in self._session.get_inputs()}
        """(type, shape) by name; a symbolic size is text."""
        self.outputs = {one.name: (one.type, one.shape) for one in self._session.get_outputs()}


class GraphSession(_OpenGraph):
    """Renders rows through `model.onnx`."""

    def render(
        self,
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.uint8]:
        """Return images [N, H, W, C] for rows latents [N, z_dim], class_idx [N], truncation_psi [N].

        What the graph has no input for is left out. One run whatever N is: see `render_many` for many rows.
        """
        rows = {"latents": latents, "class_idx": class_idx, "truncation_psi": truncation_psi}
        feed = {name: values for name, values in rows.items() if name in self.inputs}
        images: npt.NDArray[np.uint8] = self._session.run(["images"], feed)[0]
        return images

    def render_many(
        self,
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.uint8]:
        """The same in runs of at most 64 rows, fewer where images are larger than 128×128."""
        parts = [
            self.render(latents[rows], class_idx[rows], truncation_psi[rows])
            for rows in runs(len(latents), self.outputs["images"][1][1:3])
        ]
        return np.concatenate(parts)


class DiscriminatorSession(_OpenGraph):
    """Scores images through `discriminator.onnx`."""

    def score(
        self, images: npt.NDArray[np.uint8], class_idx: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Return D's logits [N] float32 of images [N, H, W, C] uint8 and class_idx [N], in one run."""
        rows = {"images": images, "class_idx": class_idx}
        feed = {name: values for name, values in rows.items() if name in self.inputs}
        logits: npt.NDArray[np.float32] = self._session.run(["realness"], feed)[0]
        return logits

    def score_many(
        self, images: npt.NDArray[np.uint8], class_idx: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The same in runs of at most 64 rows, fewer where images are larger than 128×128."""
        parts = [self.score(images[rows], class_idx[rows]) for rows in runs(len(images), images.shape[1:3])]
        return np.concatenate(parts)


def runs(count: int, img_size: Sequence[int | str]) -> list[slice]:
    """`count` rows of images [height, width] in parts of at most 64, fewer of large ones."""
    pixels = math.prod(size for size in img_size if isinstance(size, int))
    rows_a_run = max(1, min(_ROWS_A_RUN, MAX_PIXELS_A_RUN // pixels))
    return [slice(first, first + rows_a_run) for first in range(0, count, rows_a_run)]
