"""What all tests share: the toy store."""

from __future__ import annotations

import os
from collections.abc import Generator
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI is set a skip is a failure, unless the test needs a GPU: CI installs all that tests use."""
    report = yield
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
