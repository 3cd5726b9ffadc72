"""A generator of torch becomes an artifact: one checked ONNX graph, with the proof and the card beside it.

`export_run` publishes G_ema of a run, and D where it can be at work; `publish` any module. Everything is put
together in a draft of the store and checked there against torch and against the promises of serving; the
rename that publishes it comes last, so a refused export leaves nothing. Refuses to own: how torch becomes
ONNX (`training.tracing`), what is promised (`training.proof`, `training.promises`, `training.graph`), what D
is good for (`training.discriminator`), what the card says (`training.card`), what an artifact is (`models`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from models.errors import InvalidValue, show
from models.golden import Render
from models.manifest import GRAPH_FILE, Manifest, Truncation
from models.sampling import Prior
from models.store import Artifact, Draft, Store
from training.discriminator import Gather, add_discriminator, no_evidence
from training.errors import GraphRefused
from training.folding import folded, plain_copy
from training.graph import check_weights, opset_of, tell_classes, write_model
from training.graph_session import ONNXRUNTIME_VERSION, GraphSession
from training.networks import Generator
from training.pixels import (
    DEFAULT_RANGE,
    FloatImages,
    check_layout,
    check_range,
    check_values,
    nhwc,
    to_pixels,
)
from training.presets import train_command
from training.promises import Rows, batch_sizes
from training.proof import check_graph_file, seal
from training.renewing import compared
from training.run_folder import RunFolder
from training.servable import Call, Servable, ServableGenerator, call_module, rows_of, torch_render
from training.snapshot import Snapshot, load_newest
from training.tracing import failure, to_onnx, trace
from training.weights import WeightPrecision, precision_of, store_weights

_TRACE_ROWS: Final = 3  # at least 2: an example batch of 1 would be taken for a constant


def export_run(
    run: RunFolder,
    store: Store,
    *,
    name: str,
    version: int | None = None,
    licence: str = "unknown",
    precision: WeightPrecision = "fp32",
    gather: Gather = no_evidence,
    beside: Sequence[RunFolder] = (),
) -> Artifact:
    """Publish G_ema of `run`'s snapshot as `name` in `store`, its weights stored in `precision`.

    Figures that `gantrain evaluate` took of just these weights go into the manifest, and those of the runs
    `beside` it, for comparison; D goes with it where what `gather` finds can calibrate it. Raises RunError
    for a run without a snapshot and one beside it without figures, GraphRefused when a check of G's graph
    fails, and what `Store.draft` raises for a bad name or a version that is there.
    """
    snapshot = load_newest(run)
    with store.draft(name, version) as draft:
        G = snapshot.generator()
        manifest = _manifest_of(snapshot, G, name, draft.version, licence, beside)
        if precision == "fp32":  # figures of a run are of its weights as they are
            manifest = replace(manifest, metrics=tuple(run.figures_of(snapshot.weights)))
        program = _program(ServableGenerator(G), manifest)
        session, manifest = _checked(draft, program, manifest, torch_render(G), precision)
        sampler = add_discriminator(draft.path, session, manifest, snapshot, gather)
        return seal(draft, session, replace(manifest, sampler=sampler))


def publish(
    module: nn.Module,
    store: Store | Path | str,
    *,
    name: str,
    z_dim: int,
    num_classes: int = 0,
    class_names: Sequence[str] = (),
    truncation: Truncation = "none",
    call: Call = call_module,
    value_range: str = DEFAULT_RANGE,
    layout: str | None = None,
    prior: Prior = "normal",
    licence: str = "unknown",
    precision: WeightPrecision = "fp32",
    training: Mapping[str, Any] | None = None,
    version: int | None = None,
) -> Artifact:
    """Publish `module`, a generator of anyone's own code, as `name` in `store`.

    `module` is called as `call(module, z)`, which is `module(z)` if nothing else is given, with z float32
    [N, z_dim] and then, where it has them, class_idx int64 [N] (`num_classes` or `class_names`) and
    truncation_psi float32 [N] (`truncation="w"`; with "z" the latents are scaled outside). Another signature
    is put right there: `call=lambda G, z, class_idx: G(z[:, :, None, None], one_hot(class_idx, 10))`.

    It answers images whose black and white are `value_range` ("-1,1", "0,1" or "0,255"), in `layout` "NCHW",
    "NHWC" or "flat:CxHxW" (None: found by where the 1 or 3 channels are). `prior` is what z is drawn from.
    `precision` "fp16" halves the file, if the pixels stay within 3 grey levels; the graph computes in float32
    all the same. `training` is what the manifest and the card say of its training, as JSON.

    The module stays as it is: a copy of it is traced, in float32, with spectral and weight norms folded, and
    the graph is held to the pixels of the module in eager torch. What is doubtful but not wrong is warned of.
    Raises InvalidValue for an argument, GraphRefused with the way out for a module that cannot be served, and
    what `Store.draft` raises.
    """
    _check_module(module)
    _check_told({} if training is None else training)
    check_range(value_range)
    if layout is not None:
        check_layout(layout)
    store = store if isinstance(store, Store) else Store(store)
    with store.draft(name, version) as draft:
        manifest = Manifest(
            name=name,
            version=draft.version,
            z_dim=z_dim,
            img_height=1,  # this and the next two until the first images are seen
            img_width=1,
            img_channels=1,
            num_classes=num_classes or len(class_names),
            class_names=tuple(class_names),
            prior=prior,
            truncation=truncation,
            licence=licence,
            training=dict(training or {}),
        )
        servable = Servable(
            plain_copy(module),
            call,
            num_classes=manifest.num_classes,
            truncation=truncation,
            value_range=value_range,
        )
        images, servable.layout = nhwc(_answer(servable, Rows.sample(manifest, _TRACE_ROWS)), layout)
        _check_count(images)
        _, height, width, channels = images.shape
        manifest = replace(manifest, img_height=height, img_width=width, img_channels=channels)
        program = _program(servable, manifest)
        for caution in _cautions(servable, manifest):
            warnings.warn(f"{name}: {caution}", stacklevel=2)
        origin = {
            "module": type(module).__qualname__,
            "parameters": sum(one.numel() for one in module.parameters()),
            "range": value_range,
            "layout": servable.layout,
        }
        session, manifest = _checked(
            draft, program, manifest, _reference(servable), precision, classes_told=manifest.num_classes
        )
        facts = {**manifest.export, "published_from": origin}
        return seal(draft, session, replace(manifest, export=facts))


def _checked(
    draft: Draft,
    program: ExportedProgram,
    manifest: Manifest,
    reference: Render,
    precision: WeightPrecision,
    classes_told: int = 0,
) -> tuple[GraphSession, Manifest]:
    """Write the graph of `program` into `draft`, held to every promise; return its session, and `manifest`
    with the facts of the export. `classes_told` as `tell_classes` has them."""
    graph_file = draft.path / GRAPH_FILE
    model = to_onnx(program, list(manifest.graph_outputs), list(manifest.graph_inputs))
    check_weights(model)
    store_weights(model, precision)
    tell_classes(model, classes_told)
    write_model(model, graph_file)
    session, levels = check_graph_file(graph_file, manifest, reference, halved=precision == "fp16")
    return session, replace(manifest, export=_export_facts(model, manifest, levels))


def _manifest_of(
    snapshot: Snapshot, G: Generator, name: str, version: int, licence: str, beside: Sequence[RunFolder]
) -> Manifest:
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
        truncation=G.truncation,
        licence=f"{licence} (data: {data['licence'] or 'unknown'})",
        training={
            "command": train_command(
                config,
                data["name"],
                threads=snapshot.environment["threads"],
                processes=snapshot.environment["processes"],
            ),
            "config": config.to_dict(),
            "data": data,
            "environment": snapshot.environment,
            "kimg": snapshot.cur_nimg / 1000,
            "train_s": round(snapshot.state["train_s"], 1),
            "departures": snapshot.state["departures"],
            "beside": [compared(run) for run in beside],
        },
    )


def _check_told(training: Mapping[str, Any]) -> None:
    if not isinstance(training, Mapping):
        raise InvalidValue(f"training must be facts by name, got {show(training)}")
    try:
        json.dumps(training, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"training must be what JSON can hold, got {show(training)}: {error}") from None


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise InvalidValue(f"module must be a torch.nn.Module, got {show(module)}")
    if isinstance(module, torch.jit.ScriptModule):
        raise InvalidValue(
            f"module must be Python code, got TorchScript ({type(module).__name__}): "
            "publish the module that it was made of"
        )
    for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor) or tensor.is_meta:
            raise InvalidValue(
                f"module must hold its weights, {path} has no values yet: "
                "load them, or call a lazy module once"
            )
    for path, one in module.named_modules():
        if type(one).__module__.startswith("torch.ao.nn.") and "quantized" in type(one).__module__:
            raise InvalidValue(
                f"module must compute in floats, {path or 'it'} ({type(one).__name__}) is quantized: "
                'publish the module that it was made of, with precision="fp16" for half the bytes'
            )
        if one.training:
            raise InvalidValue(
                f"module must be in eval mode, {path or 'it'} ({type(one).__name__}) is in training mode: "
                "call module.eval() first"
            )


def _answer(servable: Servable, rows: Rows) -> Any:
    """The module's own answer [N, …] for `rows`. Raises GraphRefused saying what its forward did."""
    tensors = rows_of(servable, rows.latents, rows.class_idx, rows.truncation_psi)
    try:
        with torch.no_grad():
            return servable.images(*tensors).numpy()
    except GraphRefused:
        raise
    except Exception as error:  # whatever the module's forward raises
        given = ", ".join(f"{list(one.shape)}" for one in tensors)
        raise GraphRefused(f"{failure(error)} (it was called with {given})") from None


def _check_count(images: FloatImages) -> None:
    if len(images) != _TRACE_ROWS:
        raise GraphRefused(
            f"the module must give an image a row, for {_TRACE_ROWS} rows it gives {len(images)}: "
            "use z.shape[0] and -1 in its forward"
        )


def _cautions(servable: Servable, manifest: Manifest) -> list[str]:
    """What is doubtful in the images of `servable`. Raises GraphRefused for a range that cannot be meant."""
    rows = Rows.sample(manifest)
    images = nhwc(_answer(servable, rows), servable.layout)[0]  # [N, H, W, C]
    cautions = check_values(images, servable.value_range)
    if servable.truncation != "none":
        untruncated = replace(rows, truncation_psi=np.ones_like(rows.truncation_psi))
        if np.array_equal(nhwc(_answer(servable, untruncated), servable.layout)[0], images):
            cautions.append("truncation_psi changes nothing: the output does not depend on it")
    return cautions


def _reference(servable: Servable) -> Render:
    """Pixels of the module's own answer in eager torch, made apart from what is traced."""

    def render(*rows: Any) -> Any:
        latents, class_idx, truncation_psi = rows
        asked = Rows(latents=latents, class_idx=class_idx, truncation_psi=truncation_psi)
        return to_pixels(nhwc(_answer(servable, asked), servable.layout)[0], servable.value_range)

    return render


def _program(servable: Servable, manifest: Manifest) -> ExportedProgram:
    rows = Rows.sample(manifest, _TRACE_ROWS)
    return trace(folded(servable), rows_of(servable, rows.latents, rows.class_idx, rows.truncation_psi))


def _export_facts(model: onnx.ModelProto, manifest: Manifest, levels: int) -> dict[str, Any]:
    return {
        "opset": opset_of(model),
        "precision": precision_of(model),
        "largest_difference_to_torch_levels": levels,
        "checked_batch_sizes": list(batch_sizes(manifest)),
        "golden_provider": "CPUExecutionProvider",
        "versions": {tool: version_of(tool) for tool in ("torch", "onnx", "onnxscript")}
        | {"onnxruntime": ONNXRUNTIME_VERSION},
    }
