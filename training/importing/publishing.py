"""`gantrain import`: the steps from a foreign file to a published artifact, in order.

All happens in a draft of the store; the rename that publishes comes last, so a refusal leaves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from models.errors import InvalidValue
from models.golden import Render
from models.manifest import GRAPH_FILE, Manifest, Truncation
from models.sampling import MAX_TRUNCATION_PSI, latents_from_seeds
from models.store import Artifact, Store
from training.errors import GraphRefused
from training.graph import check_nodes, check_weights, opset_of, strip_trace, tell_classes, write_model
from training.graph_session import ONNXRUNTIME_VERSION
from training.importing.batch import fold_shapes, free_batch, prune
from training.importing.evidence import (
    ForeignGraph,
    check_free,
    mixing_node,
    reference_render,
)
from training.importing.interface import Choices, Interface, find_interface, find_output
from training.importing.reading import (
    ForeignFile,
    is_archive,
    modern,
    plain_text,
    read_foreign,
)
from training.importing.wrapping import wrap
from training.pixels import DEFAULT_RANGE, check_finite, check_values, nhwc
from training.promises import MAX_DIFFERENCE_LEVELS, Rows, batch_sizes
from training.proof import check_graph_file, seal
from training.weights import WeightPrecision, precision_of, store_weights


@dataclass(frozen=True)
class Imported:
    """What an import made, and what the user should look at."""

    artifact: Artifact
    cautions: list[str]


def import_graph(
    path: Path,
    store: Store,
    *,
    name: str,
    version: int | None = None,
    choices: Choices | None = None,
    licence: str = "unknown",
    trust: bool = False,
    precision: WeightPrecision = "fp32",
) -> Imported:
    """Publish the generator in the ONNX file or `torch.export` archive at `path` as `name` in `store`.

    `trust` allows an archive to be read, which can run code that it brings. `precision` "fp16" stores float32
    weights in half the bytes.
    Raises GraphRefused for a file that cannot be served, naming the node or the flag that is the way out,
    InvalidValue for a choice that does not fit, and what `Store.draft` raises.
    """
    choices = choices or Choices()
    with store.draft(name, version) as draft:
        foreign = _read(path, trust)
        output = find_output(foreign.model, choices)
        prune(foreign.model, output.name)
        check_nodes(foreign.model)
        check_weights(foreign.model)
        interface = find_interface(foreign.model, output, choices)
        batch, free = _free(foreign, interface, choices)
        fold_shapes(free, interface)
        original = foreign.runner(interface, batch)

        images, layout = nhwc(original.run(_few_rows(interface, choices)), choices.layout)
        value_range = choices.value_range or _default_range(interface)
        manifest = _manifest_of(name, draft.version, interface, choices, licence, images.shape)
        cautions = check_values(nhwc(original.run(Rows.sample(manifest)), layout)[0], value_range)
        reference = reference_render(original, layout, value_range)
        if interface.truncation_psi is not None:
            few = _few_rows(interface, choices)
            bold = replace(few, truncation_psi=np.full_like(few.truncation_psi, MAX_TRUNCATION_PSI))
            check_finite(original.run(bold), f" with psi {MAX_TRUNCATION_PSI:g}")
            manifest = replace(manifest, truncation=_kind_of_truncation(reference, manifest))

        graph_file = draft.path / GRAPH_FILE
        graph = wrap(free, interface, manifest, value_range, layout)
        store_weights(graph, precision)
        _write(graph, graph_file, manifest.num_classes)
        try:
            session, levels = check_graph_file(
                graph_file, manifest, reference, "the imported file", halved=precision == "fp16"
            )
        except GraphRefused as refusal:
            node = mixing_node(free, interface, Rows.sample(manifest, count=2))
            raise (GraphRefused(f"{refusal}. The node to look at is {node}") if node else refusal) from None
        origin = _origin(foreign, interface, value_range, layout)
        manifest = replace(
            manifest, export=_export_facts(graph, manifest, levels) | {"imported_from": origin}
        )
        return Imported(seal(draft, session, manifest), cautions)


def _read(path: Path, trust: bool) -> ForeignFile:
    if not is_archive(path):
        return read_foreign(path)
    if not trust:
        raise InvalidValue(
            f"{path.name} is an archive of torch.export, and reading it can run code that it brings: "
            "give --trust if you trust who made it"
        )
    from training.importing.archive import read_archive  # needs torch

    return read_archive(path)


def _free(foreign: ForeignFile, interface: Interface, choices: Choices) -> tuple[int | None, onnx.ModelProto]:
    """The one batch size that the file can run (None: any), and its graph with a free batch.

    Raises GraphRefused where it cannot run at all, or not at any batch size.
    """
    rows = _few_rows(interface, choices)
    static = ForeignGraph(foreign.model, interface, interface.static_batch or 1)
    for row in range(len(rows.latents)):
        static.run(rows[slice(row, row + 1)])
    free = modern(foreign.model)
    if interface.static_batch is not None:
        free_batch(free, interface, interface.static_batch)
        check_free(free, interface, rows)
        return interface.static_batch, free
    try:
        check_free(foreign.model, interface, rows)
    except GraphRefused as refusal:  # a free input, and a fixed batch inside: the file speaks for one row
        free_batch(free, interface, 1)
        try:
            check_free(free, interface, rows)
        except GraphRefused:
            raise refusal from None
        return 1, free
    return None, free


def _few_rows(interface: Interface, choices: Choices) -> Rows:
    """Three rows: enough to tell a free batch from a fixed one. The second has the last class."""
    classes = [0, max(interface.num_classes - 1, 0), 0]
    return Rows(
        latents=latents_from_seeds(range(len(classes)), interface.z_dim, choices.prior),
        class_idx=np.array(classes, dtype=np.int64),
        truncation_psi=np.ones(len(classes), dtype=np.float32),
    )


def _default_range(interface: Interface) -> str:
    return "0,255" if interface.output.elem_type == TensorProto.UINT8 else DEFAULT_RANGE


def _manifest_of(
    name: str, version: int, interface: Interface, choices: Choices, licence: str, shape: tuple[int, ...]
) -> Manifest:
    _, height, width, channels = shape
    return Manifest(
        name=name,
        version=version,
        z_dim=interface.z_dim,
        img_height=height,
        img_width=width,
        img_channels=channels,
        num_classes=interface.num_classes,
        class_names=choices.class_names,
        prior=choices.prior,
        truncation="none" if interface.truncation_psi is None else "w",
        licence=licence,
    )


def _kind_of_truncation(render: Render, manifest: Manifest) -> Truncation:
    """ "z" if psi does what scaling the latents does, otherwise "w"."""
    rows, half = Rows.sample(manifest, count=3), np.full(3, 0.5, dtype=np.float32)
    by_psi = render(rows.latents, rows.class_idx, half)
    by_latents = render(rows.latents * np.float32(0.5), rows.class_idx, np.ones(3, dtype=np.float32))
    levels = np.abs(by_psi.astype(np.int16) - by_latents.astype(np.int16)).max()
    return "z" if levels <= MAX_DIFFERENCE_LEVELS else "w"


def _write(graph: onnx.ModelProto, path: Path, num_classes: int) -> None:
    strip_trace(graph)
    tell_classes(graph, num_classes)
    graph.producer_name, graph.graph.name = plain_text(graph.producer_name), "imported"
    graph.ClearField("domain")
    write_model(graph, path)


def _origin(foreign: ForeignFile, interface: Interface, value_range: str, layout: str) -> dict[str, Any]:
    """Where the graph came from: never a path."""
    model = foreign.model
    return {
        "file": plain_text(foreign.name),
        "sha256": foreign.sha256,
        "external_data": {plain_text(name): digest for name, digest in foreign.external_data.items()},
        "producer": plain_text(f"{model.producer_name} {model.producer_version}".strip()) or "unknown",
        "opset": opset_of(model),
        "batch_size": interface.static_batch or "dynamic",
        "inputs": [plain_text(one.text) for one in interface.inputs],
        "output": plain_text(interface.output.text),
        "range": value_range,
        "layout": layout,
    }


def _export_facts(graph: onnx.ModelProto, manifest: Manifest, levels: int) -> dict[str, Any]:
    return {
        "opset": opset_of(graph),
        "precision": precision_of(graph),
        "largest_difference_to_imported_levels": levels,
        "checked_batch_sizes": list(batch_sizes(manifest)),
        "golden_provider": "CPUExecutionProvider",
        "versions": {"onnx": version_of("onnx"), "onnxruntime": ONNXRUNTIME_VERSION},
    }
