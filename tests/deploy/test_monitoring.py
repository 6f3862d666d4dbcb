"""The files of the rules, alerts and dashboard, checked with the tools of Prometheus and Grafana."""

import json
import re
import subprocess
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.programs import program
from tests.paths import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))
UNIT_TESTS = sorted(Path(__file__).parent.glob("*.test.yml"))
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "asl-triton.json").read_text(encoding="utf-8"))
RUNBOOK = ROOT / "deploy" / "README.md"


def load_rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def list_panels() -> list[dict[str, Any]]:
    """Return the panels that show data."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


ALERTS = {rule["alert"]: rule for rule in load_rules() if "alert" in rule}


def run_promtool(*arguments: str | Path) -> str:
    """Run promtool, which must succeed, and return its output."""
    binary = program("promtool", "apt-get install prometheus")
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid() -> None:
    output = run_promtool("check", "config", MONITORING / "prometheus.yml")
    assert f"SUCCESS: {len(RULES)} rule files found" in output


def test_alerts_pass_their_unit_tests() -> None:
    output = run_promtool("test", "rules", *UNIT_TESTS)
    assert output.count("SUCCESS") == len(UNIT_TESTS)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = [
        (check["alertname"], bool(check["exp_alerts"]))
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test.get("alert_rule_test", ())
    ]
    assert {name for name, fires in cases if fires} == set(ALERTS)
    assert {name for name, fires in cases if not fires} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_alert_has_a_severity_and_links_to_its_section(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert {"summary", "description", "runbook_url"} <= rule["annotations"].keys()
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert ROOT / page == RUNBOOK
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_runbook_sections_match_the_alerts() -> None:
    sections = re.findall(r"^#+ (AslTriton\w+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sections == list(ALERTS)


def test_runbook_command_writes_the_rules_for_the_operator(tmp_path: Path) -> None:
    """The Prometheus operator gets the same groups as PrometheusRule objects."""
    (command,) = re.findall(r"^for rules in .*?^done$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    script = command.replace("kubectl apply -f -", f'tee {tmp_path}/$(basename "$rules")')
    subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, capture_output=True)
    for path in RULES:
        made = yaml.safe_load((tmp_path / path.name).read_text())
        assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
        assert made["metadata"] == {"name": f"asl-triton-{path.stem}", "namespace": "asl-triton"}
        assert made["spec"] == yaml.safe_load(path.read_text())


def test_grafana_can_read_the_dashboard() -> None:
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    written = json.loads(JSONEncoder().encode(read))
    for ours, theirs in zip(DASHBOARD["panels"], written["panels"], strict=True):
        assert ours == keep_common(theirs, ours)  # no field that Grafana does not know


def keep_common(theirs: Any, ours: Any) -> Any:
    """Keep the part of `theirs` that `ours` has too: Grafana adds fields with their defaults."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return {key: keep_common(value, ours[key]) for key, value in theirs.items() if key in ours}
    if isinstance(theirs, list) and isinstance(ours, list):
        return [keep_common(value, mine) for value, mine in zip(theirs, ours, strict=True)]
    return theirs


def test_every_panel_has_a_description_and_a_unit() -> None:
    for panel in list_panels():
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
    ids = Counter(panel["id"] for panel in DASHBOARD["panels"])
    assert max(ids.values()) == 1


def test_panels_do_not_overlap() -> None:
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart_x or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert one["x"] + one["w"] <= 24


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dashboards.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    mounted = {volume["target"]: volume["source"] for volume in compose["grafana"]["volumes"]}
    assert mounted[provider["options"]["path"]] == "./monitoring/grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./monitoring/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090" and source["type"] == "prometheus"
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    names = {name for job in scraped for found in job["dns_sd_configs"] for name in found["names"]}
    assert names <= compose.keys()
