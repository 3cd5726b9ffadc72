"""A run becomes an artifact: G_ema as one checked ONNX graph, with the proof and the card beside it.

Everything is put together in a draft of the store and checked there against torch and against the
promises of serving; the rename that publishes it comes last, so a refused export leaves nothing.
Refuses to own: what is promised (`training.proof`, `training.promises`, `training.graph`), what the card
says (`training.card`), what an artifact is (`models`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import Tensor, nn

from models.manifest import GOLDEN_FILE, GRAPH_FILE, Manifest
from models.store import Artifact, Store
from training.card import CARD_FILE, PREVIEW_FILE, write_card
from training.graph import opset_of, strip_trace
from training.graph_session import ONNXRUNTIME_VERSION
from training.presets import train_command
from training.promises import batch_sizes
from training.proof import check_graph_file, golden_rows, save_preview
from training.run_folder import RunFolder
from training.servable import ServableGenerator, torch_render
from training.snapshot import Snapshot, load_snapshot

_TRACE_ROWS: Final = 3  # at least 2: an example batch of 1 would be taken for a constant


def export_run(
    run: RunFolder, store: Store, *, name: str, version: int | None = None, licence: str = "unknown"
) -> Artifact:
    """Publish G_ema of `run`'s snapshot as `name` in `store`.

    Raises RunError for a run without a snapshot, GraphRefused when a check fails, and what
    `Store.draft` raises for a bad name or a version that is there.
    """
    snapshot = load_snapshot(run.snapshot_file)
    with store.draft(name, version) as draft:
        manifest = _manifest_of(snapshot, name, draft.version, licence)
        graph_file = draft.path / GRAPH_FILE
        G = snapshot.generator()
        write_graph(ServableGenerator(G), _example_rows(manifest), graph_file)
        session, levels = check_graph_file(graph_file, manifest, torch_render(G))
        manifest = replace(manifest, export=_export_facts(graph_file, manifest, levels))
        golden_rows(session.render_many, manifest).save(draft.path / GOLDEN_FILE)
        save_preview(draft.path / PREVIEW_FILE, session.render_many, manifest)
        write_card(draft.path / CARD_FILE, manifest)
        return draft.publish(manifest)


def write_graph(servable: nn.Module, rows: tuple[Tensor, ...], path: Path) -> None:
    """Trace `servable` in eval mode on the example `rows` and write one ONNX file with a free batch size.

    `rows` are latents, truncation_psi and, for a conditional model, class_idx.
    """
    names = ("latents", "truncation_psi", "class_idx")[: len(rows)]
    batch = torch.export.Dim("batch", min=1)
    with _quiet_exporter():
        program = torch.onnx.export(
            servable.eval(),
            rows,
            input_names=names,
            output_names=["images"],
            dynamic_shapes=tuple({0: batch} for _ in rows),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip_trace(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back what torch's exporter says of itself: nothing there is for the user to act on."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # otherwise four lines that torchvision is not installed
    with warnings.catch_warnings():
        # All inputs share one batch size, so it has one name; the exporter warns for the second input.
        warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")
        # torch 2.13 copies a class that it has deprecated itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            yield
        finally:
            log.setLevel(level)


def _manifest_of(snapshot: Snapshot, name: str, version: int, licence: str) -> Manifest:
    config, data = snapshot.config, snapshot.data
    return Manifest(
        name=name,
        version=version,
        z_dim=config.z_dim,
        img_height=config.img_resolution,
        img_width=config.img_resolution,
        img_channels=data["img_channels"],
        num_classes=data["num_classes"],
        class_names=tuple(data["class_names"]),
        truncation="z",
        licence=f"{licence} (data: {data['licence'] or 'unknown'})",
        training={
            "command": train_command(config, data["name"], threads=snapshot.environment["threads"]),
            "config": config.to_dict(),
            "data": data,
            "environment": snapshot.environment,
            "kimg": snapshot.cur_nimg / 1000,
            "train_s": round(snapshot.state["train_s"], 1),
        },
    )


def _example_rows(manifest: Manifest) -> tuple[Tensor, ...]:
    latents = torch.randn(_TRACE_ROWS, manifest.z_dim, generator=torch.Generator().manual_seed(0))
    rows = (latents, torch.ones(_TRACE_ROWS))
    return (*rows, torch.zeros(_TRACE_ROWS, dtype=torch.int64)) if manifest.num_classes else rows


def _export_facts(graph_file: Path, manifest: Manifest, levels: int) -> dict[str, Any]:
    return {
        "opset": opset_of(onnx.load(graph_file)),
        "precision": "fp32",
        "largest_difference_to_torch_levels": levels,
        "checked_batch_sizes": list(batch_sizes(manifest)),
        "golden_provider": "CPUExecutionProvider",
        "versions": {tool: version_of(tool) for tool in ("torch", "onnx", "onnxscript")}
        | {"onnxruntime": ONNXRUNTIME_VERSION},
    }
