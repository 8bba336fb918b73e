"""Agreement of the files that Compose reads with the code."""

import json
import re
from pathlib import Path

import yaml

from deploy.telemetry.gauges import LABELS
from shared.metrics_catalogue import describe_gauges

DOCKER = Path(__file__).parents[3] / "deploy/docker"
COMPOSE = DOCKER.parents[1] / "docker-compose.yml"


def test_the_dashboard_shows_every_gauge_by_its_labels() -> None:
    dashboard = json.loads((DOCKER / "grafana/dashboards/fathom.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    ours = [target for target in targets if "ray_fathom_" in target["expr"]]
    shown = {name for target in ours for name in re.findall(r"ray_fathom_(\w+)", target["expr"])}
    assert shown == set(LABELS)
    for target in ours:
        (name,) = re.findall(r"ray_fathom_(\w+)", target["expr"])
        used = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) | set(re.findall(r"(\w+)=~", target["expr"]))
        assert used <= set(LABELS[name]), target


def test_panels_are_described_by_the_catalogue() -> None:
    meanings = describe_gauges()
    dashboard = json.loads((DOCKER / "grafana/dashboards/fathom.json").read_text())
    for panel in dashboard["panels"]:
        for name in re.findall(r"ray_fathom_(\w+)", json.dumps(panel["targets"])):
            assert panel["description"] == meanings[name]


def test_only_pages_are_published_and_only_on_this_machine() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["${FATHOM_BIND:-127.0.0.1}:" + f"{port}:{port}" for port in (8265, 6006, 3000)]
    assert not any(service.get("privileged") or service.get("network_mode") for service in services.values())


def test_images_are_pinned_and_lock_files_name_no_index() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert all(re.search(r":(cpu|cuda|v?\d+\.\d+\.\d+)$", service["image"]) for service in services.values())
    requirements = DOCKER.parents[1] / "requirements"
    for lock in (DOCKER / "tensorboard.txt", requirements / "cuda12.txt", requirements / "cuda13.txt"):
        assert not re.search(r"://|^--(index|extra-index|find-links)", lock.read_text(), re.MULTILINE)
