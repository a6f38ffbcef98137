"""A Postgres of one's own: one cluster in one directory, TCP on 127.0.0.1 only, trust authentication."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from processes import Account, StartFailed
from service import Service

OLDEST_VERSION = 15

DURABLE = {"fsync": "on", "synchronous_commit": "on"}
# For tests: nobody needs their data after a crash of the machine. All else is as in life.
FOR_TESTS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "400",
    "shared_buffers": "128MB",
}
# For benchmarks: nothing is spared that life asks for.
FOR_BENCHMARKS = {**DURABLE, "max_connections": "400", "shared_buffers": "512MB", "max_wal_size": "4GB"}
INSTALL_HINT = (
    f"the server programs of PostgreSQL {OLDEST_VERSION} or newer (initdb, postgres, psql) were not found. Install them "
    '(Debian, Ubuntu: package "postgresql"; Fedora: "postgresql-server"; macOS: "brew install postgresql@17"), '
    "or put their directory on PATH"
)


class Postgres(Service):
    name = "postgres"
    title = "Postgres"
    # SIGINT disconnects clients and ends; Postgres takes SIGTERM for "wait until every client has left".
    stop_signal = signal.SIGINT
    stop_seconds = 30.0
    orphan_signal = signal.SIGQUIT
    # A Postgres that was killed a moment ago, or children of it, have not quite ended yet.
    retry_signs = (
        *Service.retry_signs,
        "pre-existing shared memory block",
        'lock file "postmaster.pid" already exists',
    )

    def __init__(
        self, directory: Path, settings: dict[str, str], *, tied: bool = False, keep_port: bool = False
    ) -> None:
        super().__init__(directory, tied=tied, keep_port=keep_port)
        self.settings = settings
        self.account = server_account()

    @property
    def data(self) -> Path:
        return Path(self.record["data"])

    def url(self, database: str = "postgres") -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        if "data" not in self.record or not (self.data / "PG_VERSION").exists():
            self._make_cluster(programs())

    def _make_cluster(self, bin_directory: Path) -> None:
        data = self._place_for_data()
        if data.exists():
            shutil.rmtree(data)
        data.mkdir(mode=0o700)
        if self.account:
            self.account.own(data)
        initdb = [
            str(bin_directory / "initdb"),
            *("-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"),
        ]
        made = subprocess.run(
            initdb,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            **(self.account.popen() if self.account else {}),
        )
        if made.returncode != 0:
            raise StartFailed(self.title, "initdb could not make a cluster", made.stdout)
        self.record["data"] = str(data)
        self.save()

    def _place_for_data(self) -> Path:
        """Below our directory; or in a temporary one, where the server's user cannot get there."""
        if self.account is None:
            return self.directory / "data"
        # The server's user must be able to pass through, not to read.
        self.directory.chmod(self.directory.stat().st_mode | 0o111)
        probe = Path(tempfile.mkdtemp(dir=self.directory))
        self.account.own(probe)
        usable = self.account.can_use(probe)
        probe.rmdir()
        if usable:
            return self.directory / "data"
        elsewhere = scratch_directory("matrix-outbox-postgres-")
        self.record["elsewhere"] = str(elsewhere)
        return elsewhere / "data"

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "log_min_messages": "warning",
            "log_line_prefix": "%m [%p] ",
            **self.settings,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(programs() / "postgres"), "-D", str(self.data), *options]

    def environment(self) -> dict[str, str]:
        return {"LC_ALL": "C"}

    def ready(self) -> bool:
        """As pg_ctl finds out: the server writes its state to the last line of its pid file."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def run_sql(self, *arguments: str, database: str = "postgres") -> str:
        """Runs psql, which stops at the first error; returns what it printed."""
        psql = programs() / "psql"
        command = [str(psql), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise StartFailed("psql", f"{' '.join(arguments)} was refused", done.stdout + done.stderr)
        return done.stdout.strip()

    def create_database(self, name: str) -> bool:
        """Makes the database where it does not exist; says whether it made it."""
        if self.run_sql("-c", f"select 1 from pg_database where datname = '{name}'"):
            return False
        self.run_sql("-c", f'create database "{name}"')
        return True

    def remove_data(self) -> None:
        for path in (self.record.get("elsewhere"), self.record.get("data")):
            if path:
                shutil.rmtree(path, ignore_errors=True)


def for_benchmarks() -> dict[str, str]:
    """With a count of all statements, where the server has that module."""
    counts = any(programs().parent.glob("lib*/**/pg_stat_statements.*"))
    preload = {"shared_preload_libraries": "pg_stat_statements"} if counts else {}
    return {**FOR_BENCHMARKS, **preload}


@cache
def server_account() -> Account | None:
    """Postgres refuses to run as root. None: the user that we are will do."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, found.pw_uid, found.pw_gid)
    raise StartFailed("Postgres", 'it refuses to run as root, and there is no user "postgres" or "nobody" to run it as')


def scratch_directory(prefix: str) -> Path:
    """A new temporary directory that the server's user can pass through."""
    account = server_account()
    user = account.name if account else "server"
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        directory.chmod(0o755)
        if account is None:
            return directory
        probe = directory / "probe"
        probe.mkdir()
        account.own(probe)
        usable = account.can_use(probe)
        probe.rmdir()
        if usable:
            return directory
        directory.rmdir()
    raise StartFailed("Postgres", f'the user "{user}" can write to no temporary directory')


@cache
def programs() -> Path:
    """The directory of the newest server programs; installs them where that is possible."""
    found = _find_programs()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt_install("postgresql")
        found = _find_programs()
    if found is None:
        raise StartFailed("Postgres", INSTALL_HINT)
    return found


def _find_programs() -> Path | None:
    candidates = []
    if on_path := shutil.which("postgres"):
        candidates.append(Path(on_path).resolve().parent)
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(installed, key=lambda path: _number(path.parent.name), reverse=True)
    usable = (path for path in candidates if all((path / name).exists() for name in ("initdb", "postgres", "psql")))
    return next((path for path in usable if _version(path) >= OLDEST_VERSION), None)


def _version(bin_directory: Path) -> int:
    said = subprocess.run([str(bin_directory / "postgres"), "--version"], capture_output=True, text=True).stdout
    return _number(said.partition("(PostgreSQL) ")[2])


def _number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match.group()) if match else 0


def apt_install(*packages: str) -> None:
    names = " ".join(packages)
    print(f"Installing {names} with apt-get (once)", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        if done.returncode != 0:
            raise StartFailed(names, f'"{" ".join(command)}" failed', done.stdout)
