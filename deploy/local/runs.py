"""A command that runs beside servers of its own, which end with it: `stack test` and `stack schema`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import postgres
from postgres import Postgres, scratch_directory
from processes import (
    Interrupted,
    StartFailed,
    adopt_orphans,
    die_with_parent,
    ignore_signals,
    stop_orphans,
    wait_for,
)
from programs import REPOSITORY
from synapse import SERVER_NAME, Synapse, synapse_python
from whole import LOCAL

STACK = Path(__file__).resolve().parent / "stack"
# How long a command may take to end after it was asked to.
COMMAND_SECONDS = 10.0


@contextlib.contextmanager
def temporary(prefix: str) -> Iterator[Path]:
    """A directory that is gone afterwards, whether the block ends by itself or by a signal."""
    directory = scratch_directory(prefix)
    try:
        yield directory
    finally:
        ignore_signals()
        shutil.rmtree(directory, ignore_errors=True)


def test(command: list[str], *, with_synapse: bool, durable: bool) -> int:
    """Runs the command beside a Postgres and a Synapse; returns its exit code."""
    # A test that crashes may leave a server behind, which then is ours to end.
    adopt_orphans()
    settings = postgres.for_benchmarks() if durable else postgres.FOR_TESTS
    with temporary("matrix-outbox-test-") as directory:
        database = Postgres(directory / "postgres", settings, tied=True)
        homeserver = Synapse(directory / "synapse", LOCAL / "venv" / "bin" / "python", tied=True) if with_synapse else None
        services = [database] if homeserver is None else [homeserver, database]
        try:
            if homeserver:
                synapse_python(LOCAL)
            for service in services:
                service.launch()
            for service in services:
                service.await_ready()
            # What tests leave behind goes away with our directory.
            leftovers = directory / "tmp"
            leftovers.mkdir()
            leftovers.chmod(0o1777)
            environment = {
                "TEST_DATABASE_URL": database.url(),
                "TEST_STACK": str(STACK),
                "TMPDIR": str(leftovers),
            }
            if homeserver:
                environment |= {
                    "TEST_HOMESERVER_URL": homeserver.url,
                    "TEST_HOMESERVER_NAME": SERVER_NAME,
                    "TEST_HOMESERVER_REGISTRATION_SECRET": homeserver.registration_secret,
                }
            return run_command(command, environment)
        finally:
            ignore_signals()
            stop_orphans(spare=[service.pid for service in services])
            for service in services:
                service.stop(at_once=True)


def schema(command: list[str]) -> int:
    """Runs the command beside a Postgres whose database has every migration; returns its exit code."""
    adopt_orphans()
    with temporary("matrix-outbox-schema-") as directory:
        database = Postgres(directory / "postgres", postgres.FOR_TESTS, tied=True)
        try:
            database.launch()
            database.await_ready()
            database.create_database("schema")
            for migration in sorted((REPOSITORY / "migrations").glob("*.sql")):
                database.run_sql("-f", str(migration), database="schema")
            return run_command(command, {"DATABASE_URL": database.url("schema")})
        finally:
            ignore_signals()
            stop_orphans(spare=[database.pid])
            database.stop(at_once=True)


def run_command(command: list[str], environment: dict[str, str]) -> int:
    """Runs it with these variables beside ours; returns its exit code. It ends when we do."""
    sys.stdout.flush()
    try:
        child = subprocess.Popen(
            command, env={**os.environ, **environment}, preexec_fn=die_with_parent(signal.SIGTERM)
        )
    except OSError as error:
        raise StartFailed(command[0], error.strerror or str(error)) from None
    try:
        return wait_for(child)
    except Interrupted as interrupted:
        child.send_signal(interrupted.number)
        try:
            child.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
