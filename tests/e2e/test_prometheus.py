"""The shipped scrape, rules and dashboard at work: a real Prometheus beside a server under load."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_rules import (
    COMPONENT,
    dashboard_queries,
    metrics_in,
    recorded_in,
    rules,
    shortened,
    write_rules,
)
from server_process import Server, free_port, wait_for
from toy import publish_toy

Serve = Callable[..., Server]
Query = Callable[[str], list[dict[str, Any]]]
KEY = "a-key-of-an-admin"
MS_A_SECOND = 20  # every duration of the shipped files is fifty times shorter here


def test_rules_record_an_overload_fires_and_resolves_and_every_panel_has_data(
    serve: Serve, tmp_path: Path
) -> None:
    publish_toy(tmp_path / "store", "toy")
    damaged = publish_toy(tmp_path / "store", "toy", weights_seed=1)
    damaged.file("model.onnx").write_bytes(b"damaged")
    flags = ("--model", "toy:1", "--workers", "1", "--max-queued-rows", "64")
    server = serve(*flags, store=tmp_path / "store", env={"GANSERVE_ADMIN_KEYS": KEY})
    with _prometheus(server, tmp_path) as query:
        waiting = {name: _panel_query(one) for name, one in dashboard_queries().items()}
        waiting |= {rule["record"]: rule["record"] for rule in rules() if "record" in rule}
        firing = 'ALERTS{alertname="GanserveOverloaded", alertstate="firing"}'

        def answered() -> bool:
            for name in [name for name, one in waiting.items() if query(one)]:
                del waiting[name]
            return not waiting

        reload = {"json": {"version": 2}, "headers": {"X-API-Key": KEY}}
        assert server.http.post("/v1/models/toy/reload", **reload).status_code == 409
        with _too_much_work(server):
            wait_for(lambda: bool(query(firing)), seconds=40)
            try:
                wait_for(answered, seconds=30)
            except AssertionError:
                raise AssertionError(f"no data for {waiting}") from None
        (alert,) = query(f"last_over_time({firing}[1m])")
        wait_for(lambda: not query(firing), seconds=30)
        wait_for(lambda: not query('ALERTS{alertname="GanserveOverloaded"}'), seconds=30)

        assert alert["metric"]["namespace"] == "ganserve"
        (made,) = query('sum(ganserve_images_total{model="toy"})')
        assert float(made["value"][1]) == server.metric("ganserve_images_total", model="toy") > 0

    names = {
        sample.name
        for family in text_string_to_metric_families(server.http.get("/metrics").text)
        for sample in family.samples
    }
    expressions = [*dashboard_queries().values(), *(rule["expr"] for rule in rules())]
    used = set().union(*map(metrics_in, expressions), *map(_counted, map(recorded_in, expressions)))
    assert used <= names
    assert len(used) > 15


def _counted(recorded: set[str]) -> set[str]:
    """Metrics that the rules of these recorded series read."""
    by_name = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    return set().union(*(metrics_in(by_name[name]) for name in recorded))


def _panel_query(expression: str) -> str:
    """What Grafana makes of a panel's query."""
    for variable, value in (("$__rate_interval", "1m"), ("$namespace", "ganserve"), ("$model", ".*")):
        expression = expression.replace(variable, value)
    return shortened(expression, MS_A_SECOND)


@contextmanager
def _too_much_work(server: Server) -> Iterator[None]:
    """Callers that ask for more than the queue holds, some of whom leave, and caches that ask again."""
    over = threading.Event()
    digest = server.http.get("/v1/models/toy").json()["digest"][:12]
    address = f"{server.url}/v1/models/toy@{digest}/1.png"
    etag = httpx.head(address).headers["etag"]

    def ask(body: dict[str, object]) -> None:
        with httpx.Client(timeout=30) as http:
            while not over.wait(0.02):
                http.post(f"{server.url}/v1/samples", json=body)
                http.get(address, headers={"If-None-Match": etag})

    bodies: list[dict[str, object]] = [{"seed": 1, "n": 64, "format": "png"}] * 3
    bodies += [{"seed": 1, "n": 32, "timeout_ms": 1}, {"seed": 1}]
    callers = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for one in callers:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in callers:
            one.join()


@contextmanager
def _prometheus(server: Server, folder: Path) -> Iterator[Query]:
    """Debian's Prometheus with the shipped PodMonitor and rules; gives what asks it."""
    command = shutil.which("prometheus")
    if command is None:
        pytest.skip("needs the Debian package prometheus")
    write_rules(folder / "rules.yml", MS_A_SECOND)
    scrape = _scrape_of_podmonitor(server)
    (folder / "prometheus.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "scrape_configs": [scrape]})
    )
    address = f"127.0.0.1:{free_port()}"
    flags = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
    }

    def query(expression: str) -> list[dict[str, Any]]:
        try:
            answer = httpx.get(f"http://{address}/api/v1/query", params={"query": expression}, timeout=10)
        except httpx.TransportError:
            return []
        if answer.status_code == 503:  # it starts
            return []
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return list(answer.json()["data"]["result"])

    words = [command, *(f"--{name}={value}" for name, value in flags.items())]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(words, stderr=log) as process:
        try:
            yield query
        finally:
            process.terminate()


def _scrape_of_podmonitor(server: Server) -> dict[str, Any]:
    """What the operator makes of the PodMonitor, for a server that is no pod."""
    monitor = yaml.safe_load((COMPONENT / "podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    name = monitor["metadata"]["name"]
    labels = {
        "namespace": "ganserve",
        "pod": "ganserve-0",
        "container": "ganserve",
        "ganserve_track": "stable",
    }
    return {
        "job_name": f"ganserve/{name}",
        "metrics_path": endpoint["path"],
        "scrape_interval": shortened(endpoint["interval"], MS_A_SECOND),
        "scrape_timeout": shortened(endpoint["interval"], MS_A_SECOND),  # 5 s would be 100 ms: a busy machine
        "static_configs": [{"targets": [f"127.0.0.1:{server.port}"], "labels": labels}],
    }
