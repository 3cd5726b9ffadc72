"""The model card beside an artifact: facts of its manifest, in the form of a Hugging Face card.

Every line comes from the manifest; what is not in there is not claimed. Refuses to own: opinions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from models.manifest import Manifest

CARD_FILE: Final = "CARD.md"
PREVIEW_FILE: Final = "preview.png"


def write_card(path: Path, manifest: Manifest) -> None:
    """Write CARD.md for an exported run."""
    path.write_text(card_text(manifest), encoding="utf-8")


def card_text(manifest: Manifest) -> str:
    """Return the card of `manifest`, whose `training` and `export` facts an export has filled in."""
    sections = (
        _header(manifest),
        f"# {manifest.name}:{manifest.version}",
        f"![one row a class, seeds 0-9]({PREVIEW_FILE})" if manifest.num_classes else f"![]({PREVIEW_FILE})",
        _what(manifest),
        _training(manifest.training),
        _serving(manifest),
        _proof(manifest),
    )
    return "\n\n".join(sections) + "\n"


def _header(manifest: Manifest) -> str:
    licence = manifest.licence.partition(" ")[0].lower()
    return "\n".join(
        (
            "---",
            f"license: {licence}",
            "library_name: ganserve",
            "pipeline_tag: unconditional-image-generation",
            "tags: [gan, dcgan, onnx, image-generation]",
            f"datasets: [{manifest.training['data']['name']}]",
            "---",
        )
    )


def _what(manifest: Manifest) -> str:
    height, width, channels = manifest.img_shape
    lines = [
        f"A generator of {width}×{height} {'grey' if channels == 1 else 'RGB'} images from latents of "
        f"{manifest.z_dim} numbers, drawn from N(0, 1). `truncation_psi` scales the latents: 1 is off, "
        "lower is more typical and less varied.",
    ]
    if manifest.class_names:
        names = ", ".join(f"{i} {name}" for i, name in enumerate(manifest.class_names))
        lines.append(f"Classes (`class_idx`): {names}.")
    elif manifest.num_classes:
        lines.append(f"Classes: {manifest.num_classes}, without names.")
    lines.append(f"Licence: {manifest.licence}.")
    return "\n\n".join(lines)


def _training(facts: Mapping[str, Any]) -> str:
    data, environment = facts["data"], facts["environment"]
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    return f"""## Training

- Data: {data["name"]}, {data["num_images"]:,} images, sha256 {data["digest"][:12]}
- Length: {facts["kimg"]:g} thousand images shown, {facts["train_s"] / 60:.0f} minutes
- On: {environment["device"]}, {threads}, torch {environment["torch"]}
- Exported: the moving average of the weights

The same run again:

```
{facts["command"]}
```"""


def _serving(manifest: Manifest) -> str:
    return f"""## Serving

```
ganserve serve --store STORE --model {manifest.name}:{manifest.version}
curl -L -o image.png http://127.0.0.1:8000/v1/models/{manifest.name}/42.png
```

A seed names an image: its latents are the first {manifest.z_dim} draws of `RandomState(seed).randn`, \
cast to float32."""


def _proof(manifest: Manifest) -> str:
    facts = manifest.export
    levels, sizes = facts["largest_difference_to_torch_levels"], facts["checked_batch_sizes"]
    return f"""## Proof

```
gantrain verify {manifest.name}:{manifest.version} --store STORE
```

replays the rows of `golden.npz` and says whether they are bit-exact on this machine. At export the \
graph (opset {facts["opset"]}, {facts["precision"]}) was at most {levels} of 255 grey levels \
away from torch, in batches of {", ".join(map(str, sizes))} rows."""
