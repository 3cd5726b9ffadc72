"""Metrics tell what happened, in a form that Prometheus' own tool accepts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest
from server_process import Server, wait_for

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


def test_promtool_finds_nothing_to_complain_of(shared_server: Server) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs the Debian package prometheus, which has promtool")
    text = shared_server.http.get("/metrics").text

    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
