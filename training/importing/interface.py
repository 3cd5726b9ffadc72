"""What goes into a foreign graph and what comes out: found where there is one answer, asked for where not.

Refuses to own: running the graph (`training.importing.evidence`), changing it (`.batch`, `.wrapping`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import onnx
from onnx import TensorProto

from models.errors import InvalidValue, show
from models.manifest import MAX_Z_DIM
from models.sampling import Prior
from training.errors import GraphRefused
from training.pixels import check_layout, check_range

FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
INTEGERS: Final = (TensorProto.INT64, TensorProto.INT32)
_UNCHANGED: Final = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user says of the graph; None is what can be found out. Raises InvalidValue for a wrong one."""

    latents_input: str | None = None
    class_input: str | None = None
    truncation_input: str | None = None
    output: str | None = None
    value_range: str | None = None
    """What black and white are in the output: one of `training.pixels.RANGES`."""
    layout: str | None = None
    """"NCHW", "NHWC" or "flat:CxHxW"."""
    prior: Prior = "normal"
    z_dim: int | None = None
    """Width of the latents, where the graph leaves it open."""
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.value_range is not None:
            check_range(self.value_range)
        if self.layout is not None:
            check_layout(self.layout)
        if self.num_classes is not None and self.class_names and self.num_classes != len(self.class_names):
            raise InvalidValue(
                f"--class-names must be one name for each of the {self.num_classes} classes, "
                f"got {len(self.class_names)}"
            )


@dataclass(frozen=True)
class Port:
    """An input or output of the foreign graph."""

    name: str
    elem_type: int
    """A type of TensorProto."""
    dims: tuple[int | None, ...] | None
    """None for a size that is not a number; None in all for a value without a shape."""

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> Self:
        tensor = value.type.tensor_type
        dims = tuple(one.dim_value if one.dim_value > 0 else None for one in tensor.shape.dim)
        return cls(value.name, tensor.elem_type, dims if tensor.HasField("shape") else None)

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes, or None."""
        return self.dims[0] if self.dims else None

    @property
    def is_column(self) -> bool:
        """One number a row: [N] or [N, 1]."""
        return self.dims is not None and (len(self.dims) == 1 or (len(self.dims) == 2 and self.dims[1] == 1))

    @property
    def text(self) -> str:
        """Name, type and sizes, such as "z (float Nx64)"."""
        sizes = "x".join("N" if one is None else str(one) for one in self.dims or ())
        known = self.elem_type in TensorProto.DataType.values()
        elem_type = TensorProto.DataType.Name(self.elem_type).lower() if known else "of an unknown type"
        return f"{self.name} ({elem_type} {sizes or 'without a shape'})"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The parts that the foreign graph's inputs and output play."""

    latents: Port
    z_dim: int
    class_idx: Port | None
    """Integers [N] or [N, 1], or floats [N, num_classes] that are one-hot."""
    num_classes: int
    truncation_psi: Port | None
    output: Port

    @property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(one for one in (self.latents, self.class_idx, self.truncation_psi) if one is not None)

    @property
    def static_batch(self) -> int | None:
        """The one batch size that the file can run, or None if that is free."""
        return next((one.batch for one in self.inputs if one.batch is not None), None)


def find_output(model: onnx.ModelProto, choices: Choices) -> Port:
    """The output of images. Raises GraphRefused naming the outputs and the flag to give."""
    outputs = [Port.of(one) for one in model.graph.output]
    if choices.output is not None:
        found = [one for one in outputs if one.name == choices.output]
    elif len(outputs) == 1:
        found = outputs
    else:
        raise GraphRefused(
            f"the graph has several outputs, {_texts(outputs)}: name the one of images with --output"
        )
    if not found:
        raise GraphRefused(
            f"--output must name an output of the graph, got {show(choices.output)}: it has {_texts(outputs)}"
        )
    if found[0].elem_type not in (*FLOATS, TensorProto.UINT8):
        raise GraphRefused(f"the output must be floats or uint8, it is {found[0].text}: choose with --output")
    return found[0]


def find_interface(model: onnx.ModelProto, output: Port, choices: Choices) -> Interface:
    """Give each input its part; all must reach the output. Raises GraphRefused naming the flag to give."""
    inputs = {one.name: Port.of(one) for one in model.graph.input}
    named = {"--class-input": choices.class_input, "--truncation-input": choices.truncation_input}
    for flag, name in {"--latents-input": choices.latents_input, **named}.items():
        if name is not None and name not in inputs:
            raise GraphRefused(
                f"{flag} must name an input that reaches the output, got {show(name)}: "
                f"these do: {_texts(inputs.values())}"
            )
    free = [one for one in inputs.values() if one.name not in named.values()]
    latents = inputs[choices.latents_input] if choices.latents_input else _find_latents(free)
    class_idx = inputs[choices.class_input] if choices.class_input else _find_class(free)
    truncation_psi = inputs[choices.truncation_input] if choices.truncation_input else None
    used = {one.name for one in (latents, class_idx, truncation_psi) if one is not None}
    if rest := [one for one in inputs.values() if one.name not in used]:
        raise GraphRefused(
            f"every input must have a part to play, {_texts(rest)} has none: name it with --class-input or "
            "--truncation-input, or make it a constant of the graph before the export"
        )
    if truncation_psi is not None and (
        truncation_psi.elem_type not in FLOATS or not truncation_psi.is_column
    ):
        raise GraphRefused(
            f"--truncation-input must be floats [N], one psi a row, it is {truncation_psi.text}: "
            "take psi as a vector in the module's forward, or make it a constant"
        )
    return Interface(
        latents=latents,
        z_dim=_width_of(latents, choices.z_dim),
        class_idx=class_idx,
        num_classes=_count_classes(model, class_idx, choices),
        truncation_psi=truncation_psi,
        output=output,
    )


def _find_latents(inputs: list[Port]) -> Port:
    found = [one for one in inputs if one.elem_type in FLOATS and _is_latent(one)]
    if len(found) != 1:
        raise GraphRefused(
            "the latents must be the only float input of rank 2 (or of rank 4 that ends in 1x1), among "
            f"{_texts(inputs)} there {'is none' if not found else f'are {len(found)}'}: name "
            f"{'a one-hot input of classes with --class-input, else ' * bool(found)}"
            "the latents with --latents-input"
        )
    return found[0]


def _is_latent(port: Port) -> bool:
    dims = port.dims or ()
    return len(dims) == 2 or (len(dims) == 4 and dims[2:] == (1, 1))


def _width_of(latents: Port, z_dim: int | None) -> int:
    if latents.elem_type not in FLOATS or not _is_latent(latents):
        raise GraphRefused(
            "the latents must be float, float16 or double [N, z_dim] or [N, z_dim, 1, 1], "
            f"they are {latents.text}"
        )
    assert latents.dims is not None
    width = latents.dims[1]
    if width is None and z_dim is None:
        raise GraphRefused(
            f"the width of the latents must be a number, it is open in {latents.text}: give --z-dim"
        )
    if width is not None and z_dim not in (None, width):
        raise InvalidValue(f"--z-dim must be {width}, the width of {latents.text}, got {z_dim}")
    found = width or z_dim or 0
    if found > MAX_Z_DIM:
        raise GraphRefused(f"the latents must be at most {MAX_Z_DIM} numbers wide, they are {found}")
    return found


def _find_class(inputs: list[Port]) -> Port | None:
    found = [one for one in inputs if one.elem_type in INTEGERS and one.is_column]
    if len(found) > 1:
        raise GraphRefused(f"the classes could be {_texts(found)}: name them with --class-input")
    return found[0] if found else None


def _count_classes(model: onnx.ModelProto, class_idx: Port | None, choices: Choices) -> int:
    stated = choices.num_classes or len(choices.class_names) or None
    if class_idx is None:
        if stated is not None:
            raise InvalidValue(
                "--num-classes and --class-names must be left out: the graph has no input of classes; "
                "a one-hot input is named with --class-input"
            )
        return 0
    if class_idx.elem_type in INTEGERS and class_idx.is_column:
        found = stated or _embedding_rows(model, class_idx.name)
    elif class_idx.elem_type in FLOATS and class_idx.dims is not None and len(class_idx.dims) == 2:  # one-hot
        found = class_idx.dims[1] or stated
        if stated not in (None, found):
            raise InvalidValue(f"--num-classes must be {found}, the width of {class_idx.text}, got {stated}")
    else:
        raise GraphRefused(
            "--class-input must be int64 or int32 [N], or one-hot floats [N, classes], "
            f"it is {class_idx.text}"
        )
    if found is None:
        raise GraphRefused(
            f"the number of classes of {class_idx.text} is not written in the graph: "
            "give --num-classes or --class-names"
        )
    return found


def _embedding_rows(model: onnx.ModelProto, name: str) -> int | None:
    """Rows of the table that the classes choose from, where they reach one unchanged."""
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    classes = {name}
    for node in model.graph.node:
        table, index = (*node.input, "", "")[:2]
        if node.op_type in _UNCHANGED and table in classes:
            classes.update(node.output)
        if node.op_type == "Gather" and index in classes and table in sizes:
            return int(sizes[table])
    return None


def _texts(ports: Iterable[Port]) -> str:
    return ", ".join(one.text for one in ports) or "none"
