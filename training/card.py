"""The model card beside an artifact: facts of its manifest, in the form of a Hugging Face card.

Every line comes from the manifest; what is not in there is not claimed. Refuses to own: opinions, the layout
of figures (`training.card_figures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from models.manifest import Manifest, Truncation
from training.card_figures import Column, by_protocol, failings, label, of_the_data, tables

CARD_FILE: Final = "CARD.md"
PREVIEW_FILE: Final = "preview.png"
TRUNCATED_PREVIEW_FILE: Final = "preview-0.7.png"
TRUNCATED_PREVIEW_PSI: Final = 0.7
_TRUNCATION: Final[dict[Truncation, str]] = {
    "none": "",
    "z": " `truncation_psi` scales the latents: 1 is off, lower is more typical and less varied.",
    "w": " `truncation_psi` pulls toward the average image: 1 is off, lower is more typical and less varied.",
}

_TASK: Final = "unconditional-image-generation"
"""The Hub's nearest: it knows no task of classes, which the tag `class-conditional` tells."""
_UNTOLD: Final = "How it was trained is not known here."


def write_card(path: Path, manifest: Manifest) -> None:
    """Write CARD.md for an exported run."""
    path.write_text(card_text(manifest), encoding="utf-8")


def card_text(manifest: Manifest) -> str:
    """Return the card of `manifest`, whose facts an export or an import has filled in."""
    manifest = replace(manifest, metrics=tuple(of_the_data(manifest.metrics)))
    sections = (
        _header(manifest),
        f"# {manifest.name}:{manifest.version}",
        _pictures(manifest),
        _what(manifest),
        _origin(manifest),
        _figures(manifest),
        _failings(manifest),
        _discriminator(manifest.sampler),
        _serving(manifest),
        _proof(manifest),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(manifest: Manifest) -> str:
    """The YAML that the Hugging Face Hub reads, figures as its `model-index`."""
    facts: dict[str, Any] = {
        "license": manifest.licence.partition(" ")[0].lower(),
        "library_name": "ganserve",
        "pipeline_tag": _TASK,
        "tags": ["onnx", "image-generation"],
    }
    if manifest.num_classes:
        facts["tags"].append("class-conditional")
    if is_own(manifest):
        config = manifest.training["config"]
        kind = ["vae"] if config["objective"] == "elbo" else ["gan", config.get("network", "dcgan")]
        facts["tags"] = kind + facts["tags"]
        facts["datasets"] = [manifest.training["data"]["name"]]
    if manifest.metrics:
        results = [_result(group) for group in by_protocol(manifest.metrics)]
        facts["model-index"] = [{"name": f"{manifest.name}:{manifest.version}", "results": results}]
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10_000)
    return f"---\n{text}---"


def _result(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one protocol as one result of a `model-index`."""
    protocol = dict(sorted(figures[0]["protocol"].items()))  # as a manifest has it that was read
    data = {"type": protocol["data"], "name": protocol["data"], "split": protocol["split"]}
    return {
        "task": {"type": _TASK},
        "dataset": data,
        "metrics": [
            {"type": one["name"], "name": label(one["name"]), "value": one["value"], "args": dict(protocol)}
            for one in figures
        ],
    }


def is_own(manifest: Manifest) -> bool:
    """Whether a run of this package made it."""
    return not {"imported_from", "published_from"} & set(manifest.export)


def _pictures(manifest: Manifest) -> str:
    told = "one row a class, seeds 0-9" if manifest.num_classes else "seeds from 0 on"
    pictures = [f"![{told}]({PREVIEW_FILE})"]
    if manifest.has_truncation:
        pictures.append(
            f"The same with `truncation_psi` {TRUNCATED_PREVIEW_PSI}:\n\n![{told}]({TRUNCATED_PREVIEW_FILE})"
        )
    return "\n\n".join(pictures)


def _what(manifest: Manifest) -> str:
    height, width, channels = manifest.img_shape
    lines = [
        f"A generator of {width}×{height} {'grey' if channels == 1 else 'RGB'} images from latents of "
        f"{manifest.z_dim} numbers, drawn from {'N(0, 1)' if manifest.prior == 'normal' else 'U(-1, 1)'}."
        + _TRUNCATION[manifest.truncation],
    ]
    if manifest.class_names:
        names = ", ".join(f"{i} {name}" for i, name in enumerate(manifest.class_names))
        lines.append(f"Classes (`class_idx`): {names}.")
    elif manifest.num_classes:
        lines.append(f"Classes: {manifest.num_classes}, without names.")
    lines.append(f"Licence: {manifest.licence}.")
    return "\n\n".join(lines)


def _origin(manifest: Manifest) -> str:
    if "imported_from" in manifest.export:
        return _import(manifest.export["imported_from"])
    if "published_from" in manifest.export:
        return _published(manifest.export["published_from"], manifest.training)
    return _training(manifest.training)


def _training(facts: Mapping[str, Any]) -> str:
    data, environment = facts["data"], facts["environment"]
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    departures = "".join(f"\n- {departure}" for departure in facts.get("departures", ()))
    but = f"\n\nIt gives these weights but for what was done meanwhile:\n{departures}" if departures else ""
    source = f"; {data['source']}" if data.get("source") else ""
    return f"""## Training

- Data: {data["name"]}, {data["num_images"]:,} images, sha256 {data["digest"][:12]}{source}
- Length: {_length(facts)}
- On: {environment["device"]}, {threads}, torch {environment["torch"]}
- Exported: the moving average of the weights

{_again(facts)}

```
{facts["command"]}
```{but}"""


def _length(facts: Mapping[str, Any]) -> str:
    told = f"{facts['kimg']:g} thousand images shown, {facts['train_s'] / 60:.0f} minutes"
    return (
        told if is_finished(facts) else f"{told}; **stopped before its end**, {_total_kimg(facts):g} thousand"
    )


def _again(facts: Mapping[str, Any]) -> str:
    if is_finished(facts):
        return "The same run again:"
    return f"The same run again, to be stopped at {facts['kimg']:g} thousand images:"


def is_finished(training: Mapping[str, Any]) -> bool:
    """Whether a run whose facts these are was trained to the end of its config."""
    return bool(training["kimg"] >= _total_kimg(training))


def _total_kimg(training: Mapping[str, Any]) -> float:
    return float(training["config"]["total_kimg"])


def _import(facts: Mapping[str, Any]) -> str:
    return f"""## Origin

- Imported from {facts["file"]}, sha256 {facts["sha256"][:12]}
- Made by {facts["producer"]}, opset {facts["opset"]}
- Its inputs: {", ".join(facts["inputs"])}; its output: {facts["output"]}
- Added around it: pixels from the range {facts["range"]} and the layout {facts["layout"]}

{_UNTOLD}"""


def _published(facts: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    facts_told = "\n".join(f"- {name}: {value}" for name, value in sorted(training.items()))
    told = f"Its publisher says of its training:\n\n{facts_told}" if training else _UNTOLD
    return f"""## Origin

- Published from {facts["module"]}, a module of {facts["parameters"]:,} parameters
- Added around it: pixels from the range {facts["range"]} and the layout {facts["layout"]}

{told}"""


def _figures(manifest: Manifest) -> str:
    if not manifest.metrics:
        return ""
    beside = [
        Column(
            "; ".join((f"{one['preset']}, {_length(one)}", *one.get("departures", ()))),
            one["metrics"],
        )
        for one in manifest.training.get("beside", ())
    ]
    text = tables([Column("this generator", manifest.metrics), *beside])
    if beside:
        shown = _length(manifest.training)
        text = f"This generator is of {shown}; the runs beside it are as their columns say.\n\n{text}"
    return f"## Figures\n\n{text}"


def _failings(manifest: Manifest) -> str:
    sentences = failings(manifest.metrics, manifest.class_names)
    if is_own(manifest) and not is_finished(manifest.training):
        sentences.insert(0, "Its training was stopped before its end.")
    return "## Known failings\n\n" + "\n".join(f"- {one}" for one in sentences) if sentences else ""


def _discriminator(sampler: Mapping[str, Any] | None) -> str:
    if sampler is None:
        return ""
    title = "## Its discriminator"
    if "scale" not in sampler:
        return f"{title}\n\nNone is beside it: {sampler['why_not']}."
    fitted = sampler["fitted_on"]
    offer = (
        f'`"sampler": "mh"` is offered: D chooses out of {sampler["proposals"]} images (Metropolis-Hastings).'
        if sampler["mh"]
        else f'`"sampler": "mh"` is not offered: {sampler["why_not"]}.'
    )
    return f"""{title}

`"realness": true` tells how probably D takes an image for a real one: \
σ({sampler["scale"]:g} · logit {sampler["offset"]:+g}), fitted on {fitted["n_real"]:,} images of \
{fitted["data"]} that D never saw and {fitted["n_fake"]:,} of its own.

{offer}

{tables([Column("this generator", sampler["measured"])])}""".rstrip()


def _serving(manifest: Manifest) -> str:
    return f"""## Serving

```
ganserve serve --store STORE --model {manifest.name}:{manifest.version}
curl -L -o image.png http://127.0.0.1:8000/v1/models/{manifest.name}/42.png
```

A seed names an image: its latents are the first {manifest.z_dim} draws of \
`RandomState(seed).{"randn" if manifest.prior == "normal" else "uniform(-1, 1)"}`, cast to float32."""


def _proof(manifest: Manifest) -> str:
    facts = manifest.export
    imported = "imported_from" in facts
    levels = facts[f"largest_difference_to_{'imported' if imported else 'torch'}_levels"]
    when, reference = ("import", "the file it was imported from") if imported else ("export", "torch")
    return f"""## Proof

```
gantrain verify {manifest.name}:{manifest.version} --store STORE
```

replays the rows of `golden.npz` and says whether they are bit-exact on this machine. At {when} the \
graph (opset {facts["opset"]}, {facts["precision"]}) was at most {levels} of 255 grey levels \
away from {reference}, in batches of {", ".join(map(str, facts["checked_batch_sizes"]))} rows."""
