"""An artifact's graph on ONNX Runtime's CPU provider with one thread: the reference for golden pixels.

Refuses to own: serving (that is `service`, with its own sessions); checks (`training.promises`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.errors import DamagedArtifact

# Asked of the module: the distribution is onnxruntime or onnxruntime-gpu.
ONNXRUNTIME_VERSION: Final = str(onnxruntime.__version__)
_ROWS_A_RUN: Final = 64


class GraphSession:
    """Renders rows through `model.onnx`. Raises DamagedArtifact for a file that is no graph."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise DamagedArtifact(f"{path} cannot be loaded by ONNX Runtime: {error}") from None
        self.inputs = {one.name: (one.type, one.shape) for one in self._session.get_inputs()}
        """(type, shape) by name; a symbolic size is text."""
        self.outputs = {one.name: (one.type, one.shape) for one in self._session.get_outputs()}

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
        """The same in runs of at most 64 rows."""
        images = []
        for first in range(0, len(latents), _ROWS_A_RUN):
            rows = slice(first, first + _ROWS_A_RUN)
            images.append(self.render(latents[rows], class_idx[rows], truncation_psi[rows]))
        return np.concatenate(images)
