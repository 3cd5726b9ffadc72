"""The shipped rules and dashboard, as Prometheus and its tests read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from kubernetes_manifests import MANIFESTS

COMPONENT = MANIFESTS / "components" / "prometheus"
DASHBOARD = MANIFESTS / "components" / "grafana" / "dashboard.json"
_METRIC = re.compile(r"\b((?:ganserve|process)_[a-z0-9_]+)\b")
_RECORDED = re.compile(r"\b[a-z_]+:ganserve_[a-z0-9_:]+")


def groups() -> list[dict[str, Any]]:
    """The groups of the PrometheusRule: what a rule file of Prometheus holds."""
    return list(yaml.safe_load((COMPONENT / "prometheusrule.yaml").read_text())["spec"]["groups"])


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def write_rules(path: Path, milliseconds_a_second: int = 1000) -> None:
    """Write the rule file, every duration in it shortened to so many milliseconds a second."""
    path.write_text(shortened(yaml.safe_dump({"groups": groups()}, width=1000), milliseconds_a_second))


def shortened(text: str, milliseconds_a_second: int) -> str:
    """`text` with each duration of seconds or minutes (15s, [1m]) in so many milliseconds a second."""

    def shorten(found: re.Match[str]) -> str:
        seconds = int(found[1]) * {"s": 1, "m": 60}[found[2]]
        return f"{seconds * milliseconds_a_second}ms"

    if milliseconds_a_second == 1000:
        return text
    return re.sub(r"(?<![\w.])(\d+)([sm])\b(?!:)", shorten, text)


def dashboard_queries() -> dict[str, str]:
    """Every query of the dashboard, by panel and letter."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels
        for target in panel["targets"]
    }


def metrics_in(expression: str) -> set[str]:
    """Names of metrics that a server or client library gave, in a query."""
    return set(_METRIC.findall(_RECORDED.sub("", expression))) - {"ganserve_track"}


def recorded_in(expression: str) -> set[str]:
    """Names of recorded series in a query."""
    return set(_RECORDED.findall(expression))
