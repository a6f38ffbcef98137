"""What dashboards are made of: panels that say in words what is normal, in rows that answer one question each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 39
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "matrix-outbox"
# Where RUNBOOKS.md is read, at your place: a variable of each dashboard.
RUNBOOKS = "${runbooks}"
PROCESSES = 'up{job=~"matrix-outbox-(api|worker)"}'

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


def steps(*bounds: tuple[float, str], start: str = GREEN) -> list[Json]:
    """Colours by value: the first holds below the first bound."""
    return [{"color": start, "value": None}, *({"color": color, "value": bound} for bound, color in bounds)]


# Anything at all is worth a look.
NONE_IS_WELL = steps((1, RED))
FEW_ARE_WELL = steps((1, YELLOW), (10, RED))
ONE_IS_WELL = steps((1, GREEN), start=RED)
NO_LIMIT = steps(start=BLUE)


@dataclass(frozen=True)
class Panel:
    """One picture. `queries`: legend to query; `normal` says in words what is to be seen on a good day."""

    kind: str
    title: str
    normal: str
    queries: dict[str, str]
    unit: str = "short"
    thresholds: list[Json] = field(default_factory=lambda: NO_LIMIT)
    width: int = 12
    height: int = 8
    stacked: bool = False
    words: dict[str, tuple[str, str]] = field(default_factory=dict)
    runbook: str = ""
    decimals: int | None = None

    def to_json(self, number: int, x: int, y: int) -> Json:
        defaults: Json = {
            "unit": self.unit,
            "thresholds": {"mode": "absolute", "steps": self.thresholds},
            "color": {"mode": "thresholds" if self.kind != "timeseries" else "palette-classic"},
            "mappings": self._mappings(),
            "custom": self._custom(),
        }
        if self.decimals is not None:
            defaults["decimals"] = self.decimals
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.normal,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": self._options(),
            "links": [_runbook(self.runbook)] if self.runbook else [],
            "targets": [self._target(place, *query) for place, query in enumerate(self.queries.items())],
        }

    def _target(self, place: int, legend: str, expression: str) -> Json:
        once = self.kind in ("stat", "table", "bargauge")
        target: Json = {
            "refId": chr(ord("A") + place),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "instant": once,
            "range": not once,
        }
        return {**target, "format": "table"} if self.kind == "table" else target

    def _mappings(self) -> list[Json]:
        if not self.words:
            return []
        options = {
            value: {"text": text, "color": color, "index": index}
            for index, (value, (text, color)) in enumerate(self.words.items())
        }
        return [{"type": "value", "options": options}]

    def _custom(self) -> Json:
        if self.kind != "timeseries":
            return {}
        limited = len(self.thresholds) > 1
        return {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if self.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line+area" if limited else "off"},
            "axisSoftMin": 0,
        }

    def _options(self) -> Json:
        if self.kind == "timeseries":
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        calculation = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        if self.kind == "bargauge":
            return {"reduceOptions": calculation, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True}
        named = len(self.queries) > 1 or any("{{" in legend for legend in self.queries)
        return {
            "reduceOptions": calculation,
            "orientation": "auto",
            "colorMode": "background",
            "graphMode": "none",
            "justifyMode": "center",
            "textMode": "value_and_name" if named else "value",
        }


def stat(title: str, normal: str, query: str | dict[str, str], **more: Any) -> Panel:
    """One figure, coloured by what it means."""
    queries = {title: query} if isinstance(query, str) else query
    return Panel("stat", title, normal, queries, **{"width": 4, "height": 4, "thresholds": NONE_IS_WELL, **more})


def graph(title: str, normal: str, queries: dict[str, str], **more: Any) -> Panel:
    """Lines over time."""
    return Panel("timeseries", title, normal, queries, **more)


def bars(title: str, normal: str, queries: dict[str, str], **more: Any) -> Panel:
    """The figures of one moment, side by side."""
    return Panel("bargauge", title, normal, queries, **more)


@dataclass(frozen=True)
class Row:
    """A question, and the panels that answer it."""

    question: str
    panels: list[Panel]


@dataclass(frozen=True)
class Dashboard:
    name: str
    title: str
    about: str
    rows: list[Row]
    # The section of the runbooks that goes with it.
    job: str

    @property
    def uid(self) -> str:
        return uid(self.name)

    def to_json(self, others: list[Dashboard]) -> Json:
        return {
            "uid": self.uid,
            "title": f"matrix-outbox: {self.title}",
            "description": self.about,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "timezone": "browser",
            "time": {"from": "now-3h", "to": "now"},
            "refresh": "30s",
            "timepicker": {},
            "fiscalYearStartMonth": 0,
            "weekStart": "",
            "liveNow": False,
            "templating": {"list": self._variables()},
            "annotations": {"list": [_alerts()]},
            "links": [*(_link(other) for other in others if other.name != self.name), _runbooks()],
            "panels": self._panels(),
        }

    def _panels(self) -> list[Json]:
        panels: list[Json] = []
        y = 0
        for row in self.rows:
            grid = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
            panels.append(
                {"id": len(panels) + 1, "type": "row", "title": row.question, "collapsed": False, "gridPos": grid, "panels": []}
            )
            y += 1
            x = height = 0
            for panel in row.panels:
                if x + panel.width > COLUMNS:
                    y, x, height = y + height, 0, 0
                panels.append(panel.to_json(len(panels) + 1, x, y))
                x += panel.width
                height = max(height, panel.height)
            y += height
        return panels

    def _variables(self) -> list[Json]:
        instances = f'label_values(up{{job=~"{self.job}"}}, instance)'
        return [
            {
                "name": "datasource",
                "label": "Prometheus",
                "type": "datasource",
                "query": "prometheus",
                "refresh": 1,
                "regex": "",
                "hide": 0,
                "multi": False,
                "includeAll": False,
                "options": [],
                "current": {},
            },
            {
                "name": "instance",
                "label": "Process",
                "type": "query",
                "datasource": DATASOURCE,
                "definition": instances,
                "query": {"query": instances, "refId": "instances"},
                "refresh": 2,
                "regex": "",
                "sort": 1,
                "hide": 0,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "options": [],
                "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            },
            {
                "name": "runbooks",
                "label": "Where RUNBOOKS.md is read",
                "type": "textbox",
                "query": "dashboards/RUNBOOKS.md",
                "hide": 0,
                "options": [],
                "current": {"text": "dashboards/RUNBOOKS.md", "value": "dashboards/RUNBOOKS.md"},
            },
        ]


def uid(name: str) -> str:
    return f"matrix-outbox-{name}"


def _link(other: Dashboard) -> Json:
    return {
        "type": "link",
        "title": other.title,
        "tooltip": other.about,
        "icon": "dashboard",
        "url": f"/d/{other.uid}",
        "keepTime": True,
        "includeVars": True,
        "targetBlank": False,
        "asDropdown": False,
        "tags": [],
    }


def _runbooks() -> Json:
    return {
        "type": "link",
        "title": "Runbooks",
        "tooltip": "What each alert means, and what to do",
        "icon": "doc",
        "url": RUNBOOKS,
        "keepTime": False,
        "includeVars": False,
        "targetBlank": True,
        "asDropdown": False,
        "tags": [],
    }


def _runbook(alert: str) -> Json:
    return {"title": f"{alert}: what to do", "url": f"{RUNBOOKS}#{alert.lower()}", "targetBlank": True}


def _alerts() -> Json:
    """When which alert fired, drawn into every picture."""
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": RED,
        "expr": 'ALERTS{alertstate="firing", severity=~"page|ticket"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}} {{instance}}",
        "step": "60s",
    }
