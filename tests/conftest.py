"""What all tests share: the toy store."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

hypothesis.settings.register_profile("ganserve", deadline=None)  # on a shared machine no time is a test
hypothesis.settings.load_profile("ganserve")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """All tests run in two processes; a part of them in this one, which is there at once."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


class _ServersApart(LoadScopeScheduling):
    """One process runs the tests of real servers, one after the other; the other process runs the rest.

    pytest-xdist's own groups take no effect beside pytest 9.2 (its issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return "servers" if nodeid.startswith("tests/e2e/") else "units"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ServersApart:
    return _ServersApart(config, log)


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `toy` (conditional, truncation, RGB) and `plain` (neither, grey)."""
    pytest.importorskip("onnx")
    from toy import publish_toy

    root = tmp_path_factory.mktemp("store")
    publish_toy(root, "toy")
    publish_toy(root, "plain", channels=1, conditional=False, truncation=False)
    return root


@pytest.fixture(scope="session")
def judged_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `judged`, whose discriminator offers MH, and `told`, whose discriminator does not."""
    pytest.importorskip("onnx")
    from toy import publish_toy

    from models.calibration import Calibration

    root = tmp_path_factory.mktemp("judged")
    publish_toy(root, "judged", calibration=Calibration(scale=0.8, offset=-1.0, mh=True, proposals=4))
    told = Calibration(scale=0.8, offset=-1.0, mh=False, why_not="the distance rises from 2 to 7")
    publish_toy(root, "told", channels=1, conditional=False, truncation=False, calibration=told)
    return root


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI is set a skip is a failure, unless the test needs a GPU: CI installs all that tests use."""
    report = yield
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
