"""The project's own programs, api and worker, as servers of the local stack."""

from __future__ import annotations

import base64
import os
import secrets
import shlex
import subprocess
from pathlib import Path

from matrix import MatrixClient, new_secret, register
from postgres import Postgres
from processes import StartFailed
from service import Service
from synapse import SERVER_NAME, Synapse
from web import answers

REPOSITORY = Path(__file__).resolve().parents[2]
DATABASE = "matrix_outbox"
SERVICE_LOCALPART = "nova-service"
SERVICE_USER = f"@{SERVICE_LOCALPART}:{SERVER_NAME}"
SERVICE_DEVICE = "NOVAOUTBOX"


def binary(name: str) -> Path:
    target = Path(os.environ.get("CARGO_TARGET_DIR") or "target")
    path = REPOSITORY / target / "debug" / name
    if not path.exists():
        raise StartFailed(name, f'{path} does not exist; "make build" builds it')
    return path


class Program(Service):
    """api or worker. The settings decide what it talks to; they are complete but for the address it listens on."""

    start_seconds = 60.0
    listen_variable = ""

    def __init__(self, directory: Path, *, tied: bool = False) -> None:
        super().__init__(directory, tied=tied)
        self.settings: dict[str, str] = dict(self.record.get("settings", {}))

    def configure(self, settings: dict[str, str]) -> None:
        """Takes the settings; a process that runs with others is stopped."""
        if settings != self.settings:
            self.stop()
        self.settings = settings
        self.record["settings"] = settings

    def command(self) -> list[str]:
        return [str(binary(self.name))]

    def environment(self) -> dict[str, str]:
        return {
            **self.settings,
            self.listen_variable: f"127.0.0.1:{self.port}",
            "LOG_FORMAT": "json",
            "RUST_LOG": os.environ.get("RUST_LOG") or "info",
        }

    def command_line(self) -> str:
        """One line for `exec`: the same program once more, on a port of its own choice."""
        environment = {**self.settings, self.listen_variable: "127.0.0.1:0", "LOG_FORMAT": "json", "RUST_LOG": "info"}
        return shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *self.command()])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        return answers(f"{self.url}/health/ready") and self.running()


class Api(Program):
    name = "api"
    title = "api"
    listen_variable = "API_LISTEN"


class Worker(Program):
    name = "worker"
    title = "worker"
    listen_variable = "WORKER_LISTEN"
    # It finishes what it has begun to send.
    stop_seconds = 30.0


def new_secrets() -> dict[str, str]:
    return {
        "JWT_SECRET": new_secret(),
        "CONTENT_KEYS": f"local:{base64.b64encode(secrets.token_bytes(32)).decode()}",
    }


def service_account(synapse: Synapse) -> str:
    """Makes the service's account where it does not exist, and logs its device in. Returns the access token."""
    password = register(synapse.url, synapse.registration_secret, SERVICE_LOCALPART)
    return MatrixClient(synapse.url, SERVICE_LOCALPART, password, SERVICE_DEVICE).access_token


def api_settings(postgres: Postgres, own: dict[str, str]) -> dict[str, str]:
    return {
        "DATABASE_URL": postgres.url(DATABASE),
        "CONTENT_KEYS": own["CONTENT_KEYS"],
        "JWT_SECRET": own["JWT_SECRET"],
        "MATRIX_ENABLED": "true",
        "MATRIX_SERVICE_USER": SERVICE_USER,
    }


def worker_settings(postgres: Postgres, synapse: Synapse, own: dict[str, str], access_token: str) -> dict[str, str]:
    return {
        "DATABASE_URL": postgres.url(DATABASE),
        "CONTENT_KEYS": own["CONTENT_KEYS"],
        "MATRIX_ENABLED": "true",
        "MATRIX_HOMESERVER_URL": synapse.url,
        "MATRIX_SERVICE_USER": SERVICE_USER,
        "MATRIX_ACCESS_TOKEN": access_token,
        "MATRIX_DEVICE_NAME": "matrix-outbox-local",
        "MATRIX_DEVICE_ID": SERVICE_DEVICE,
    }


def migrate(database_url: str, *, new_database: bool) -> None:
    done = _outboxctl(["migrate"], {"DATABASE_URL": database_url})
    if done.returncode != 0:
        reason = '"outboxctl migrate" failed'
        if not new_database:
            reason += '. If a migration has changed since this database was made, "make clean-local" starts afresh'
        raise StartFailed("Migrations", reason, done.stdout + done.stderr)


def mint_token(jwt_secret: str, user_id: str, scope: str | None = None) -> str:
    wanted = ["--scope", scope] if scope else []
    done = _outboxctl(["token", "--user", user_id, *wanted], {"JWT_SECRET": jwt_secret})
    if done.returncode != 0:
        raise StartFailed("Token", '"outboxctl token" failed', done.stdout + done.stderr)
    return done.stdout.strip()


def _outboxctl(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(binary("outboxctl")), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
