"""A Synapse of one's own: SQLite, no federation, rate limits lifted, on 127.0.0.1 only."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matrix import new_secret
from postgres import apt_install
from processes import StartFailed
from service import Service, write_private
from web import answers

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
SERVER_NAME = "nova.test"

_NO_LIMIT = {"per_second": 1_000_000, "burst_count": 1_000_000}
LIFTED_RATE_LIMITS: dict[str, Any] = {
    "rc_message": _NO_LIMIT,
    "rc_registration": _NO_LIMIT,
    "rc_login": {"address": _NO_LIMIT, "account": _NO_LIMIT, "failed_attempts": _NO_LIMIT},
    "rc_joins": {"local": _NO_LIMIT, "remote": _NO_LIMIT},
    "rc_joins_per_room": _NO_LIMIT,
    "rc_invites": {"per_room": _NO_LIMIT, "per_user": _NO_LIMIT, "per_issuer": _NO_LIMIT},
    "rc_admin_redaction": _NO_LIMIT,
    "rc_room_creation": _NO_LIMIT,
    "rc_media_create": _NO_LIMIT,
    "rc_profile": _NO_LIMIT,
}


class Synapse(Service):
    name = "synapse"
    title = "Synapse"
    start_seconds = 120.0

    def __init__(
        self,
        directory: Path,
        python: Path,
        *,
        default_rate_limits: bool = False,
        tied: bool = False,
        keep_port: bool = False,
    ) -> None:
        super().__init__(directory, tied=tied, keep_port=keep_port)
        self.python = python
        self.default_rate_limits = default_rate_limits
        # What else its configuration says.
        self.more: dict[str, Any] = {}
        # And its environment.
        self.variables: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def registration_secret(self) -> str:
        return str(self.record["registration_secret"])

    @property
    def _config(self) -> Path:
        return self.directory / "homeserver.yaml"

    def prepare(self) -> None:
        self.record.setdefault("registration_secret", new_secret())
        key = self.directory / "signing.key"
        if not key.exists():
            seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
            write_private(key, f"ed25519 a_{secrets.token_hex(2)} {seed}\n")
        # JSON is YAML.
        write_private(self._config, json.dumps(self._settings(), indent=2) + "\n")
        write_private(self.directory / "logging.yaml", json.dumps(_LOGGING, indent=2) + "\n")

    def _settings(self) -> dict[str, Any]:
        place = self.directory
        listener = {
            "type": "http",
            "port": self.port,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["client"]}],
        }
        return {
            "server_name": SERVER_NAME,
            "pid_file": str(place / "synapse.pid"),
            "report_stats": False,
            "enable_registration": False,
            "suppress_key_server_warning": True,
            "trusted_key_servers": [],
            "registration_shared_secret": self.registration_secret,
            "signing_key_path": str(place / "signing.key"),
            "media_store_path": str(place / "media"),
            "log_config": str(place / "logging.yaml"),
            "listeners": [listener],
            "database": {"name": "sqlite3", "args": {"database": str(place / "homeserver.db")}},
            # By default a repeated /sync gets a two minutes old answer.
            "caches": {"sync_response_cache_duration": "0s"},
            **({} if self.default_rate_limits else LIFTED_RATE_LIMITS),
            **self.more,
        }

    def command(self) -> list[str]:
        return [str(self.python), "-m", "synapse.app.homeserver", "-c", str(self._config)]

    def environment(self) -> dict[str, str]:
        return self.variables

    def ready(self) -> bool:
        # The port may be somebody else's while our process is ending because of that.
        return answers(f"{self.url}/health") and self.running()


_LOGGING = {
    "version": 1,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
    "disable_existing_loggers": False,
}


def synapse_python(local: Path) -> Path:
    """The interpreter of the virtual environment that holds Synapse, which is made where it is missing or out of date."""
    environment = local / "venv"
    python = environment / "bin" / "python"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = environment / "requirements.sha256"
    local.mkdir(exist_ok=True)
    with locked(local / "venv.lock"):
        if python.exists() and stamp.exists() and stamp.read_text() == wanted:
            return python
        print("Installing Synapse into .local/venv (once)", file=sys.stderr, flush=True)
        if importlib.util.find_spec("ensurepip") is None and os.geteuid() == 0 and shutil.which("apt-get"):
            apt_install("python3-venv")
        _run_setup([sys.executable, "-m", "venv", "--clear", str(environment)])
        _run_setup([str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)])
        stamp.write_text(wanted)
    return python


def _run_setup(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise StartFailed("Installing Synapse", f'"{" ".join(command)}" failed', done.stdout)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file; others wait."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
