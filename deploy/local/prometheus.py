"""A Prometheus of one's own, on 127.0.0.1 only, and promtool, which checks what is meant for one."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from functools import cache
from pathlib import Path
from typing import Any

from packages import find_program, install_quietly, installs
from processes import StartFailed
from service import Service
from web import Json, answers, call

PACKAGE = "prometheus"
INSTALL_HINT = '"{}" was not found. Install it (package "prometheus"), or put it on PATH'


class Prometheus(Service):
    """Scrapes and evaluates once a second. `targets`: job to addresses; `rules`: the files that it loads."""

    name = "prometheus"
    title = "Prometheus"
    start_seconds = 30.0

    def __init__(self, directory: Path, *, targets: dict[str, list[str]], rules: list[Path], tied: bool = False) -> None:
        super().__init__(directory, tied=tied)
        self.targets = targets
        self.rules = rules

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _config(self) -> Path:
        return self.directory / "prometheus.yml"

    def prepare(self) -> None:
        jobs = [{"job_name": job, "static_configs": [{"targets": targets}]} for job, targets in self.targets.items()]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules) for rules in self.rules],
            "scrape_configs": jobs,
        }
        # JSON is YAML.
        self._config.write_text(json.dumps(config, indent=2) + "\n")

    def command(self) -> list[str]:
        return [
            str(program("prometheus")),
            f"--config.file={self._config}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            "--storage.tsdb.retention.time=1d",
            "--log.level=warn",
        ]

    def ready(self) -> bool:
        return answers(f"{self.url}/-/ready") and self.running()

    def query(self, expression: str) -> list[Json]:
        """The series that it yields now, each with `metric` and `value`."""
        return list(self._ask("query", query=expression)["result"])

    def metrics(self) -> set[str]:
        """The names of all that it has stored."""
        return set(call("GET", f"{self.url}/api/v1/label/__name__/values")["data"])

    def firing(self) -> set[str]:
        """The alerts that fire, by name."""
        alerts = self._ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def rule_faults(self) -> list[str]:
        """What its rules met while they were evaluated."""
        groups = self._ask("rules")["groups"]
        return [f"{rule['name']}: {rule['lastError']}" for group in groups for rule in group["rules"] if rule.get("lastError")]

    def _ask(self, what: str, **query: str) -> dict[str, Any]:
        answer = call("GET", f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(query)}")
        return dict(answer["data"])


@cache
def program(name: str) -> Path:
    """`prometheus` or `promtool`. Installs the package where it is missing and that is possible."""
    found = find_program(name)
    if found is None and installs():
        install_quietly(PACKAGE)
        found = find_program(name)
    if found is None:
        raise StartFailed("Prometheus", INSTALL_HINT.format(name))
    return found


def promtool(*arguments: str, given: str | None = None) -> str | None:
    """Runs promtool; returns what it says when it is not content."""
    done = subprocess.run(
        [str(program("promtool")), *arguments],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return None if done.returncode == 0 else done.stdout
