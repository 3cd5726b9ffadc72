"""The simulation of deploy/load loses no image, agrees with arithmetic, and its plot is the shipped one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from kubernetes_manifests import MANIFESTS

SCRIPT = MANIFESTS.parent / "load" / "simulate.py"


@pytest.fixture(scope="module")
def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_image_asked_for_is_made_cached_refused_or_waits(load: ModuleType) -> None:
    for cluster in load.CASES.values():
        waited = 0.0
        for one in load.simulate(cluster):
            assert one.hits + one.made + one.refused + one.queued == pytest.approx(one.asked + waited)
            assert 0 <= one.made <= one.pods * cluster.pod_images_s
            assert one.queued <= one.pods * cluster.pod_queue_rows
            waited = one.queued


def test_a_steady_load_gets_the_pods_that_arithmetic_gives_it(load: ModuleType) -> None:
    """5,000 images/s by 1,061 a pod, seven tenths busy: 6.7 pods, and a tenth of tolerance."""
    *_, last = load.simulate(load.Cluster(), lambda second: 5000.0)

    assert last.pods in (7, 8)
    assert last.made == pytest.approx(5000.0)
    assert last.refused == 0


def test_queued_rows_tell_the_autoscaler_more_than_cpu_and_a_cache_takes_work_away(
    load: ModuleType,
) -> None:
    cpu, queued, cached = (list(load.simulate(one)) for one in load.CASES.values())
    refused = [sum(one.refused for one in run) for run in (cpu, queued, cached)]

    assert refused[0] > refused[1] > refused[2]
    assert cached[-1].pods < queued[-1].pods
    assert max(one.pods for one in cpu) > yaml_of("base/horizontalpodautoscaler.yaml")["minReplicas"]


def test_a_cache_hits_nothing_at_first_and_nearly_all_when_it_has_seen_each(load: ModuleType) -> None:
    cache = load._Cache(1000)

    assert cache.hits(1.0) < 0.2
    for _ in range(1000):
        hits = cache.hits(1000.0)
    assert hits == pytest.approx(1000.0, rel=0.01)


def test_the_simulated_autoscaler_is_as_its_manifests_say(load: ModuleType) -> None:
    cluster, keda = load.Cluster(), load.CASES["queued rows (KEDA)"]
    hpa = yaml_of("base/horizontalpodautoscaler.yaml")
    scaled = yaml_of("components/keda/scaledobject.yaml")
    queued_rows, busy = (trigger["metadata"]["threshold"] for trigger in scaled["triggers"])

    assert 100 * cluster.target_busy == hpa["metrics"][0]["resource"]["target"]["averageUtilization"]
    assert cluster.calm_s == hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
    assert cluster.look_s == scaled["pollingInterval"]
    assert (keda.target_queued_rows, keda.target_busy) == (float(queued_rows), float(busy))


def test_the_shipped_plot_and_table_are_what_the_simulation_gives(load: ModuleType) -> None:
    runs = {name: list(load.simulate(cluster)) for name, cluster in load.CASES.items()}
    readme = (MANIFESTS.parent / "README.md").read_text()

    assert SCRIPT.with_name("capacity.svg").read_text() == load.plot(runs)
    for run in runs.values():
        assert f"{sum(one.refused for one in run):,.0f}" in readme


def yaml_of(name: str) -> dict[str, object]:
    return dict(yaml.safe_load((Path(MANIFESTS) / name).read_text())["spec"])
