#!/usr/bin/env python3
"""Checks `dashboards/`: rules, their tests, runbooks, and Grafana dashboards. Prints what is wrong; exit code 1 then.

Grafana itself is not asked; what its dashboards have to hold is written down here, as it exports them (schema 39, of
Grafana 10 and 11).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True

from processes import StartFailed  # noqa: E402
from prometheus import promtool  # noqa: E402
from promql import Uses, uses  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = REPOSITORY / "dashboards"
RULES = HERE / "rules.yml"
RUNBOOKS = HERE / "RUNBOOKS.md"
LIST = REPOSITORY / "worker" / "OPERATING.md"
SEVERITIES = {"page", "ticket"}
RUNBOOK_PATH = "dashboards/RUNBOOKS.md"
# What Prometheus adds by itself.
ITS_OWN_METRICS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
ITS_OWN_LABELS = {"instance", "job"}
SCHEMA_VERSION = 39
PANELS = {"row", "stat", "timeseries", "bargauge", "table"}
UNITS = {"short", "s", "ops", "reqps", "percentunit", "bytes"}
COLUMNS = 24
_SUFFIXES = ("_bucket", "_sum", "_count")
_COMMAND = re.compile(r"`(outboxctl [a-z]+)")
_SECTION = re.compile(r"^## (\S.*)$", re.MULTILINE)
_RULE = re.compile(r"^      - (alert|record): (\S+)\n(.*?)(?=^      - |^  - |\Z)", re.MULTILINE | re.DOTALL)
# What a section of the runbooks says, in this order.
PARTS = ("**What it means.**", "**What users see.**", "**How to confirm.**", "**What to do.**")


@dataclass(frozen=True)
class Rule:
    kind: str
    name: str
    text: str

    @property
    def expression(self) -> str:
        block = re.search(r"^        expr: (?:\|\n((?:          .*\n|\n)+)|(.*)$)", self.text, re.MULTILINE)
        return (block[1] or block[2]) if block else ""

    def value(self, name: str) -> str:
        found = re.search(rf'^ +{name}: "?(.*?)"?$', self.text, re.MULTILINE)
        return found[1] if found else ""


def main() -> int:
    try:
        faults = [*_rules(), *_runbooks(), *_boards()]
    except StartFailed as failure:
        faults = [failure.report()]
    for fault in faults:
        print(f"dashboards: {fault}", file=sys.stderr)
    return 1 if faults else 0


def metrics() -> dict[str, set[str]]:
    """Every metric and its labels, by the table that is made from the code."""
    found: dict[str, set[str]] = {}
    row = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \|(.*?)\|", re.MULTILINE)
    for name, kind, labels in row.findall(LIST.read_text()):
        # A label stands first, or after a semicolon; its values follow a colon.
        named = {part.partition(":")[0].strip().strip("`") for part in re.split(r"[;]", labels) if part.strip()}
        named = {label.strip("` ") for part in named for label in part.split(",")}
        if kind == "histogram":
            found |= {name + suffix: named | ({"le"} if suffix == "_bucket" else set()) for suffix in _SUFFIXES}
        else:
            found[name] = named
    return found


def rules() -> list[Rule]:
    return [Rule(*found) for found in _RULE.findall(RULES.read_text())]


def alerts() -> list[Rule]:
    return [rule for rule in rules() if rule.kind == "alert"]


def queries(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each panel's title, and a query of it."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def substituted(query: str, instance: str = ".*", interval: str = "5m", range_: str = "1h") -> str:
    """The query as Grafana asks it."""
    for name, value in (("$instance", instance), ("$__rate_interval", interval), ("$__range", range_)):
        query = query.replace(name, value)
    return query


def board_files() -> list[Path]:
    return sorted(HERE.glob("*.json"))


def _rules() -> Iterator[str]:
    for what in (["check", "rules", str(RULES)], ["test", "rules", str(HERE / "rules.test.yml")]):
        if said := promtool(*what):
            yield f"promtool {' '.join(what[:2])}: {said}"
    if said := promtool("check", "config", "--syntax-only", str(HERE / "prometheus.yml")):
        yield f"promtool check config: {said}"
    records = {rule.name for rule in rules() if rule.kind == "record"}
    tested = (HERE / "rules.test.yml").read_text()
    for rule in rules():
        yield from (f"{rule.name}: {fault}" for fault in _unknown(uses(rule.expression), records))
    for alert in alerts():
        if alert.value("severity") not in SEVERITIES:
            yield f"{alert.name} has no severity of {', '.join(sorted(SEVERITIES))}"
        for name in ("summary", "description"):
            if not alert.value(name):
                yield f"{alert.name} has no {name}"
        if "$value" not in alert.value("description") and not re.search(r"\d|minute", alert.value("description")):
            yield f"the description of {alert.name} has no figure"
        wanted = f"{RUNBOOK_PATH}#{alert.name.lower()}"
        if alert.value("runbook_url") != wanted:
            yield f"{alert.name} leads to {alert.value('runbook_url') or 'no runbook'}, not to {wanted}"
        played = re.search(rf'^  - name: "{alert.name}: .*?(?=^  - name: |\Z)', tested, re.MULTILINE | re.DOTALL)
        if not played:
            yield f"{alert.name} has no test"
            continue
        # An evaluation without expectations is one at which it must not fire.
        times = re.split(r"^      - eval_time: ", played[0].partition("alert_rule_test:")[2], flags=re.MULTILINE)[1:]
        fires = ["exp_alerts" in time for time in times if f"alertname: {alert.name}\n" in time]
        if fires[:1] != [False] or True not in fires or fires[-1:] != [False]:
            yield f"the test of {alert.name} does not show it quiet, firing, and quiet again"


def _runbooks() -> Iterator[str]:
    sections = _SECTION.findall(RUNBOOKS.read_text())
    named = [alert.name for alert in alerts()]
    yield from (f"RUNBOOKS.md has no section {name}" for name in named if name not in sections)
    yield from (f"RUNBOOKS.md has a section {name}, but there is no such alert" for name in sections if name not in named)
    yield from (f"RUNBOOKS.md has the section {name} twice" for name in sections if sections.count(name) > 1)
    unknown = set(_COMMAND.findall(RUNBOOKS.read_text())) - set(_COMMAND.findall(LIST.read_text()))
    yield from (f"RUNBOOKS.md names {command}, which OPERATING.md does not know" for command in sorted(unknown))
    for section in re.split(r"^## ", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        if [part for part in PARTS if part in body] != list(PARTS):
            yield f"the section {name} of RUNBOOKS.md lacks one of {' '.join(PARTS)}"
        if "outboxctl" not in body:
            yield f"the section {name} of RUNBOOKS.md names no command of outboxctl"


def _boards() -> Iterator[str]:
    made = subprocess.run([sys.executable, str(HERE / "build.py"), "--check"], capture_output=True, text=True)
    if made.returncode != 0:
        yield made.stderr.strip()
    boards = {path: json.loads(path.read_text()) for path in board_files()}
    if not boards:
        yield "there are no dashboards"
    uids = [board.get("uid") for board in boards.values()]
    yield from (f"the uid {uid} is there twice" for uid in sorted(set(uids)) if uids.count(uid) > 1)
    for path, board in boards.items():
        yield from (f"{path.name}: {fault}" for fault in _board(board, set(uids)))
    yield from _not_promql(boards)


def _board(board: dict[str, Any], uids: set[str]) -> Iterator[str]:
    kinds = {
        "uid": str, "title": str, "description": str, "tags": list, "schemaVersion": int, "version": int, "editable": bool,
        "time": dict, "refresh": str, "templating": dict, "annotations": dict, "links": list, "panels": list,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(board.get(name), kind) or board[name] in ("", []):
            yield f"{name} is missing, empty, or no {kind.__name__}"
            return
    if board["schemaVersion"] != SCHEMA_VERSION:
        yield f"it is of schema {board['schemaVersion']}, not {SCHEMA_VERSION}"
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", board["uid"]):
        yield f"{board['uid']} is no uid"
    if set(board["time"]) != {"from", "to"}:
        yield "its time has no beginning or no end"
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    for name in ("datasource", "instance"):
        if name not in variables:
            yield f"it has no variable {name}"
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board["panels"]) + json.dumps(board["links"])))
    yield from (f"there is no variable {name}" for name in sorted(used - set(variables)))
    linked = {link["url"].removeprefix("/d/") for link in board["links"] if link["url"].startswith("/d/")}
    yield from (f"it does not link to {uid}" for uid in sorted(uids - linked - {board["uid"]}))
    yield from (f"it links to {uid}, which is not there" for uid in sorted(linked - uids))
    ids = [panel.get("id") for panel in board["panels"]]
    if len(set(ids)) != len(ids) or not all(isinstance(number, int) for number in ids):
        yield "its panels have no ids of their own"
    taken: dict[tuple[int, int], str] = {}
    known = {alert.name.lower() for alert in alerts()}
    for panel in board["panels"]:
        title = panel.get("title") or "a panel without title"
        yield from (f'"{title}": {fault}' for fault in _panel(panel, taken, known))


def _panel(panel: dict[str, Any], taken: dict[tuple[int, int], str], known: set[str]) -> Iterator[str]:
    if panel.get("type") not in PANELS:
        yield f"Grafana has no {panel.get('type')}, or we do not use it"
        return
    grid = panel.get("gridPos", {})
    if set(grid) != {"x", "y", "w", "h"} or grid["x"] + grid["w"] > COLUMNS or grid["w"] < 1 or grid["h"] < 1:
        yield f"it stands at {grid}"
        return
    for x in range(grid["x"], grid["x"] + grid["w"]):
        for y in range(grid["y"], grid["y"] + grid["h"]):
            if (x, y) in taken:
                yield f'it covers "{taken[x, y]}"'
                return
            taken[x, y] = panel["title"]
    if panel["type"] == "row":
        return
    if panel.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
        yield "it does not take the variable's source of data"
    if not panel.get("description"):
        yield "it does not say what is normal"
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    if defaults.get("unit") not in UNITS:
        yield f"its unit is {defaults.get('unit')}"
    steps = [step["value"] for step in defaults.get("thresholds", {}).get("steps", [])]
    if steps[:1] != [None] or steps[1:] != sorted(steps[1:]):
        yield "its thresholds do not begin with none, and rise"
    for link in panel.get("links", []):
        anchor = link["url"].partition("#")[2]
        if anchor not in known:
            yield f"no runbook stands at #{anchor}"
    targets = panel.get("targets", [])
    references = [target.get("refId") for target in targets]
    if not targets or len(set(references)) != len(references):
        yield "it asks nothing, or two queries have one refId"
    for target in targets:
        yield from (f"{fault}" for fault in _unknown(uses(substituted(target["expr"])), set()))


def _unknown(used: Uses, records: set[str]) -> Iterator[str]:
    """What no program of ours reports."""
    known = {**metrics(), **ITS_OWN_METRICS, **{record: None for record in records}}
    labels: set[str] = set()
    for name, selected in used.metrics.items():
        if name not in known:
            yield f"there is no metric {name}"
            return
        if known[name] is None:
            return
        has = known[name] | ITS_OWN_LABELS
        labels |= has
        yield from (f"{name} has no label {label}" for label in sorted(selected - has))
    yield from (f"nothing in it has the label {label}" for label in sorted(used.grouped_by - labels))


def _not_promql(boards: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Whether promtool takes every query: each becomes a record."""
    asked = [(f"{path.stem}: {title}", query) for path, board in boards.items() for title, query in queries(board)]
    recorded = [{"record": f"query_{number}", "expr": substituted(query)} for number, (_, query) in enumerate(asked)]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "queries.yml"
        # JSON is YAML.
        file.write_text(json.dumps({"groups": [{"name": "queries", "rules": recorded}]}))
        if said := promtool("check", "rules", str(file)):
            named = re.sub(r'"query_(\d+)"', lambda found: asked[int(found[1])][0], said)
            yield f"promtool does not take a query: {named}"


if __name__ == "__main__":
    sys.exit(main())
