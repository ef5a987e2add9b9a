"""deploy/alerts.yml: rules as Prometheus reads them, about series that there are, and the same list in docs/monitoring.md.

promtool checks more, and is no Python package: docs/monitoring.md has its command.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from sandboxrun.cli.commands import COMMANDS
from sandboxrun.describe.metrics import METRICS

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"][0]["rules"]
MONITORING = (ROOT / "docs/monitoring.md").read_text()
SERIES = {
    name: metric
    for metric in METRICS
    for name in {
        "counter": [f"{metric.name}_total"],
        "gauge": [metric.name],
        "histogram": [f"{metric.name}_{end}" for end in ("bucket", "sum", "count")],
    }[metric.kind]
}


def test_there_are_four_and_the_page_names_them() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == 4 and re.findall(r"`(Sandboxrun\w+)`", MONITORING) == names


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_is_one_of_prometheus(rule) -> None:  # type: ignore[no-untyped-def]
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[A-Za-z_]\w*", rule["alert"])
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    assert rule["labels"].keys() == {"severity"}
    assert rule["annotations"].keys() == {"summary", "description"}
    expression = rule["expr"]
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)
    names = set(re.findall(r"\bsandboxrun_\w+", expression))
    assert names <= SERIES.keys()
    # A counter only goes up, so its value says nothing, and its increase does.
    counters = {name for name in names if SERIES[name].kind == "counter"}
    assert counters == {name for name in names if f"increase({name}[" in expression}
    words = set(re.findall(r"\b(?!sandboxrun_)[a-z_]+\b", re.sub(r'\{[^}]*\}|"[^"]*"|\[[^]]*\]', "", expression)))
    assert words <= {"up", "or", "sum", "max", "by", "increase", "instance", "type", "id"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_annotation_shows_labels_that_its_expression_has_and_commands_that_there_are(rule) -> None:  # type: ignore[no-untyped-def]
    text = " ".join(rule["annotations"].values())
    kept = re.findall(r"by \(([^)]*)\)", rule["expr"])
    labels = set(re.findall(r"\$labels\.(\w+)", text))
    assert all(labels <= set(re.findall(r"\w+", names)) for names in kept)
    assert labels <= {"instance", "type", "id"}
    assert set(re.findall(r"sandboxrun ([a-z]+)", text)) <= set(COMMANDS)


def test_the_table_of_metrics_is_the_code() -> None:
    rows = re.findall(r"^\| `(sandboxrun_\w+)(?:\{([^}]*)\})?` \| (\w+) \| (.*) \|$", MONITORING, re.MULTILINE)
    assert [(name, kind, text) for name, _, kind, text in rows] == [
        (
            f"{metric.name}_total" if metric.kind == "counter" else metric.name,
            metric.kind,
            metric.help.removesuffix("."),
        )
        for metric in METRICS
    ]
