"""The model card beside an artifact: facts of its manifest, in the form of a Hugging Face card.

Every line comes from the manifest; what is not in there is not claimed. Refuses to own: opinions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from models.manifest import Manifest, Truncation

CARD_FILE: Final = "CARD.md"
PREVIEW_FILE: Final = "preview.png"
_TRUNCATION: Final[dict[Truncation, str]] = {
    "none": "",
    "z": " `truncation_psi` scales the latents: 1 is off, lower is more typical and less varied.",
    "w": " `truncation_psi` pulls toward the average image: 1 is off, lower is more typical and less varied.",
}

_UNTOLD: Final = "How it was trained is not known here."


def write_card(path: Path, manifest: Manifest) -> None:
    """Write CARD.md for an exported run."""
    path.write_text(card_text(manifest), encoding="utf-8")


def card_text(manifest: Manifest) -> str:
    """Return the card of `manifest`, whose facts an export or an import has filled in."""
    sections = (
        _header(manifest),
        f"# {manifest.name}:{manifest.version}",
        f"![one row a class, seeds 0-9]({PREVIEW_FILE})" if manifest.num_classes else f"![]({PREVIEW_FILE})",
        _what(manifest),
        _origin(manifest),
        _serving(manifest),
        _proof(manifest),
    )
    return "\n\n".join(sections) + "\n"


def _header(manifest: Manifest) -> str:
    licence = manifest.licence.partition(" ")[0].lower()
    lines = [
        "---",
        f"license: {licence}",
        "library_name: ganserve",
        "pipeline_tag: unconditional-image-generation",
    ]
    if not {"imported_from", "published_from"} & set(manifest.export):  # a run of this package
        config = manifest.training["config"]
        kind = "vae" if config["objective"] == "elbo" else f"gan, {config.get('network', 'dcgan')}"
        lines += [
            f"tags: [{kind}, onnx, image-generation]",
            f"datasets: [{manifest.training['data']['name']}]",
        ]
    else:
        lines.append("tags: [onnx, image-generation]")
    return "\n".join((*lines, "---"))


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
    return f"""## Training

- Data: {data["name"]}, {data["num_images"]:,} images, sha256 {data["digest"][:12]}
- Length: {facts["kimg"]:g} thousand images shown, {facts["train_s"] / 60:.0f} minutes
- On: {environment["device"]}, {threads}, torch {environment["torch"]}
- Exported: the moving average of the weights

The same run again:

```
{facts["command"]}
```{but}"""


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
