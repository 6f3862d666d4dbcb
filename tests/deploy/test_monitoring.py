"""The rules, the alerts and the dashboard, as files: what Prometheus's and Grafana's own tools say of them."""

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


def all_rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Those that show data."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


ALERTS = {rule["alert"]: rule for rule in all_rules() if "alert" in rule}


def promtool(*arguments: str | Path) -> str:
    """What it says of something that is right."""
    binary = program("promtool", "apt-get install prometheus")
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid() -> None:
    told = promtool("check", "config", MONITORING / "prometheus.yml")
    assert f"SUCCESS: {len(RULES)} rule files found" in told


def test_every_alert_fires_where_it_must_and_nowhere_else() -> None:
    told = promtool("test", "rules", *UNIT_TESTS)
    assert told.count("SUCCESS") == len(UNIT_TESTS)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [
        (check["alertname"], bool(check["exp_alerts"]))
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test.get("alert_rule_test", ())
    ]
    assert {name for name, fires in cases if fires} == set(ALERTS)
    assert {name for name, fires in cases if not fires} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_how_bad_it_is_and_leads_to_its_section(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert {"summary", "description", "runbook_url"} <= rule["annotations"].keys()
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert ROOT / page == RUNBOOK
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    told = re.findall(r"^#+ (AslTriton\w+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert told == list(ALERTS)


def test_command_of_the_runbook_makes_the_operators_rules(tmp_path: Path) -> None:
    """For the Prometheus operator the same groups go into an object of its own."""
    (command,) = re.findall(r"^for rules in .*?^done$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    script = command.replace("kubectl apply -f -", f'tee {tmp_path}/$(basename "$rules")')
    subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, capture_output=True)
    for path in RULES:
        made = yaml.safe_load((tmp_path / path.name).read_text())
        assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
        assert made["metadata"] == {"name": f"asl-triton-{path.stem}", "namespace": "asl-triton"}
        assert made["spec"] == yaml.safe_load(path.read_text())


def test_dashboard_is_one_that_grafana_reads() -> None:
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    written = json.loads(JSONEncoder().encode(read))
    for ours, theirs in zip(DASHBOARD["panels"], written["panels"], strict=True):
        assert ours == only(theirs, ours)  # nothing in it that they do not know


def only(theirs: Any, ours: Any) -> Any:
    """Of what they wrote, what we have too: they add what has a default."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return {key: only(value, ours[key]) for key, value in theirs.items() if key in ours}
    if isinstance(theirs, list) and isinstance(ours, list):
        return [only(value, mine) for value, mine in zip(theirs, ours, strict=True)]
    return theirs


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in panels():
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
    ids = Counter(panel["id"] for panel in DASHBOARD["panels"])
    assert max(ids.values()) == 1


def test_panels_do_not_cover_each_other() -> None:
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
