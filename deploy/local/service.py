"""A server of the local stack: what Postgres, Synapse, api and worker have in common.

Each keeps a record (`<name>.json`: port, process, secrets) and a log (`<name>.log`) in its directory, so that a later
call finds, stops or restarts it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from processes import Account, ProcessId, StartFailed, free_port, spawn

# How long a server that comes back tries for its own port: its predecessor, or a stranger, may hold it for a moment.
SAME_PORT_SECONDS = 10.0
NEW_PORT_ATTEMPTS = 5


class Service:
    """Start is in two steps, `launch` and `await_ready`, so that several can come up side by side."""

    name = "service"
    title = "Service"
    start_seconds = 60.0
    stop_signal = signal.SIGTERM
    stop_seconds = 15.0
    # What the kernel sends a tied process when we die.
    orphan_signal = signal.SIGKILL
    # Log lines of a start that failed for what may pass, or for a port that is taken.
    retry_signs: tuple[str, ...] = ("address already in use", "address in use")
    account: Account | None = None

    def __init__(self, directory: Path, *, tied: bool = False, keep_port: bool = False) -> None:
        """`tied`: ends when this program ends. `keep_port`: never move away from a recorded port."""
        self.directory = directory
        self.tied = tied
        self.keep_port = keep_port
        self.record: dict[str, Any] = {}
        self.launched = False
        self._log_start = 0
        if self._record_path.exists():
            self.record = json.loads(self._record_path.read_text())

    # What each kind of server says about itself.

    def prepare(self) -> None:
        """Makes what must exist before the first start."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def ready(self) -> bool:
        raise NotImplementedError

    # The record.

    @property
    def _record_path(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def port(self) -> int:
        return int(self.record["port"])

    @property
    def process(self) -> ProcessId | None:
        recorded = self.record.get("process")
        return ProcessId(**recorded) if recorded else None

    @property
    def pid(self) -> int:
        process = self.process
        return process.pid if process else 0

    def running(self) -> bool:
        process = self.process
        return process is not None and process.alive()

    def save(self) -> None:
        write_private(self._record_path, json.dumps(self.record, indent=2) + "\n")

    def log_tail(self) -> str:
        """What this start has logged so far."""
        if not self.log.exists():
            return ""
        with open(self.log, "rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    # Start and stop.

    def launch(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        restart = "port" in self.record
        self.record.setdefault("port", free_port())
        self._returns_to_port = restart
        self.prepare()
        self._spawn()

    def _spawn(self) -> None:
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self.launched = True
        process = spawn(
            self.command(),
            self.log,
            environment=self.environment(),
            user=self.account,
            tied=self.orphan_signal if self.tied else None,
        )
        self.record["process"] = {"pid": process.pid, "started": process.started}
        self.save()

    def await_ready(self) -> None:
        started = time.monotonic()
        moves = 0
        while not self.ready():
            waited = time.monotonic() - started
            if not self.running():
                if not self._worth_a_retry():
                    raise StartFailed(self.title, "it ended while it was starting", self.log_tail())
                if self._returns_to_port and waited < SAME_PORT_SECONDS:
                    time.sleep(0.3)
                elif self._returns_to_port and self.keep_port:
                    raise StartFailed(self.title, f"it cannot come back to port {self.port}", self.log_tail())
                elif moves < NEW_PORT_ATTEMPTS:
                    moves += 1
                    self.record["port"] = free_port()
                else:
                    raise StartFailed(self.title, "it found no free port", self.log_tail())
                self.prepare()
                self._spawn()
            elif waited > self.start_seconds:
                raise StartFailed(self.title, f"not ready after {self.start_seconds:.0f} s", self.log_tail())
            time.sleep(0.05)

    def _worth_a_retry(self) -> bool:
        said = self.log_tail().lower()
        return any(sign in said for sign in self.retry_signs)

    def stop(self, *, at_once: bool = False) -> bool:
        """Stops the recorded process, if it still is the one that we started. Says whether there was one."""
        process = self.process
        if process is None:
            return False
        was_running = process.alive()
        if was_running:
            process.stop(self.orphan_signal if at_once else self.stop_signal, self.stop_seconds)
        self.record.pop("process", None)
        if self.directory.exists():
            self.save()
        return was_running


def write_private(path: Path, text: str) -> None:
    """Writes a file that may hold secrets; readers see the old text or the new, never half of it."""
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
    beside.replace(path)
