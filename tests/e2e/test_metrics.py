"""Metrics tell what happened, in a form that Prometheus' own tool accepts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Server, free_port, wait_for

from service.metrics import Family, Metrics, ModelState

Serve = Callable[..., Server]


def test_metrics_count_what_was_asked_and_made(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "2")
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 2)
    server.http.post("/v1/samples", json={"seed": 1, "n": 40, "format": "npy"})
    server.http.post("/v1/samples", json={"seed": 1})
    server.http.post("/v1/samples", json={"seed": -1})
    server.http.post("/v1/samples", json={"seed": 1, "n": 5000})
    server.http.get("/v1/models/toy/1.png", follow_redirects=True)
    digest = server.http.get("/v1/models/toy").json()["digest"]

    samples = {"endpoint": "/v1/samples"}
    assert server.metric("ganserve_requests_total", **samples, model="toy", code="200") == 2
    assert server.metric("ganserve_requests_total", **samples, code="422") == 1
    assert server.metric("ganserve_requests_total", **samples, code="413") == 1
    assert server.metric("ganserve_rejected_total", reason="too_large") == 1
    assert server.metric("ganserve_images_total", model="toy", source="samples") == 41
    assert server.metric("ganserve_images_total", model="toy", source="image") == 1
    assert server.metric("ganserve_batch_rows_sum", model="toy") == 42
    assert 3 <= server.metric("ganserve_batches_total", model="toy") <= 42
    assert server.metric("ganserve_device_seconds_sum", model="toy") > 0
    assert server.metric("ganserve_worker_busy_seconds_total", model="toy") > 0
    assert server.metric("ganserve_queue_seconds_count", model="toy") == 3
    assert server.metric("ganserve_encode_seconds_count", format="png") == 2
    assert server.metric("ganserve_queued_rows", model="toy") == 0
    assert server.metric("ganserve_model_info", digest=digest, provider="CPUExecutionProvider") == 1
    assert server.metric("ganserve_inflight_requests") == 1  # this scrape
    assert server.metric("ganserve_padding_rows_total", model="toy") == 0
    assert server.metric("process_resident_memory_bytes") > 10 * 2**20


NAMES = """
    requests_total{code,endpoint,model} request_seconds{endpoint} queue_seconds{model} device_seconds{model}
    encode_seconds{format} images_total{model,source} batch_rows{model} padding_rows_total{model}
    batches_total{bucket,model} queued_rows{model} inflight_requests{} rejected_total{reason}
    cancelled_total{stage} not_modified_total{} worker_up{model} worker_restarts_total{model}
    worker_busy_seconds_total{model} replayed_batches_total{model} model_info{digest,model,provider,version}
"""


def test_every_metric_has_the_name_and_the_labels_that_dashboards_know() -> None:
    declared = Metrics()
    declared.states["toy"] = lambda: ModelState(0, 0)
    for one in vars(declared).values():
        if isinstance(one, Family):
            one.labels(*one.labelnames)  # a series of each
    declared.model_info.labels("toy", "1", "ab", "CPUExecutionProvider")
    found = set()
    for family in declared.registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        labels = set(family.samples[0].labels) - {"le"}
        found.add(f"{family.name}{suffix}{{{','.join(sorted(labels))}}}")

    assert found >= {f"ganserve_{name}" for name in NAMES.split()}


def test_metrics_tell_buckets_and_padding_and_padding_changes_no_byte(serve: Serve) -> None:
    exact, padded = (
        serve("--model", "toy", "--workers", "1"),
        serve("--model", "toy", "--workers", "1", "--buckets", "4,8"),
    )
    request = {"seed": 5, "n": 11, "container": "tar"}

    images = padded.http.post("/v1/samples", json=request)

    assert images.content == exact.http.post("/v1/samples", json=request).content
    assert padded.metric("ganserve_batches_total", model="toy", bucket="8") == 1
    assert padded.metric("ganserve_batches_total", model="toy", bucket="4") == 1
    assert padded.metric("ganserve_padding_rows_total", model="toy") == 1
    assert padded.metric("ganserve_batch_rows_sum", model="toy") == 11


def test_metrics_go_on_counting_after_a_worker_died(serve: Serve) -> None:
    server = serve("--model", "toy", "--workers", "1")
    server.http.post("/v1/samples", json={"seed": 1, "n": 40, "format": "npy"})
    device_before = server.metric("ganserve_device_seconds_sum", model="toy")
    (worker,) = server.workers()
    worker.kill()
    wait_for(lambda: server.metric("ganserve_worker_restarts_total", model="toy") == 1)
    wait_for(lambda: server.metric("ganserve_worker_up", model="toy") == 1)
    server.http.post("/v1/samples", json={"seed": 1, "n": 40, "format": "npy"})

    assert server.metric("ganserve_images_total", model="toy") == 80
    assert server.metric("ganserve_batch_rows_sum", model="toy") == 80
    assert server.metric("ganserve_device_seconds_sum", model="toy") > device_before
    assert server.metric("ganserve_model_info", model="toy") == 1
    assert server.metric("ganserve_requests_total", model="toy", code="200") == 2


def test_promtool_finds_nothing_to_complain_of(shared_server: Server) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs the Debian package prometheus, which has promtool")
    text = shared_server.http.get("/metrics").text

    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_real_prometheus_scrapes_and_answers_a_query(shared_server: Server, tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("needs the Debian package prometheus")
    shared_server.http.post("/v1/samples", json={"seed": 1})
    scrape = {
        "job_name": "ganserve",
        "scrape_interval": "200ms",
        "scrape_timeout": "200ms",
        "static_configs": [{"targets": [f"127.0.0.1:{shared_server.port}"]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    command = [
        prometheus,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]

    def query(expression: str) -> list[dict[str, Any]]:
        try:
            answer = httpx.get(f"http://{address}/api/v1/query", params={"query": expression})
        except httpx.TransportError:
            return []
        return list(answer.json()["data"]["result"]) if answer.status_code == 200 else []

    with (tmp_path / "prometheus.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            wait_for(lambda: query("ganserve_images_total") != [], seconds=20)
            (up,) = query("up")
            made = query('ganserve_images_total{model="toy", source="samples"}')
            slow = query("histogram_quantile(0.95, sum by (le) (ganserve_request_seconds_bucket))")
        finally:
            process.terminate()

    assert up["value"][1] == "1"
    assert float(made[0]["value"][1]) >= 1
    assert 0 < float(slow[0]["value"][1]) < 60
