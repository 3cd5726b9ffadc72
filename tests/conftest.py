"""What all tests share: the toy store."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `toy` (conditional, truncation, RGB) and `plain` (neither, grey)."""
    pytest.importorskip("onnx")
    from toy import publish_toy

    root = tmp_path_factory.mktemp("store")
    publish_toy(root, "toy")
    publish_toy(root, "plain", channels=1, conditional=False, truncation=False)
    return root
