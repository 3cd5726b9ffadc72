"""Rules are what Prometheus takes; each alert fires on what it is for, and none on a healthy service."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_manifests import MANIFESTS
from prometheus_rules import dashboard_queries, metrics_in, recorded_in, rules, write_rules

POD = 'namespace="ganserve", pod="a"'
MODEL = f'{POD}, model="toy"'
ASKED = f'ganserve_requests_total{{{POD}, endpoint="/v1/samples"'

# Sixty minutes, a sample each 15 s: 100 requests/s that make 100 images/s; one in a hundred waits for long.
HEALTHY = {
    f'{ASKED}, code="200"}}': "0+1500x240",
    f'{ASKED}, code="429"}}': "0+10x240",
    f'{ASKED}, code="500"}}': "0+0x240",
    f'{ASKED}, code="503"}}': "0+300x240",  # a rollout: not our fault, and nobody's
    f'ganserve_requests_total{{{POD}, endpoint="/livez", code="200"}}': "0+1x240",
    f"ganserve_images_total{{{MODEL}}}": "0+1500x240",
    f'ganserve_queue_seconds_bucket{{{MODEL}, le="0.1"}}': "0+1485x240",
    f'ganserve_queue_seconds_bucket{{{MODEL}, le="5"}}': "0+1500x240",
    f'ganserve_queue_seconds_bucket{{{MODEL}, le="+Inf"}}': "0+1500x240",
    f"ganserve_worker_busy_seconds_total{{{MODEL}}}": "0+21x240",
    f"ganserve_worker_up{{{MODEL}}}": "2+0x240",
    f"ganserve_worker_restarts_total{{{MODEL}}}": "0x100 2x140",
    f"ganserve_worker_timeouts_total{{{MODEL}}}": "0x100 1x140",
    f'ganserve_reloads_total{{{MODEL}, outcome="done"}}': "0x100 3x140",
    f'ganserve_model_info{{{MODEL}, version="1", digest="a"}}': "1x240",
    f'up{{{POD}, job="ganserve/ganserve"}}': "1x240",
}
OTHER_VERSION = 'ganserve_model_info{namespace="ganserve", pod="b", model="toy", version="2", digest="b"}'
# What is different of it where an alert is to fire; None: the series is not there.
FAULTS: dict[str, dict[str, str | None]] = {
    "GanserveOverloaded": {f'{ASKED}, code="429"}}': "0+30x240"},
    "GanserveSlow": {f'ganserve_queue_seconds_bucket{{{MODEL}, le="0.1"}}': "0+1400x240"},
    "GanserveErrors": {f'{ASKED}, code="500"}}': "0+30x240"},
    "GanserveNoWorker": {f"ganserve_worker_up{{{MODEL}}}": "2x220 0x20"},
    "GanserveWorkersDie": {f"ganserve_worker_restarts_total{{{MODEL}}}": "0x200 0+1x40"},
    "GanserveWorkersHang": {f"ganserve_worker_timeouts_total{{{MODEL}}}": "0x200 3x40"},
    "GanserveReloadRefused": {f'ganserve_reloads_total{{{MODEL}, outcome="refused"}}': "_x230 1x10"},
    "GanserveDigestsDiffer": {OTHER_VERSION: "1x240"},
    "GanserveDown": {f'up{{{POD}, job="ganserve/ganserve"}}': "1x220 0x20"},
    "GanserveAbsent": {f'ganserve_model_info{{{MODEL}, version="1", digest="a"}}': None},
}
# As many minutes of fault as these alerts want no alert: a rollout, a restart, one slow spell.
SHORT: dict[str, dict[str, str | None]] = {
    "GanserveOverloaded": {f'{ASKED}, code="429"}}': "0+0x230 0+300x10"},
    "GanserveErrors": {f'{ASKED}, code="500"}}': "0+0x230 0+300x10"},
    "GanserveNoWorker": {f"ganserve_worker_up{{{MODEL}}}": "2x235 0x5"},
    "GanserveDown": {f'up{{{POD}, job="ganserve/ganserve"}}': "1x235 0x5"},
    "GanserveDigestsDiffer": {OTHER_VERSION: "_x200 1x40"},
}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs the Debian package prometheus, which has promtool")
    return found


def test_prometheus_takes_the_rules(promtool: str, tmp_path: Path) -> None:
    write_rules(tmp_path / "rules.yml")

    done = subprocess.run([promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True)

    assert done.returncode == 0, done.stderr.decode()


def test_each_alert_fires_for_its_fault_and_none_for_a_healthy_service(promtool: str, tmp_path: Path) -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert set(FAULTS) == alerts
    write_rules(tmp_path / "rules.yml")
    cases = [_case({}, "count(ALERTS) or vector(0)", 0)]
    for alert, fault in FAULTS.items():
        cases.append(
            _case(fault, f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)', 1)
        )
    for alert, fault in SHORT.items():
        cases.append(
            _case(fault, f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)', 0)
        )
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": cases}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))

    done = subprocess.run(
        [promtool, "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_names_who_is_to_be_woken_and_a_runbook_that_there_is() -> None:
    readme = (MANIFESTS.parent / "README.md").read_text()
    headings = {line.removeprefix("### ").strip() for line in readme.splitlines() if line.startswith("### ")}

    for rule in rules():
        if "alert" not in rule:
            continue
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"].endswith(f"deploy/README.md#{name.lower()}")
        assert name in headings


def test_what_dashboard_alerts_and_autoscaler_read_is_recorded_by_the_rules() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    scaled = (MANIFESTS / "components" / "keda" / "scaledobject.yaml").read_text()
    used = set().union(
        *map(recorded_in, [rule["expr"] for rule in rules()]),
        *map(recorded_in, dashboard_queries().values()),
        recorded_in(scaled),
    )

    assert used <= recorded
    assert {"namespace_model:ganserve_worker_busy:ratio1m", "namespace_model:ganserve_images:rate1m"} <= used


def test_queries_of_the_autoscaler_ask_for_the_namespace_that_overlays_install_to() -> None:
    overlay = yaml.safe_load((MANIFESTS / "overlays" / "cpu" / "kustomization.yaml").read_text())
    scaled = yaml.safe_load((MANIFESTS / "components" / "keda" / "scaledobject.yaml").read_text())

    for trigger in scaled["spec"]["triggers"]:
        assert f'namespace="{overlay["namespace"]}"' in trigger["metadata"]["query"]


def test_names_of_metrics_are_found_in_queries() -> None:
    """The searches on which other tests build."""
    query = (
        'sum by (ganserve_track) (rate(ganserve_a_total[1m])) / a:ganserve_b:rate1m + process_c_bytes{x="1"}'
    )

    assert metrics_in(query) == {"ganserve_a_total", "process_c_bytes"}
    assert recorded_in(query) == {"a:ganserve_b:rate1m"}


def _case(fault: dict[str, str | None], expression: str, value: int) -> dict[str, Any]:
    """One test of promtool: `expression` is `value` after sixty minutes of health with `fault` in it."""
    series = dict(_values({**HEALTHY, **fault}))
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": "59m", "exp_samples": [{"labels": "{}", "value": value}]}
        ],
    }


def _values(series: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    """Series that are there; `2x10` is written out as promtool's `2+0x10`, and `_x10` is its own."""
    for name, values in series.items():
        if values is not None:
            yield name, re.sub(r"(^| )(\d+)x", r"\1\2+0x", values)
