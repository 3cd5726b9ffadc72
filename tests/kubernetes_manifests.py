"""What kustomize makes of deploy/kubernetes, for tests: every overlay, component combination and job."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes"
STORES = ((), ("model-store-pvc",), ("model-store-s3",))
"""Where models come from: the image, a volume, an object store."""
ADDING = ("prometheus", "ingress", "grafana")
"""Components that only add documents (a test holds that): what they are with does not matter to them."""
JOBS = ("sample", "train", "evaluate", "export", "verify-store")

Document = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """One kustomization and what it made."""

    components: tuple[str, ...]
    texts: tuple[str, ...]
    """A YAML document each, in the namespace `ganserve`."""

    def documents(self) -> list[Document]:
        return [parse(text) for text in self.texts]


_parsed: dict[str, Document] = {}


def parse(text: str) -> Document:
    """The document of `text`. Most combinations have most documents in common: each is parsed once."""
    if text not in _parsed:
        _parsed[text] = yaml.load(text, yaml.CSafeLoader)
    return _parsed[text]


def kustomize(folder: Path) -> str:
    """Render one folder. Fails with what kustomize said."""
    tool = [["kubectl", "kustomize"], ["kustomize", "build"]][shutil.which("kubectl") is None]
    done = subprocess.run([*tool, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def combinations() -> Iterator[tuple[str, ...]]:
    """Every combination of the components that change others' documents, with all that add their own.

    Names are in the order in which they are to be listed.
    """
    canary, gpu, keda, keys = (((), (name,)) for name in ("canary", "gpu", "keda", "api-keys"))
    for some in itertools.product(canary, gpu, STORES, keda, keys, [ADDING]):
        yield tuple(itertools.chain(*some))


def render_all(sets: Iterable[Sequence[str]], folder: Path) -> list[Rendered]:
    """Render the base with each set of components, by one run of kustomize.

    A namespace a set keeps them apart in the one output; it is named `ganserve` again in what is returned.
    """
    folder.mkdir()
    numbered = {f"set-{number:04}": tuple(one) for number, one in enumerate(sets)}
    for name, components in numbered.items():
        _write(folder / name, name, ["base"], components)
    _kustomization(folder, {"resources": sorted(numbered)})
    texts: dict[str, list[str]] = {name: [] for name in numbered}
    for text in kustomize(folder).split("\n---\n"):
        found = re.search(r"\bset-\d{4}\b", text)
        assert found is not None, f"a document without our namespace:\n{text}"
        texts[found[0]].append(text.replace(found[0], "ganserve").strip() + "\n")
    return [Rendered(components, tuple(texts[name])) for name, components in numbered.items()]


def _write(folder: Path, namespace: str, resources: Sequence[str], components: Sequence[str]) -> None:
    folder.mkdir()
    where = os.path.relpath(MANIFESTS.resolve(), folder.resolve())
    image = {"name": "ganserve", "newName": "registry.example/ganserve", "newTag": "0.1.0"}
    _kustomization(
        folder,
        {
            "namespace": namespace,
            "resources": [f"{where}/{one}" for one in resources],
            "components": [f"{where}/components/{one}" for one in components],
            "images": [image],
        },
    )


def _kustomization(folder: Path, content: dict[str, object]) -> None:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({**head, **content}))


def pod_spec(document: Document) -> Document | None:
    """The pod of a Deployment, Job or CronJob; None of anything else."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Deployment" | "Job":
            return dict(spec["template"]["spec"])
        case "CronJob":
            return dict(spec["jobTemplate"]["spec"]["template"]["spec"])
        case _:
            return None


def containers(pod: Document) -> list[Document]:
    """Every container of a pod, those that come first, first."""
    return [*pod.get("initContainers", ()), *pod["containers"]]
