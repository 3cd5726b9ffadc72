"""A torch module becomes a torch program, and a program one ONNX graph, or a sentence with the way out.

The batch stays free; what draws random numbers, trains, or decides in Python by the values of a row is
refused here, where torch still knows the module and the line to name. Refuses to own: what only shows in
the graph (`training.graph`) or when it runs (`training.promises`).
"""

from __future__ import annotations

import io
import linecache
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from training.errors import GraphRefused
from training.graph import strip_trace

BATCH_AXIS: Final = "batch"
_TORCH: Final = Path(torch.__file__).parent
_HERE: Final = Path(__file__).parent
_STATIC: Final = (
    "the batch size must stay free, the module's forward fixes it: len(z), int() or a number in a view make "
    "it static. Use z.shape[0] or -1 there"
)


def trace(servable: nn.Module, rows: Sequence[Tensor]) -> ExportedProgram:
    """Return the program of `servable` in eval mode for any batch size, traced on the example `rows`.

    The first axis of each tensor of `rows` is the batch, of 2 or more. Raises GraphRefused with the way out.
    """
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for row in rows:
        shapes[row] = {0: torch.export.Dim(BATCH_AXIS, min=1)}
    with quiet_torch():
        try:
            program = torch.export.export(servable.eval(), tuple(rows), dynamic_shapes=shapes)
        except Exception as error:  # torch raises what it likes, and what the module's forward raises
            raise GraphRefused(failure(error)) from None
    check_program(program)
    return program


def check_program(program: ExportedProgram) -> None:
    """Raise GraphRefused if `program` draws random numbers, or has an operator in training mode."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if isinstance(node.target, torch._ops.OpOverload):
                    _check_node(node, node.target)


def to_onnx(
    program: ExportedProgram, output_names: Sequence[str], input_names: Sequence[str] | None = None
) -> onnx.ModelProto:
    """Translate `program`. Without `input_names` its inputs keep theirs.

    The graph tells nothing of this machine, and equal weights give equal bytes. Raises GraphRefused for an
    operator that ONNX has no form of.
    """
    with quiet_torch():
        try:
            translated = torch.onnx.export(
                program,
                input_names=None if input_names is None else list(input_names),
                output_names=list(output_names),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise GraphRefused(f"the module cannot be written as ONNX: {_reason(error)}") from None
    assert translated is not None
    model: onnx.ModelProto = translated.model_proto
    strip_trace(model)
    del model.graph.value_info[:]  # sizes that can be inferred, under names of this trace
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_param:
            dims[0].dim_param = BATCH_AXIS
    return model


def failure(error: Exception) -> str:
    """What a module's forward did wrong, run or traced, in a sentence that names the line."""
    text, where = str(error), _line_of(error)
    if "specialized it to be a constant" in text:
        return _STATIC
    if isinstance(error, GuardOnDataDependentSymNode) or text.startswith("Boolean value of Tensor"):
        return (
            f"the module's forward must not decide in Python by the values of its inputs{where}. Write it "
            "for each row, without an if: truncation as w_avg + truncation_psi[:, None] * (w - w_avg), any "
            "other choice with torch.where"
        )
    return f"the module cannot be run and traced{where}: {_reason(error)}"


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Hold back what torch says of itself while it traces: nothing there is for the user to act on."""
    logs = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints the graph of what fails
        # All inputs share one batch size, so it has one name; the exporter warns for the second input.
        warnings.filterwarnings("ignore", message="# The axis name: .* will not be used")
        # torch 2.13 copies a class that it has deprecated itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


_TALKATIVE: Final = ("torch.onnx", "torch.fx", "torch.export", "torch._export")


def _check_node(node: torch.fx.Node, operator: torch._ops.OpOverload) -> None:
    trains = _trains(node, operator)
    if trains:
        raise GraphRefused(
            f"the module must have nothing in training mode, {_place(node)} is ({operator}): an image would "
            "depend on chance or on its batch mates. Call .eval() on the module before the export"
        )
    if torch.Tag.nondeterministic_seeded in operator.tags and trains is None:
        raise GraphRefused(
            f"the module must draw no random numbers, {_place(node)} does ({operator}): a seed would not "
            "name an image. Draw the noise once and register it as a buffer, or take it from the latents"
        )
    if isinstance(_argument(node, operator, "groups"), torch.fx.Node):
        raise GraphRefused(
            f"a convolution must have one kernel for all rows, {_place(node)} has as many groups as rows: "
            "scale the activations, convolve, demodulate, as training/networks/style.py does"
        )


def _trains(node: torch.fx.Node, operator: torch._ops.OpOverload) -> bool | None:
    """Whether `node` is in training mode; None for an operator that has none."""
    if operator._overloadname == "no_stats":  # an instance norm's form: its statistics are the row's own
        return None
    switches = (_argument(node, operator, name) for name in ("train", "training"))
    return next((bool(switch) for switch in switches if switch is not None), None)


def _argument(node: torch.fx.Node, operator: torch._ops.OpOverload, name: str) -> Any:
    """What `node` gives `operator` as the argument `name`; None for an argument that there is not."""
    for place, argument in enumerate(operator._schema.arguments):
        if argument.name == name:
            given = node.args[place] if place < len(node.args) else node.kwargs.get(name)
            return argument.default_value if given is None else given
    return None


def _place(node: torch.fx.Node) -> str:
    """The submodule that a node came from, such as "blocks.1 (BatchNorm2d)"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__qualname__
    path = path.removeprefix("module").lstrip(".")  # the name that `Servable` gives it
    return f"{path or 'its forward'} ({kind.rpartition('.')[2]})" if kind else "a node"


def _line_of(error: Exception) -> str:
    """The user's own line that raised, with what it says; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if not _is_machinery(Path(one.filename))]
    if not own or own[-1].lineno is None:
        return ""
    line = linecache.getline(own[-1].filename, own[-1].lineno).strip()
    return f", {Path(own[-1].filename).name} line {own[-1].lineno} does" + (f": `{line}`" if line else "")


def _is_machinery(file: Path) -> bool:
    """Whether a line there is torch's or this package's own, not the network's."""
    own = file.is_relative_to(_HERE) and not file.is_relative_to(_HERE / "networks")
    return own or file.is_relative_to(_TORCH) or file.name.startswith("<") or not file.is_file()


def _reason(error: Exception) -> str:
    """The deepest cause, in one line of bearable length."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).split("\n\n")[0].split()
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__
