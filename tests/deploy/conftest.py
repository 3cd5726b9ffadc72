"""Everything of deploy/kubernetes, rendered once a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from kubernetes_manifests import (
    JOBS,
    MANIFESTS,
    Document,
    Rendered,
    combinations,
    kustomize,
    parse,
    render_all,
)


@pytest.fixture(scope="session")
def needs_kustomize() -> None:
    if shutil.which("kubectl") is None and shutil.which("kustomize") is None:
        pytest.skip("needs kubectl, or Debian's package kustomize")


@pytest.fixture(scope="session")
def every_combination(needs_kustomize: None, tmp_path_factory: pytest.TempPathFactory) -> list[Rendered]:
    """The base with every combination of components."""
    return render_all(combinations(), tmp_path_factory.mktemp("kustomize") / "all")


@pytest.fixture(scope="session")
def shipped(needs_kustomize: None) -> dict[str, list[str]]:
    """The folders that one applies as they are: overlays and jobs, as texts of documents."""
    folders = ["overlays/cpu", "overlays/gpu", *(f"jobs/{name}" for name in JOBS)]
    return {name: kustomize(MANIFESTS / name).split("\n---\n") for name in folders}


@pytest.fixture(scope="session")
def every_text(every_combination: list[Rendered], shipped: dict[str, list[str]]) -> list[str]:
    """Every document that differs from the others, as text."""
    of_sets = {text for one in every_combination for text in one.texts}
    return sorted(of_sets | {text.strip() + "\n" for texts in shipped.values() for text in texts})


@pytest.fixture(scope="session")
def every_document(every_text: list[str]) -> list[Document]:
    return [parse(text) for text in every_text]


@pytest.fixture(scope="session")
def with_components(every_combination: list[Rendered]) -> Callable[..., list[Document]]:
    """`with_components("gpu", "keda")`: the documents of the base with these components."""
    by_set = {frozenset(one.components): one for one in every_combination}
    return lambda *components: by_set[frozenset(components)].documents()
