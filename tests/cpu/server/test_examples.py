"""What lies under examples/ fits together, and fits the server."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from paiton_runtime.cli import _parse
from paiton_runtime.server.health import OPEN_PATHS
from tests.conftest import ROOT
from tests.cpu.server.conftest import StartServer
from tests.cpu.server.server_process import Server

yaml = pytest.importorskip("yaml", reason="PyYAML is missing: the examples are YAML")

EXAMPLES = ROOT / "examples"
DASHBOARD = EXAMPLES / "grafana" / "paiton.json"
FUNCTIONS = {"sum", "rate", "max", "avg", "by", "histogram_quantile", "le", "stage", "finished_reason"}
MATCHER = re.compile(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"")
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def load(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(file)


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def names(expression: str) -> set[str]:
    """The metrics of an expression of PromQL: words outside matchers, ranges and strings that are no functions."""
    return set(NAME.findall(MATCHER.sub(" ", expression))) - FUNCTIONS


def test_dashboard_asks_for_metrics_that_exist(server: Server) -> None:
    families = text_string_to_metric_families(server.get("/metrics").body.decode())
    exported = {sample.name for family in families for sample in family.samples}
    asked = set().union(*map(names, expressions()))
    assert len(asked) > 20
    assert asked <= exported


def test_dashboard_labels_exist(server: Server) -> None:
    """`job` and `instance` come from Prometheus itself."""
    families = text_string_to_metric_families(server.get("/metrics").body.decode())
    exported = {label for family in families for sample in family.samples for label in sample.labels}
    text = " ".join(expressions())
    asked = set(re.findall(r"(\w+)=~?\"", text)) | set(re.findall(r"by \((\w+)\)", text))
    assert asked - {"job", "instance"} <= exported
    variables = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert set(re.findall(r"\$(\w+)", DASHBOARD.read_text(encoding="utf-8"))) <= {
        *variables,
        "__rate_interval",
        "__all",
    }


def test_panels_have_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24  # the width of Grafana's grid
        taken |= cells


def serve_arguments(words: list[str]) -> Any:
    """What the command line makes of the arguments of an example; an unknown flag ends the test."""
    return _parse(words)


def test_compose_starts_our_command_and_mounts_what_is_there() -> None:
    compose = load(EXAMPLES / "compose.yaml")
    assert set(compose) == {"name", "services", "volumes"}
    services = compose["services"]
    ours = services["paiton"]
    arguments = serve_arguments(ours["command"])
    assert str(arguments.bundle) == "/bundle"
    assert any(volume.endswith(":/bundle:ro") for volume in ours["volumes"])
    assert int(ours["stop_grace_period"].removesuffix("s")) > arguments.shutdown_timeout
    assert f"127.0.0.1:{arguments.port}:{arguments.port}" in ours["ports"]
    assert f":{arguments.port}/health" in ours["healthcheck"]["test"][-1]
    assert (EXAMPLES / ours["build"]["context"] / ours["build"]["dockerfile"]).is_file()
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            known = source.startswith("${") or source in compose["volumes"] or (EXAMPLES / source).exists()
            assert known, volume
        assert set(service.get("depends_on", [])) <= set(services)


def test_prometheus_scrapes_the_server_and_grafana_finds_both() -> None:
    services = load(EXAMPLES / "compose.yaml")["services"]
    port = serve_arguments(services["paiton"]["command"]).port
    (job,) = load(EXAMPLES / "prometheus" / "prometheus.yaml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"paiton:{port}"]}]
    (source,) = load(EXAMPLES / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load(EXAMPLES / "grafana/provisioning/dashboards/paiton.yaml")["providers"]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/{DASHBOARD.name}" in mounts


def test_kubernetes_objects_refer_to_each_other() -> None:
    folder = EXAMPLES / "kubernetes"
    resources = load(folder / "kustomization.yaml")["resources"]
    assert set(resources) == {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
    objects = {item["kind"]: item for item in (load(folder / name) for name in resources)}
    deployment, service = objects["Deployment"]["spec"], objects["Service"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]
    assert endpoint["path"] in OPEN_PATHS
    volumes = {volume["name"]: volume for volume in deployment["template"]["spec"]["volumes"]}
    claim = volumes["bundle"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]


def test_deployment_starts_our_command_and_leaves_it_time_to_end() -> None:
    pod = load(EXAMPLES / "kubernetes" / "deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = serve_arguments(container["args"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(arguments.bundle) in mounts
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["ports"] == [{"name": "http", "containerPort": arguments.port}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in OPEN_PATHS
        assert container[probe]["httpGet"]["port"] == "http"
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + arguments.shutdown_timeout


def test_liveness_holds_while_the_server_drains_and_readiness_does_not(
    start_server: StartServer, smollm2_bundle: Path
) -> None:
    """The paths of the probes, asked of a server that drains: it must lose its traffic, not its life."""
    (container,) = load(EXAMPLES / "kubernetes" / "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    server = start_server(smollm2_bundle).wait_until_ready()
    body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}  # for many seconds
    with server.stream("/v1/completions", body) as events:
        next(iter(events))
        server.signal(signal.SIGTERM)
        server.wait_for_line(" drain ")
        assert server.get(paths["readinessProbe"]).status == 503
        assert server.get(paths["livenessProbe"]).status == 200
