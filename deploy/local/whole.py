"""The whole stack, Postgres, Synapse, api and worker: brought up together, kept by `stack up`, taken down in order."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import time
from pathlib import Path

import postgres
from postgres import Postgres
from processes import StartFailed
from programs import (
    DATABASE,
    REPOSITORY,
    SERVICE_USER,
    Api,
    Worker,
    api_settings,
    binary,
    migrate,
    new_secrets,
    service_account,
    worker_settings,
)
from service import Service, write_private
from synapse import SERVER_NAME, Synapse, locked, synapse_python
from web import Refused

LOCAL = REPOSITORY / ".local"
STATE = LOCAL / "stack"
ENV_FILE = LOCAL / "stack.env"


class Stack:
    """Four servers in one directory. `tied`: they end when this program ends."""

    def __init__(self, directory: Path, *, tied: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.tied = tied
        self.postgres = Postgres(directory / "postgres", postgres.DURABLE, tied=tied)
        self.synapse = Synapse(directory / "synapse", LOCAL / "venv" / "bin" / "python", tied=tied)
        self.api = Api(directory / "api", tied=tied)
        self.worker = Worker(directory / "worker", tied=tied)
        self._secrets_path = directory / "secrets.json"
        self.secrets: dict[str, str] = json.loads(self._secrets_path.read_text()) if self._secrets_path.exists() else {}

    @property
    def services(self) -> tuple[Service, ...]:
        """In the order in which they start: each needs those before it."""
        return self.postgres, self.synapse, self.api, self.worker

    def start(self) -> None:
        """Starts what does not run. When a part fails, stops what this call has started."""
        # Known before anything runs, and cheap to say.
        for name in ("api", "worker", "outboxctl"):
            binary(name)
        try:
            synapse_python(LOCAL)
            self.bring_up(self.synapse, self.postgres)
            self.configure()
            self.bring_up(self.api, self.worker)
        except BaseException:
            self._stop(*(service for service in self.services if service.launched))
            raise

    def bring_up(self, *services: Service) -> None:
        missing = [service for service in services if not service.running()]
        started = time.monotonic()
        for service in missing:
            service.launch()
        for service in services:
            service.await_ready()
            if service in missing:
                say(f"{service.title} is up at 127.0.0.1:{service.port} ({time.monotonic() - started:.1f} s)")
            else:
                say(f"{service.title} is already running at 127.0.0.1:{service.port}")

    def configure(self) -> None:
        """The schema, the service's account, and the settings that follow from them."""
        new_database = self.postgres.create_database(DATABASE)
        if not (self.api.running() and self.worker.running()):
            migrate(self.postgres.url(DATABASE), new_database=new_database)
        if not self.secrets:
            self.secrets = new_secrets()
        if "MATRIX_ACCESS_TOKEN" not in self.secrets:
            try:
                self.secrets["MATRIX_ACCESS_TOKEN"] = service_account(self.synapse)
            except (Refused, OSError) as error:
                raise StartFailed("The service's Matrix account", str(error), self.synapse.log_tail()) from error
        write_private(self._secrets_path, json.dumps(self.secrets, indent=2) + "\n")
        token = self.secrets["MATRIX_ACCESS_TOKEN"]
        self.api.configure(api_settings(self.postgres, self.secrets))
        self.worker.configure(worker_settings(self.postgres, self.synapse, self.secrets, token))

    def stop(self, *, at_once: bool = False) -> bool:
        return self._stop(*self.services, at_once=at_once)

    def _stop(self, *services: Service, at_once: bool = False) -> bool:
        """In the order in which nothing misses what it needs. Says whether anything ran."""
        any_ran = False
        for service in reversed(self.services):
            if service in services and service.stop(at_once=at_once):
                any_ran = True
                say(f"{service.title} stopped")
        return any_ran

    def variables(self) -> dict[str, str]:
        return {
            "API_URL": self.api.url,
            "WORKER_METRICS_URL": f"{self.worker.url}/metrics",
            "DATABASE_URL": self.postgres.url(DATABASE),
            "HOMESERVER_URL": self.synapse.url,
            "HOMESERVER_NAME": SERVER_NAME,
            "HOMESERVER_REGISTRATION_SECRET": self.synapse.registration_secret,
            "MATRIX_SERVICE_USER": SERVICE_USER,
            "MATRIX_ACCESS_TOKEN": self.secrets["MATRIX_ACCESS_TOKEN"],
            "JWT_SECRET": self.secrets["JWT_SECRET"],
            "API_CMD": self.api.command_line(),
            "WORKER_CMD": self.worker.command_line(),
            "API_PID": str(self.api.pid),
            "WORKER_PID": str(self.worker.pid),
            "SYNAPSE_PID": str(self.synapse.pid),
            "POSTGRES_PID": str(self.postgres.pid),
        }


def up() -> None:
    LOCAL.mkdir(exist_ok=True)
    with locked(LOCAL / "stack.lock"):
        stack = Stack(STATE, tied=False)
        stack.start()
        lines = (f"{name}={shlex.quote(value)}\n" for name, value in stack.variables().items())
        write_private(ENV_FILE, "".join(lines))
    say(f'Addresses, secrets and commands: {_shown(ENV_FILE)}. Logs: {_shown(STATE)}/*/*.log. "make down" stops it.')


def down() -> None:
    if not STATE.exists():
        say("Nothing is running.")
        return
    with locked(LOCAL / "stack.lock"):
        if not Stack(STATE, tied=False).stop():
            say("Nothing is running.")
        ENV_FILE.unlink(missing_ok=True)


def clean() -> None:
    """Stops the stack and forgets its data."""
    down()
    if STATE.exists():
        Stack(STATE, tied=False).postgres.remove_data()
        shutil.rmtree(STATE)


def say(line: str) -> None:
    # Whoever reads may leave early ("| head"); the servers must be started and stopped as well without a reader.
    with contextlib.suppress(BrokenPipeError):
        print(f"   {line}", flush=True)


def _shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))
