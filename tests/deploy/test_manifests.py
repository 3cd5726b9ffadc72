"""What deploy/kubernetes renders to is valid, restricted, and fits what the server says of itself."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_manifests import (
    ADDING,
    MANIFESTS,
    Document,
    Rendered,
    containers,
    parse,
    pod_spec,
)

from models.store import SHIPPED_STORE, Store
from service import server
from service.pages import DOCUMENT_PATHS, PAGE_PATHS
from service.settings import ENV_PREFIX, Settings, load_settings
from service.slots import SlotLayout

WithComponents = Callable[..., list[Document]]
VERSIONS = ("1.30", "1.33", "1.37")
CUSTOM = {"HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject"}  # test_custom_resources.py
PROBE_PATHS = {"startupProbe": "/startupz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

SKIPPED_CHECKS = {
    "CKV_K8S_14": "kustomize writes the tag; the digest is pinned by who builds the image (README.md)",
    "CKV_K8S_15": "images are pinned by digest in production: pulling again could only fail",
    "CKV_K8S_43": "no digest is known before the image was built; README.md says how to pin it",
}
"""checkov's checks that do not apply, each with the reason."""


# -- valid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid_kubernetes(every_document: list[Document], version: str) -> None:
    of_kubernetes = [one for one in every_document if one["kind"] not in CUSTOM]
    for document in of_kubernetes:
        kubernetes_validate.validate(document, version, strict=True)

    assert {"Deployment", "Job", "CronJob", "Ingress", "NetworkPolicy"} <= {
        one["kind"] for one in of_kubernetes
    }


def test_a_misspelt_field_would_be_found(with_components: WithComponents) -> None:
    (deployment, *_) = _of_kind(with_components(*ADDING), "Deployment")
    misspelt = json.loads(json.dumps(deployment).replace("failureThreshold", "failureTreshold"))

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, VERSIONS[0], strict=True)


def test_checkov_finds_nothing_but_what_is_skipped_with_a_reason(
    every_combination: list[Rendered], shipped: dict[str, list[str]], tmp_path: Path
) -> None:
    checkov = shutil.which("checkov")
    if checkov is None:
        pytest.skip("needs checkov (pip install checkov, best in a virtual environment of its own)")
    # It looks at relations, too (has this pod a policy?): a full set first, then what others have more.
    largest = [one for one in every_combination if len(one.components) == max(_sizes(every_combination))]
    written: set[str] = set()
    for number, rendered in enumerate([*largest, *every_combination]):
        new = [text for text in rendered.texts if text not in written]
        if new:
            (tmp_path / f"set{number}.yaml").write_text("---\n".join(new))
            written.update(new)
    for name, texts in shipped.items():
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text("\n---\n".join(texts))

    skipped = ",".join(SKIPPED_CHECKS)
    command = [checkov, "-d", str(tmp_path), "--framework", "kubernetes", "--skip-check", skipped]
    done = subprocess.run([*command, "--compact", "-o", "json"], capture_output=True, text=True)
    found = json.loads(done.stdout)

    failed = {f"{one['check_id']} {one['resource']}" for one in found["results"]["failed_checks"]}
    assert failed == set()
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 500


def _sizes(rendered: list[Rendered]) -> list[int]:
    return [len(one.components) for one in rendered]


@pytest.mark.parametrize("name", ADDING)
def test_an_adding_component_changes_nothing_of_others(name: str) -> None:
    content = yaml.safe_load((MANIFESTS / "components" / name / "kustomization.yaml").read_text())

    assert set(content) <= {"apiVersion", "kind", "resources", "configMapGenerator"}


# -- restricted -----------------------------------------------------------------------------------


def test_every_pod_passes_the_restricted_pod_security_standard(every_document: list[Document]) -> None:
    """The controls of https://kubernetes.io/docs/concepts/security/pod-security-standards/, restricted."""
    pods = [pod for one in every_document if (pod := pod_spec(one)) is not None]
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] != 0
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not {"sysctls", "seLinuxOptions", "appArmorProfile"} & set(pod["securityContext"])
        allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "downwardAPI"}
        for volume in pod.get("volumes", ()):
            assert set(volume) - {"name"} <= allowed
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert set(context) == {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"}
            assert not any("hostPort" in port for port in container.get("ports", ()))

    assert len(pods) > 40


def test_every_pod_is_without_token_and_service_links_on_a_root_that_is_read_only(
    every_document: list[Document],
) -> None:
    for document in every_document:
        if (pod := pod_spec(document)) is None:
            continue
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["serviceAccountName"] == "ganserve"
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
            for kind in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][kind])


def test_service_links_would_be_refused_as_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Service named ganserve would set in each pod: the reason why they are off."""
    monkeypatch.setenv(f"{ENV_PREFIX}PORT_80_TCP", "tcp://10.0.0.1:80")

    with pytest.raises(Exception, match="GANSERVE_PORT_80_TCP"):
        load_settings(argparse.Namespace(config=None))


def test_every_mount_has_its_volume_and_every_volume_its_mount(every_document: list[Document]) -> None:
    for document in every_document:
        if (pod := pod_spec(document)) is None:
            continue
        mounted = {mount["name"] for one in containers(pod) for mount in one["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_no_key_or_password_is_in_a_manifest(every_document: list[Document]) -> None:
    assert not [one for one in every_document if one["kind"] == "Secret"]


# -- the server as it is started ------------------------------------------------------------------


def test_every_server_starts_with_settings_that_it_takes(
    every_document: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    for document in _of_kind(every_document, "Deployment"):
        settings = _settings_of(document, monkeypatch)
        (port,) = _server(document)["ports"]
        gpu = "nvidia.com/gpu" in _server(document)["resources"]["limits"]

        assert port == {"name": "http", "containerPort": settings.port}
        assert settings.host == "0.0.0.0"
        assert settings.accelerator == ("cuda" if gpu else "cpu")


def test_the_grace_period_is_longer_than_all_that_follows_sigterm(
    every_document: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    for document in _of_kind(every_document, "Deployment"):
        settings = _settings_of(document, monkeypatch)
        grace_s = document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        longest_s = settings.drain_delay_s + settings.drain_s + server._DRAIN_MARGIN_S + server._WORKERS_END_S

        assert settings.drain_delay_s == 5  # what endpoints and proxies take to learn of it
        assert longest_s + 1 <= grace_s <= longest_s + 5


def test_probes_ask_their_own_routes_and_startup_waits_as_long_as_a_model_may_load(
    every_document: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    for document in _of_kind(every_document, "Deployment"):
        container = _server(document)
        startup = container["startupProbe"]
        startup_s = startup["failureThreshold"] * startup["periodSeconds"]

        for probe, path in PROBE_PATHS.items():
            assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        assert startup_s >= _settings_of(document, monkeypatch).load_timeout_s
        assert document["spec"]["progressDeadlineSeconds"] > startup_s
        # A pod that drains is not to be killed for being unready, nor a busy one for being slow.
        liveness = container["livenessProbe"]
        assert liveness["failureThreshold"] * liveness["periodSeconds"] >= 30


def test_workers_are_as_many_as_the_cpu_limit_says_and_the_limit_is_what_was_asked_for(
    every_document: list[Document],
) -> None:
    for document in _of_kind(every_document, "Deployment"):
        resources = _server(document)["resources"]

        assert resources["limits"]["cpu"] == resources["requests"]["cpu"]
        assert float(resources["limits"]["cpu"]).is_integer()
        assert resources["limits"]["memory"] == resources["requests"]["memory"]


def test_the_memory_limit_holds_processes_shared_memory_and_a_full_queue(
    with_components: WithComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deployment,) = _of_kind(with_components(*ADDING), "Deployment")
    settings = _settings_of(deployment, monkeypatch)
    manifest = Store(SHIPPED_STORE).resolve("fashion-mnist").manifest
    workers = int(_server(deployment)["resources"]["limits"]["cpu"])
    layout = SlotLayout.of(manifest, settings.microbatch_rows)
    slots = workers * 2 * layout.dtype.itemsize  # two microbatches a worker
    processes = 196 * 2**20  # README.md, "Measured": two workers, PSS
    answers = 2 * settings.max_queued_rows * layout.dtype["made"].itemsize // layout.rows  # files, and a zip
    mounted = sum(
        _bytes(volume["emptyDir"]["sizeLimit"])
        for volume in deployment["spec"]["template"]["spec"]["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    )

    needed = processes + slots + answers + mounted

    assert slots < 2**20
    assert needed <= _bytes(_server(deployment)["resources"]["limits"]["memory"]) <= 2 * needed


def test_dev_shm_has_room_for_the_semaphores_and_images_pass_elsewhere(
    every_document: list[Document],
) -> None:
    """Python's `multiprocessing.Event` makes five semaphores there; the kernel gives each a page."""
    code = "import multiprocessing; kept = multiprocessing.Event(); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    semaphores = len(set(re.findall(r"/dev/shm/sem\.\S+", maps)))

    for document in _of_kind(every_document, "Deployment"):
        volumes = {one["name"]: one for one in document["spec"]["template"]["spec"]["volumes"]}
        mounts = {one["mountPath"]: one["name"] for one in _server(document)["volumeMounts"]}
        shm = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert shm["medium"] == "Memory"
        assert 1 <= semaphores * 4096 <= _bytes(shm["sizeLimit"])


# -- how documents fit each other -----------------------------------------------------------------


def test_one_autoscaler_at_most_scales_the_stable_deployment(every_combination: list[Rendered]) -> None:
    for rendered in every_combination:
        documents = rendered.documents()
        scalers = _of_kind(documents, "HorizontalPodAutoscaler") + _of_kind(documents, "ScaledObject")
        stable = _named(documents, "Deployment", "ganserve")

        if "keda" in rendered.components:
            (scaler,) = scalers
            assert scaler["kind"] == "ScaledObject"
            assert scaler["spec"]["minReplicaCount"] >= 1  # no pod, no metric, nobody to call it back
        elif "gpu" in rendered.components:
            assert scalers == []  # CPU says nothing there
        else:
            (scaler,) = scalers
            assert scaler["kind"] == "HorizontalPodAutoscaler"
        assert all(one["spec"]["scaleTargetRef"]["name"] == "ganserve" for one in scalers)
        assert ("replicas" in stable["spec"]) is (scalers == [])


def test_services_and_policies_select_pods_that_there_are(every_combination: list[Rendered]) -> None:
    for rendered in every_combination:
        documents = rendered.documents()
        pods = {
            one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
            for one in _of_kind(documents, "Deployment")
        }
        selected = {
            one["metadata"]["name"]: {
                name for name, labels in pods.items() if one["spec"]["selector"].items() <= labels.items()
            }
            for one in _of_kind(documents, "Service")
        }
        policy = _named(documents, "NetworkPolicy", "ganserve-server")["spec"]["podSelector"]["matchLabels"]

        canary = "canary" in rendered.components
        both = {"ganserve", "ganserve-canary"} if canary else {"ganserve"}
        assert set(pods) == both
        assert selected["ganserve"] == both
        assert not canary or selected["ganserve-stable"] == {"ganserve"}
        assert not canary or selected["ganserve-canary"] == {"ganserve-canary"}
        assert all(policy.items() <= labels.items() for labels in pods.values())


def test_the_canary_is_the_stable_deployment_but_for_name_track_and_version(
    every_combination: list[Rendered],
) -> None:
    for rendered in every_combination:
        if "canary" not in rendered.components:
            continue
        stable, canary = (
            json.dumps(_named(rendered.documents(), "Deployment", name)["spec"]["template"], sort_keys=True)
            for name in ("ganserve", "ganserve-canary")
        )

        spread = '"app.kubernetes.io/name": "ganserve"'  # kustomize spreads each track by itself
        canary = canary.replace(f'{spread}, "ganserve/track": "canary"}}}}, "max', f'{spread}}}}}, "max')
        assert canary != stable
        assert canary == (
            stable.replace('"ganserve/track": "stable"', '"ganserve/track": "canary"')
            .replace('"fashion-mnist:1"', '"fashion-mnist:2"')
            .replace('"name": "ganserve-settings-', '"name": "ganserve-settings-canary-')
        )


def test_the_route_sends_addresses_with_a_digest_to_the_version_that_has_it(
    with_components: WithComponents,
) -> None:
    documents = with_components("canary", *ADDING)
    (route,) = _of_kind(documents, "HTTPRoute")
    store = Store(SHIPPED_STORE)
    digests = [store.resolve(f"fashion-mnist:{version}").digest[:12] for version in (1, 2)]
    stable, canary = (f"/v1/models/fashion-mnist@{digest}" for digest in digests)
    rules = {
        match["path"]["value"]: rule["backendRefs"]
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    }

    services = {one["metadata"]["name"] for one in _of_kind(documents, "Service")}
    assert [one["name"] for one in rules[stable]] == ["ganserve-stable"]
    assert [one["name"] for one in rules[canary]] == ["ganserve-canary"]
    assert sum(one["weight"] for one in rules["/v1"]) == 100
    assert {one["name"] for refs in rules.values() for one in refs} <= services


def test_the_world_may_ask_for_the_page_and_images_and_not_for_metrics(
    with_components: WithComponents,
) -> None:
    (ingress,) = _of_kind(with_components(*ADDING), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    paths = {one["path"]: one["pathType"] for one in rule["http"]["paths"]}
    exact = {path for path, kind in paths.items() if kind == "Exact"}
    prefixes = {path for path, kind in paths.items() if kind == "Prefix"}

    assert prefixes == {"/v1", "/v2", "/docs"}
    assert exact | prefixes == {*PAGE_PATHS, *DOCUMENT_PATHS, "/v1", "/v2"}
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


# -- jobs -----------------------------------------------------------------------------------------


def test_training_jobs_say_what_the_commands_take(shipped: dict[str, list[str]]) -> None:
    from training.__main__ import _parser
    from training.presets import PRESETS

    train, evaluate, export = (
        _arguments(shipped[f"jobs/{one}"], one) for one in ("train", "evaluate", "export")
    )
    parsed = _parser().parse_args(train[train.index("train") :])
    evaluated = _parser().parse_args(evaluate[1:])
    exported = _parser().parse_args(export[1:])

    assert train[:2] == ["torchrun", "--standalone"]
    assert parsed.preset in PRESETS
    assert exported.run_dir == parsed.run_dir == Path(evaluated.target)
    assert evaluated.data == parsed.data
    assert exported.version  # so that a second try publishes nothing twice


def test_a_process_a_gpu_trains(shipped: dict[str, list[str]]) -> None:
    (job,) = _jobs(shipped["jobs/train"])
    container = containers(job["spec"]["template"]["spec"])[-1]

    processes = next(one for one in container["args"] if one.startswith("--nproc-per-node="))
    assert processes.partition("=")[2] == container["resources"]["limits"]["nvidia.com/gpu"]


def test_the_store_is_verified_by_commands_that_there_are(shipped: dict[str, list[str]]) -> None:
    from service.__main__ import _parser

    for name in ("hash-files", "golden-rows"):
        parsed = _parser().parse_args(_arguments(shipped["jobs/verify-store"], name))
        assert parsed.store == Path("/models")


def test_jobs_leave_out_of_their_counts_what_a_node_did(shipped: dict[str, list[str]]) -> None:
    for name in ("jobs/sample", "jobs/train", "jobs/evaluate", "jobs/export"):
        (job,) = _jobs(shipped[name])
        rule, *_ = job["spec"]["podFailurePolicy"]["rules"]
        assert rule == {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy demands it


# -- helpers --------------------------------------------------------------------------------------


def _of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [one for one in documents if one["kind"] == kind]


def _named(documents: list[Document], kind: str, name: str) -> Document:
    (found,) = [one for one in _of_kind(documents, kind) if one["metadata"]["name"] == name]
    return found


def _server(deployment: Document) -> Document:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


def _settings_of(deployment: Document, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the server of `deployment` would read, by the flags, environment and file that it gets."""
    container = _server(deployment)
    assert container["args"] == ["serve", "--config=/etc/ganserve/settings.yaml"]
    for one in container.get("env", ()):
        monkeypatch.setenv(one["name"], one["value"])
    settings = load_settings(argparse.Namespace(config=MANIFESTS / "base" / "server" / "settings.yaml"))
    for one in container.get("env", ()):
        monkeypatch.delenv(one["name"])
    return settings


def _jobs(texts: list[str]) -> list[Document]:
    return [one for one in map(parse, texts) if one["kind"] in ("Job", "CronJob")]


def _arguments(texts: list[str], container: str) -> list[str]:
    (job,) = _jobs(texts)
    pod = pod_spec(job)
    assert pod is not None
    (found,) = [one for one in containers(pod) if one["name"] == container]
    return list(found["args"])


def _bytes(quantity: Any) -> int:
    number, unit = re.fullmatch(r"([0-9.]+)(|Ki|Mi|Gi)", str(quantity)).groups()  # type: ignore[union-attr]
    return math.ceil(float(number) * UNITS[unit])
