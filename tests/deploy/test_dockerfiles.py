"""Dockerfiles are what hadolint asks for, and what the manifests build on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kubernetes_manifests import MANIFESTS, Document, pod_spec

SERVICE = MANIFESTS.parent / "Dockerfile.service"
TRAINING = MANIFESTS.parent / "Dockerfile.training"


@pytest.mark.parametrize("file", [SERVICE, TRAINING], ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"

    done = subprocess.run([hadolint, file], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", [SERVICE, TRAINING], ids=lambda file: file.name)
def test_an_image_runs_as_the_user_of_the_manifests_under_an_init(
    file: Path, every_document: list[Document]
) -> None:
    text = file.read_text()
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)
    pods = [pod for one in every_document if (pod := pod_spec(one)) is not None]

    assert {pod["securityContext"]["runAsUser"] for pod in pods} == {int(user)}
    assert re.search(r'^ENTRYPOINT \["/usr/bin/tini", "--"', text, re.MULTILINE)
    assert "ARG BASE=" in text
