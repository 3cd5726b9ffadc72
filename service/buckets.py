"""Fixed batch sizes: rows are padded up to the next bucket, and each bucket has buffers of its own.

Owns the padding, the buffers on the device that ONNX Runtime's IO binding reads and writes, the CUDA
graph of each bucket, and the proof that all buckets make the same pixels. On CUDA no other size ever
runs: no kernel is searched for in traffic, and a row's pixels do not depend on what it runs beside.

All runs happen in one thread of the process. ONNX Runtime keeps a captured graph with the thread that
captured it, and while one is captured no other thread may use the device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.batching import bucket_of
from service.errors import DeviceLost, StartError

Values = Mapping[str, npt.NDArray[Any]]
"""The graph's inputs by name, one row each."""

Tensors = Mapping[str, tuple[str, list[int]]]
"""Inputs or outputs by name, as a manifest has them: (type as ONNX Runtime writes it, sizes a row)."""

_DEVICE: Final = ThreadPoolExecutor(1, thread_name_prefix="device")
_GRAPH_ID: Final = "gpu_graph_id"  # ONNX Runtime's run option: which graph to capture, then to replay
_NO_GRAPH: Final = -1  # launch the kernels one by one, captured or not

logger = logging.getLogger(__name__)


class Buckets:
    """The batch sizes that one session runs."""

    def __init__(
        self,
        session: Any,
        inputs: Tensors,
        outputs: Tensors,
        sizes: Sequence[int],
        device: str,
        device_id: int = 0,
        graphs: bool = False,
    ) -> None:
        """Have buffers for `sizes`, ascending, on ONNX Runtime's `device`; `graphs`: capture and replay.

        `session` is an ONNX Runtime session with these `inputs` and this one of `outputs`.
        """
        self.sizes = tuple(sizes)
        self._session = session
        self._graphs = graphs
        self._bound = {
            size: _DEVICE.submit(_Bound, session, inputs, outputs, size, device, device_id).result()
            for size in sizes
        }

    def run(self, values: Values) -> npt.NDArray[Any]:
        """What the session gives for `values`, N rows: images [N, H, W, C], or D's logits [N]. In runs of at
        most the largest bucket.

        Raises what ONNX Runtime raises, and DeviceLost where the device runs nothing any more.
        """
        largest = self.sizes[-1]
        parts = [
            _DEVICE.submit(self._run, _slice(values, start, start + largest)).result()
            for start in range(0, _rows(values), largest)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def warm(self, values: Values) -> None:
        """Run, capture and compare every bucket on `values`, as many rows as the largest bucket holds.

        A bucket whose pixels are not those of the largest is left out from then on: a device may choose
        other kernels for it. Raises StartError where a replayed graph makes other pixels than its kernels.
        """
        largest = self.sizes[-1]
        assert all(len(value) == largest for value in values.values())
        launched = {size: self._each(size, values, graph=False) for size in self.sizes}
        if self._graphs:
            backwards = {name: value[::-1] for name, value in values.items()}
            for size in self.sizes:  # a replay that reads its capture's rows shows: those were others
                _DEVICE.submit(self._run_in, size, _slice(backwards, 0, size)).result()
            for size in self.sizes:
                if not np.array_equal(self._each(size, values), launched[size]):
                    raise StartError(
                        f"the CUDA graph of bucket {size} makes other pixels than its kernels do"
                    )
        equal = [size for size in self.sizes if np.array_equal(launched[size], launched[largest])]
        if left_out := [size for size in self.sizes if size not in equal]:
            logger.warning(
                "buckets %s make other pixels than bucket %d on this device, and are not used",
                ", ".join(map(str, left_out)),
                largest,
            )
            self.sizes = tuple(equal)
            for size in left_out:
                del self._bound[size]

    def _each(self, size: int, values: Values, graph: bool = True) -> npt.NDArray[Any]:
        """All rows of `values`, `size` at a time; between two runs another session's have their turn."""
        return np.concatenate(
            [
                _DEVICE.submit(self._run_in, size, _slice(values, start, start + size), graph).result()
                for start in range(0, _rows(values), size)
            ]
        )

    def _run(self, values: Values) -> npt.NDArray[Any]:
        try:
            return self._run_in(bucket_of(_rows(values), self.sizes), values)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            if self._is_lost():
                raise DeviceLost(f"the device runs nothing any more: {error}") from error
            raise

    def _run_in(self, size: int, values: Values, graph: bool = True) -> npt.NDArray[Any]:
        return self._bound[size].run(values, size if graph and self._graphs else _NO_GRAPH)

    def _is_lost(self) -> bool:
        """True if nothing runs: after some failures a CUDA context is dead for good."""
        size = self.sizes[0]
        try:
            self._run_in(size, self._bound[size].zeros())
        except Exception:  # as above
            return True
        return False


class _Bound:
    """One bucket: buffers at fixed addresses, on the device and on this side. Used in one thread only."""

    def __init__(
        self, session: Any, inputs: Tensors, outputs: Tensors, size: int, device: str, device_id: int
    ) -> None:
        from onnxruntime import OrtValue

        def buffer(shape: list[int], dtype: type[np.generic]) -> Any:
            return OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, device_id)

        self._session = session
        self._binding = session.io_binding()
        self._inputs: dict[str, tuple[npt.NDArray[Any], Any]] = {}
        for name, (kind, sizes) in inputs.items():
            shape, dtype = [size, *sizes], _DTYPES[kind]
            there = buffer(shape, dtype)
            self._inputs[name] = np.zeros(shape, dtype), there
            self._binding.bind_ortvalue_input(name, there)
        ((name, (kind, sizes)),) = outputs.items()
        self._output = buffer([size, *sizes], _DTYPES[kind])
        self._binding.bind_ortvalue_output(name, self._output)
        self._on_cpu = device == "cpu"

    def zeros(self) -> Values:
        """Rows that every generator takes."""
        return {name: np.zeros_like(here) for name, (here, _) in self._inputs.items()}

    def run(self, values: Values, graph_id: int) -> npt.NDArray[Any]:
        """The output of `values`, at most as many rows as this bucket has; the last row fills it up."""
        from onnxruntime import RunOptions

        rows = _rows(values)
        for name, (here, there) in self._inputs.items():
            value = values[name]
            assert len(value) == rows <= len(here), (name, value.shape, here.shape)
            np.copyto(here[:rows], value, casting="no")
            here[rows:] = value[-1]
            there.update_inplace(here)  # takes bytes as they are, whatever their type: hence casting="no"
        options = RunOptions()
        options.add_run_config_entry(_GRAPH_ID, str(graph_id))
        self._binding.synchronize_inputs()  # a replay's stream does not wait for copies
        self._session.run_with_iobinding(self._binding, options)
        self._binding.synchronize_outputs()
        output: npt.NDArray[Any] = self._output.numpy()[:rows]
        return output.copy() if self._on_cpu else output  # on the CPU `numpy` gives the buffer itself


_DTYPES: Final[Mapping[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


def _rows(values: Values) -> int:
    return len(next(iter(values.values())))


def _slice(values: Values, start: int, stop: int) -> Values:
    return {name: value[start:stop] for name, value in values.items()}
