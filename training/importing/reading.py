"""A foreign ONNX file becomes one model in memory, or a sentence.

Takes in weights that lie beside the file, and never a byte from outside its folder. Nothing is run here.
Refuses to own: what the graph means (`training.importing.interface`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import TensorProto

from models.errors import show
from models.store import sha256_of
from training.errors import GraphRefused
from training.graph import MAX_BYTES, messages_of, nodes_of, opset_of, too_large
from training.importing.evidence import Foreign, ForeignGraph
from training.importing.interface import Interface

MIN_OPSET: Final = 9
"""Older graphs are converted to it: OneHot begins there."""
KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators that every ONNX Runtime brings."""

_NOT_ONNX: Final = (
    "a checkpoint (.pt, .pth, .pkl, .safetensors, .h5) must be exported first, "
    "for example with torch.onnx.export"
)
_PUBLISH: Final = (
    "a network is code. Load the weights into your own module (torch.load with weights_only=True) and "
    "publish that with training.export.publish, or export it with torch.onnx.export"
)


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """A file as it came, with all its weights in memory."""

    model: onnx.ModelProto
    name: str
    """The file's name, without its folder."""
    sha256: str
    external_data: dict[str, str]
    """sha256 of each file of weights beside it, by name."""

    def runner(self, interface: Interface, batch: int | None) -> Foreign:
        """What gives the answers that the file itself means."""
        return ForeignGraph(self.model, interface, batch)


def read_foreign(path: Path) -> ForeignFile:
    """Read an ONNX file and its external data.

    Raises GraphRefused for a file that is no ONNX, is too large, uses operators that ONNX Runtime lacks,
    or names weights outside its own folder; OSError where a file cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise GraphRefused(too_large(path.name, path.stat().st_size))
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise GraphRefused(
            f"{path.name} is no ONNX file and no whole torch.export archive: {_NOT_ONNX}"
        ) from None
    standard = any(opset.domain in ("", "ai.onnx") for opset in model.opset_import)
    if not model.graph.node or not model.graph.output or not standard:  # an empty file is an empty message
        raise GraphRefused(f"{path.name} is no ONNX file, or one without a graph: {_NOT_ONNX}")
    _check_domains(model)
    external_data = _take_in_external_data(model, path)
    if model.functions:
        model = _without_functions(model)
    _drop_weights_from_inputs(model)
    return ForeignFile(model=model, name=path.name, sha256=sha256_of(path), external_data=external_data)


def is_archive(path: Path) -> bool:
    """Whether the file is what `torch.export.save` writes. Raises GraphRefused for torch's other formats."""
    with path.open("rb") as file:
        pickled = file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    names = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            whole = min((one.header_offset for one in archive.infolist()), default=1) == 0
            names = {part for name in archive.namelist() for part in (name, name.partition("/")[2]) if whole}
    if "constants.pkl" in names:
        raise GraphRefused(
            f"{path.name} is TorchScript, which is not read: export the module with torch.onnx.export"
        )
    if pickled or "data.pkl" in names:
        raise GraphRefused(f"{path.name} is a pickle of torch, a state dict or a module: {_PUBLISH}")
    return bool({"archive_format", "serialized_exported_program.json"} & names)


def modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in an opset of at least MIN_OPSET. Raises GraphRefused if there is no way."""
    opset = opset_of(model)
    if opset >= MIN_OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # the converter's errors share no base class
        raise GraphRefused(
            f"the graph is of opset {opset} and cannot be converted to {MIN_OPSET}: "
            f"{plain_text(str(error))}. Export it again with opset {MIN_OPSET} or later"
        ) from None


def plain_text(text: str) -> str:
    """What a file says of itself, as it may stand in a manifest and a card: one line, no markup."""
    return re.sub(r"[^\w .,+()-]", "_", f"{text}")[:80]  # protobuf gives bytes for what is no UTF-8


def _check_domains(model: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes_of(model):
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
            raise GraphRefused(
                f"the graph must use operators that ONNX Runtime has, {node.name or 'a node'} is "
                f"{node.op_type} of the domain {show(node.domain)}: write it with standard operators "
                "before the export"
            )


def _take_in_external_data(model: onnx.ModelProto, path: Path) -> dict[str, str]:
    """Load every tensor that lies in another file of the same folder; return those files' sha256."""
    folder = path.parent.resolve()
    tensors = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    files = {tensor.name: _external_file(tensor, folder) for tensor in tensors}
    total = path.stat().st_size + sum(file.stat().st_size for file in set(files.values()))
    if total > MAX_BYTES:
        raise GraphRefused(too_large(f"{path.name} with its external data", total))
    for tensor in tensors:
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (ValueError, onnx.checker.ValidationError) as error:
            raise GraphRefused(f"the external data of {tensor.name} cannot be read: {error}") from None
    return {str(file.relative_to(folder)): sha256_of(file) for file in sorted(set(files.values()))}


def _external_file(tensor: TensorProto, folder: Path) -> Path:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    file = (folder / location.replace("\0", "")).resolve()  # follows links, so one that leads out is seen
    if not location or "\0" in location or not file.is_relative_to(folder):
        raise GraphRefused(
            f"external data must lie in the folder of the file, that of {tensor.name} is {show(location)}: "
            "put the file beside it, or save the model as one file"
        )
    if not file.is_file():
        raise GraphRefused(
            f"the external data of {tensor.name}, {show(location)}, is not there: "
            "copy it into the folder of the file"
        )
    return file


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    return (message for message in messages_of(model) if isinstance(message, TensorProto))


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the inliner's errors share no base class
        raise GraphRefused(
            f"the graph's own functions cannot be written out: {plain_text(str(error))}. Export it without "
            "functions, for example with export_modules_as_functions=False"
        ) from None


def _drop_weights_from_inputs(model: onnx.ModelProto) -> None:
    """Before IR version 4 every weight had to be listed among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
