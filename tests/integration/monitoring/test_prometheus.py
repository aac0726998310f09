"""`deploy/prometheus` and `deploy/grafana`: valid, tested, and based on metrics of a running shim."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.provider import provider
from tests.support.recorder import recorder
from tests.support.shim_process import run_shim

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy/prometheus/navidrome-shim.rules.yml"
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
DASHBOARD = ROOT / "deploy/grafana/navidrome-shim.json"
ALERT_TESTS = Path(__file__).with_name("alerts.yml")
# Labels that Prometheus adds, and functions and keywords of PromQL that look like a metric.
ADDED = {"instance": None, "job": None, "le": None}
METRIC = re.compile(r"\b((?:shim|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


def promtool(*arguments: str, stdin: str | None = None, folder: Path | None = None) -> str:
    """Return what promtool prints; fail if it fails."""
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The `/metrics` of a shim that uses every feature: accounts, a key set, and a host name."""
    folder = tmp_path_factory.mktemp("shim")
    with recorder() as upstream, provider() as issuer:
        settings = issuer.settings(
            PROVISIONING="true",
            DATABASE_URL=f"sqlite:///{folder}/shim.db",
            REVERSE_PROXY_WHITELIST="localhost",
        )
        with run_shim(upstream.port, folder, **settings) as shim:
            control = shim.wait_for_line(kind="started")["control_listen"]
            opener = build_opener(ProxyHandler({}))
            with opener.open(f"http://{control}/metrics", timeout=20) as response:
                yield response.read().decode()


@pytest.fixture(scope="module")
def labels(metrics: str) -> dict[str, dict[str, set[str]]]:
    """The values of each label of each metric."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                values.setdefault(name, set()).add(value)
    return found


def rule_expressions() -> dict[str, str]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def dashboard_expressions() -> dict[str, str]:
    dashboard = json.loads(DASHBOARD.read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    found |= {each["name"]: each["expr"] for each in dashboard["annotations"]["list"]}
    assert len(found) > 20
    return found


EXPRESSIONS = rule_expressions() | dashboard_expressions()


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_reads_metrics_and_labels_that_a_running_shim_has(
    name: str, labels: dict[str, dict[str, set[str]]]
) -> None:
    used = METRIC.findall(EXPRESSIONS[name])
    assert used or name == "ShimDown"
    for metric, matchers in used:
        assert metric in labels, metric
        for label, pattern in MATCHER.findall(matchers):
            if label in ADDED:
                continue
            known = labels[metric][label]
            for alternative in pattern.split("|"):
                matching = [value for value in known if re.fullmatch(alternative, value)]
                assert matching, (metric, label, alternative)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_groups_by_labels_that_its_metrics_have(
    name: str, labels: dict[str, dict[str, set[str]]]
) -> None:
    expression = EXPRESSIONS[name]
    metrics = [metric for metric, _ in METRIC.findall(expression)]
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    for label in ",".join(grouped).replace(" ", "").split(","):
        if label and label not in ADDED:
            assert any(label in labels[metric] for metric in metrics), label


@pytest.mark.binary("promtool")
def test_metrics_follow_prometheus_conventions(metrics: str) -> None:
    promtool("check", "metrics", stdin=metrics)


@pytest.mark.binary("promtool")
def test_rules_are_valid() -> None:
    assert f"{len(rule_expressions())} rules found" in promtool("check", "rules", str(RULES))


@pytest.mark.binary("promtool")
def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERT_TESTS.name, folder=ALERT_TESTS.parent)


def test_every_alert_is_tested_with_values_that_fire_it_and_values_that_do_not() -> None:
    names = [test["name"] for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]]
    alerts = rule_expressions()
    assert sorted(names) == sorted(
        f"{alert} {result}" for alert in alerts for result in ("fires", "stays silent")
    )


@pytest.mark.binary("promtool")
def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(CONFIG, tmp_path)
    (tmp_path / "shim-control-token").write_text("token")
    promtool("check", "config", str(tmp_path / CONFIG.name))


@pytest.mark.binary("promtool")
def test_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(dashboard_expressions().values())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_the_dashboard_shows_every_metric_of_the_shim(metrics: str) -> None:
    text = DASHBOARD.read_text()
    names = {family.name for family in text_string_to_metric_families(metrics)}
    shown = {name for name in names if re.search(rf"\b{name}(_total|_info|_bucket)?\b", text)}
    assert {name for name in names if name.startswith("shim_")} <= shown


def test_panels_do_not_overlap_and_use_the_chosen_data_source() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24 and (x, y) not in cells, panel["title"]
                cells[x, y] = panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
    assert len({panel["id"] for panel in panels}) == len(panels)
