"""Custom resources hold only fields that their definitions have, of the types that they have.

kubernetes-validate knows no custom resource, so each field that we use is listed here as its published
definition has it: Prometheus operator 0.82, KEDA 2.17, Gateway API 1.2.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from kubernetes_manifests import Document

DURATION = re.compile(r"([0-9]+(ms|[smhdwy]))+")
STRINGS = "map of strings"
PERIODS = {
    "stabilizationWindowSeconds": int,
    "policies": [{"type": str, "value": int, "periodSeconds": int}],
}
FIELDS: dict[str, tuple[str, Any]] = {
    "PodMonitor": (
        "monitoring.coreos.com/v1",
        {
            "selector": {"matchLabels": STRINGS},
            "podTargetLabels": [str],
            "podMetricsEndpoints": [
                {"port": str, "path": str, "interval": DURATION, "scrapeTimeout": DURATION}
            ],
        },
    ),
    "PrometheusRule": (
        "monitoring.coreos.com/v1",
        {
            "groups": [
                {
                    "name": str,
                    "interval": DURATION,
                    "rules": [
                        {
                            "alert": str,
                            "record": str,
                            "expr": str,
                            "for": DURATION,
                            "labels": STRINGS,
                            "annotations": STRINGS,
                        }
                    ],
                }
            ]
        },
    ),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {
            "scaleTargetRef": {"name": str},
            "minReplicaCount": int,
            "maxReplicaCount": int,
            "pollingInterval": int,
            "fallback": {"failureThreshold": int, "replicas": int, "behavior": str},
            "advanced": {
                "horizontalPodAutoscalerConfig": {"behavior": {"scaleUp": PERIODS, "scaleDown": PERIODS}}
            },
            "triggers": [{"type": str, "name": str, "metricType": str, "metadata": STRINGS}],
        },
    ),
    "HTTPRoute": (
        "gateway.networking.k8s.io/v1",
        {
            "parentRefs": [{"name": str, "namespace": str}],
            "hostnames": [str],
            "rules": [
                {
                    "matches": [{"path": {"type": str, "value": str}}],
                    "backendRefs": [{"name": str, "port": int, "weight": int}],
                }
            ],
        },
    ),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_custom_resource_holds_only_fields_that_its_definition_has(
    every_document: list[Document], kind: str
) -> None:
    api_version, fields = FIELDS[kind]
    documents = [one for one in every_document if one["kind"] == kind]

    assert documents
    for document in documents:
        assert document["apiVersion"] == api_version
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        assert list(_faults(document["spec"], fields, "spec")) == []


def test_values_are_among_those_that_the_definitions_allow(every_document: list[Document]) -> None:
    (scaled,) = [one["spec"] for one in every_document if one["kind"] == "ScaledObject"]
    (route,) = [one["spec"] for one in every_document if one["kind"] == "HTTPRoute"]

    assert scaled["fallback"]["behavior"] in ("static", "currentReplicas", "currentReplicasIfHigher")
    for trigger in scaled["triggers"]:
        assert trigger["type"] == "prometheus"
        assert trigger["metricType"] in ("AverageValue", "Value")
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}  # its required ones
        assert float(trigger["metadata"]["threshold"]) > 0
    for rule in route["rules"]:
        assert all(match["path"]["type"] in ("Exact", "PathPrefix") for match in rule["matches"])


def test_an_unknown_field_and_a_wrong_type_would_be_found() -> None:
    _, fields = FIELDS["ScaledObject"]

    assert list(_faults({"minReplicas": 1}, fields, "spec")) == ["spec.minReplicas is no field"]
    assert list(_faults({"minReplicaCount": "1"}, fields, "spec")) == ["spec.minReplicaCount is '1'"]


def _faults(value: Any, fields: Any, where: str) -> Any:
    """Yield a line for each part of `value` that is not as `fields` has it."""
    if isinstance(fields, dict):
        for name, part in value.items():
            if name in fields:
                yield from _faults(part, fields[name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is no field"
    elif isinstance(fields, list):
        for number, part in enumerate(value):
            yield from _faults(part, fields[0], f"{where}[{number}]")
    elif fields is STRINGS:
        if not all(isinstance(text, str) for text in value.values()):
            yield f"{where} is {value!r}"
    elif isinstance(fields, re.Pattern):
        if not fields.fullmatch(str(value)):
            yield f"{where} is {value!r}"
    elif type(value) is not fields:
        yield f"{where} is {value!r}"
