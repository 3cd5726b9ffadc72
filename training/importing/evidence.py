"""The foreign file as it came, run on ONNX Runtime: the truth that the wrapped graph is held to.

Feeds it in its own names, dtypes and batch size; the pixels of its answer are made in NumPy, apart from
the nodes that `training.importing.wrapping` adds. Also finds the node that is to blame when a promise breaks.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from models.errors import DamagedArtifact
from models.golden import Render
from training.errors import GraphRefused
from training.graph_session import open_session
from training.importing.interface import FLOATS, Interface
from training.pixels import nhwc, to_pixels
from training.promises import Rows

_DYNAMIC_EXPORT: Final = (
    "Export it with a dynamic batch: dynamic_shapes (or dynamic_axes) for dimension 0 of each input, "
    "and x.shape[0] or -1 in views"
)
_FAILED_NODE = re.compile(r"running (\w+) node\. Name:'([^']*)' Status Message: (.*)", re.DOTALL)


class Foreign(ABC):
    """Runs what has the inputs and the output of `interface`.

    `batch` is the one batch size that it can run, None for any.
    """

    def __init__(self, interface: Interface, batch: int | None) -> None:
        self.batch = batch
        self._interface = interface

    @abstractmethod
    def answer(self, feed: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """One run: the output for inputs by name."""

    def run(self, rows: Rows) -> npt.NDArray[Any]:
        """The output for `rows`, first axis N where the graph keeps its word.

        Raises GraphRefused saying what fails.
        """
        batch = self.batch or len(rows.latents)
        answers = []
        for first in range(0, len(rows.latents), batch):
            part = rows[slice(first, first + batch)]
            count = len(part.latents)
            feed = {
                name: np.resize(values, (batch, *values.shape[1:]))
                for name, values in self.feed(part).items()
            }
            try:
                answer = self.answer(feed)
            except Exception as error:  # ONNX Runtime's errors share no base class of their own
                raise GraphRefused(f"the graph cannot run {batch} rows at once, {_failure(error)}") from None
            answers.append(answer[:count] if count < batch else answer)
        return np.concatenate(answers)

    def feed(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """`rows` as the foreign graph takes them."""
        interface, feed = self._interface, {}
        values: npt.NDArray[Any]
        for port, values in (
            (interface.latents, rows.latents),
            (interface.truncation_psi, rows.truncation_psi),
            (interface.class_idx, rows.class_idx),
        ):
            if port is None:
                continue
            if port is interface.class_idx and port.elem_type in FLOATS:
                values = np.eye(interface.num_classes)[values]  # one-hot [N, num_classes]
            tail = [1] * (len(port.dims or ()) - values.ndim)
            dtype = helper.tensor_dtype_to_np_dtype(port.elem_type)
            feed[port.name] = values.reshape(*values.shape, *tail).astype(dtype)
        return feed


class ForeignGraph(Foreign):
    """Runs a graph. Raises GraphRefused if it does not load."""

    def __init__(
        self, model: onnx.ModelProto, interface: Interface, batch: int | None, *, fuse: bool = True
    ) -> None:
        super().__init__(interface, batch)
        try:
            self._session = open_session(model.SerializeToString(), "the graph", fuse=fuse)
        except DamagedArtifact as error:
            raise GraphRefused(one_line(str(error))) from None

    def answer(self, feed: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        (values,) = self._session.run([self._interface.output.name], feed)
        return np.asarray(values)


def reference_render(graph: Foreign, layout: str, value_range: str) -> Render:
    """A function that makes the pixels of rows from the foreign file as it came."""

    def render(
        latents: npt.NDArray[np.float32],
        class_idx: npt.NDArray[np.int64],
        truncation_psi: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.uint8]:
        rows = Rows(latents=latents, class_idx=class_idx, truncation_psi=truncation_psi)
        return to_pixels(nhwc(graph.run(rows), layout)[0], value_range)

    return render


def check_free(model: onnx.ModelProto, interface: Interface, rows: Rows) -> None:
    """Raise GraphRefused, naming the node, if `model` does not give as many images as there are `rows`."""
    count = len(rows.latents)
    try:
        answer = ForeignGraph(model, interface, None, fuse=False).run(rows)
    except GraphRefused as refusal:
        raise GraphRefused(f"{refusal}. {_DYNAMIC_EXPORT}") from None
    if answer.ndim == 0 or len(answer) != count:
        node = mixing_node(model, interface, rows)
        raise GraphRefused(
            f"the graph must give {count} images for {count} rows, the output's shape is "
            f"{list(answer.shape)}: the batch size is fixed inside{f', look at {node}' if node else ''}. "
            f"{_DYNAMIC_EXPORT}"
        )


def mixing_node(model: onnx.ModelProto, interface: Interface, rows: Rows) -> str | None:
    """Name the first node whose answer for a row is not the row's own; None if there is none to be found.

    `model` has a free batch. Each of its float values becomes an output, for one run of a row alone and one
    of the row with a batch mate: twice as many numbers must come out, and the same ones first.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feed = ForeignGraph(model, interface, None).feed
    try:
        session = open_session(exposed.SerializeToString(), "the graph")
        alone, both = (
            dict(zip(names, session.run(names, feed(rows[slice(count)])), strict=True))
            | feed(rows[slice(count)])
            for count in (1, 2)
        )
    except Exception:  # not every value can be an output: then the refusal goes without a name
        return None
    for node in model.graph.node:
        in_rows = [
            name for name in node.input if _is_float(alone.get(name)) and _has_rows(alone[name], both[name])
        ]
        for name in node.output:
            if in_rows and _is_float(alone.get(name)) and not _same_rows(alone[name], both[name]):
                return f"{node.name or name} ({node.op_type})"
    return None


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _has_rows(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> bool:
    return two.size == 2 * one.size


def _same_rows(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> bool:
    """Whether `two` is twice as large as `one` and, with the batch as first axis, begins with it."""
    if not _has_rows(one, two):
        return False
    if one.ndim == 0 or one.shape[1:] != two.shape[1:]:
        return True  # the batch is in another axis here: what comes of it will show further on
    return np.allclose(one, two[: len(one)], rtol=1e-3, atol=1e-4, equal_nan=True)


def one_line(text: str) -> str:
    """An error of ONNX Runtime in one line of bearable length."""
    return " ".join(text.split())[:400]


def _failure(error: Exception) -> str:
    match = _FAILED_NODE.search(str(error))
    if match is None:
        return one_line(str(error))
    reason = match[3].rpartition("was false.")[2]  # before it stand ONNX Runtime's source file and condition
    return f"{match[2] or 'a node'} ({match[1]}) cannot: {one_line(reason)[:200]}"
