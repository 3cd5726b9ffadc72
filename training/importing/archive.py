"""A `torch.export` archive becomes an ONNX model, with the program beside it as the truth of its pixels.

The one room of an import that needs torch. Reading an archive can run code that it brings, so nobody comes
here before the user has said that its maker is trusted. Refuses to own: what the graph means
(`training.importing.interface`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.utils._pytree import tree_leaves, tree_unflatten

from models.store import sha256_of
from training.errors import GraphRefused
from training.importing.evidence import Foreign, one_line
from training.importing.interface import Interface
from training.importing.reading import ForeignFile
from training.tracing import check_program, quiet_torch, to_onnx

_BATCH: Final = 16


@dataclass(frozen=True, kw_only=True)
class ForeignArchive(ForeignFile):
    """A program as it came, and its translation."""

    program: ExportedProgram
    input_names: tuple[str, ...]
    """Of the translation, in the order in which the program takes them."""
    output_names: tuple[str, ...]

    def runner(self, interface: Interface, batch: int | None) -> Foreign:
        return _ForeignProgram(self, interface, batch)


def read_archive(path: Path) -> ForeignArchive:
    """Read and translate the program in the archive at `path`, whose maker is trusted.

    Raises GraphRefused for an archive that cannot be read, a program that draws
    random numbers or trains, or one that ONNX has no form of.
    """
    with quiet_torch():
        try:
            program = move_to_device_pass(torch.export.load(path), "cpu")
        except Exception as error:  # a damaged archive fails in any way it likes
            raise GraphRefused(
                f"{path.name} cannot be read by torch {torch.__version__}: "
                f"{one_line(f'{type(error).__name__}: {error}')}"
            ) from None
    check_program(program)
    count = len(program.graph_signature.user_outputs)
    names = ["output"] if count == 1 else [f"output{place}" for place in range(count)]
    model = to_onnx(program, names)
    model.producer_name = f"torch.export, translated by {model.producer_name}"
    return ForeignArchive(
        model=model,
        name=path.name,
        sha256=sha256_of(path),
        external_data={},
        program=program,
        input_names=tuple(one.name for one in model.graph.input),
        output_names=tuple(names),
    )


class _ForeignProgram(Foreign):
    """Runs the program itself, in torch on the CPU."""

    def __init__(self, archive: ForeignArchive, interface: Interface, batch: int | None) -> None:
        super().__init__(interface, batch or _allowed_batch(archive.program))
        self._archive = archive
        self._module = archive.program.module()
        self._place = archive.output_names.index(interface.output.name)
        fed = {one.name for one in interface.inputs}
        if unused := [name for name in archive.input_names if name not in fed]:
            raise GraphRefused(
                f"every input must reach the output of images, {', '.join(unused)} does not: "
                "leave it out of the module's forward"
            )

    @torch.no_grad()
    def answer(self, feed: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        tensors = [torch.from_numpy(feed[name]) for name in self._archive.input_names]
        arguments, keywords = tree_unflatten(tensors, self._archive.program.call_spec.in_spec)
        answers = tree_leaves(self._module(*arguments, **keywords))
        values: npt.NDArray[Any] = answers[self._place].numpy()
        return values


def _allowed_batch(program: ExportedProgram) -> int:
    """A batch size in the range that the program was saved for; 16 where that is free."""
    size = _BATCH
    for allowed in program.range_constraints.values():
        size = min(max(size, allowed.lower), allowed.upper)
    return int(size)
