#!/usr/bin/env python3
"""What sqlx knows about our queries without a database (`.sqlx`): `write` renews it, `check` compares it.

Runs inside `stack schema`, whose DATABASE_URL leads to a database with every migration. The queries are expanded by
clippy, so that lint checks code and data in one go.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / ".sqlx"


def main() -> int:
    action = sys.argv[1] if len(sys.argv) == 2 else ""
    if action not in ("check", "write") or "DATABASE_URL" not in os.environ:
        print("usage: stack schema -- deploy/local/offline_data.py check|write", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="matrix-outbox-sqlx-") as directory:
        fresh = Path(directory)
        if code := expand(fresh, strict=action == "check"):
            return code
        return write(fresh) if action == "write" else check(fresh)


def expand(into: Path, *, strict: bool) -> int:
    """Expands every query against the database; sqlx saves what it learns, if the directory exists."""
    # Cargo does not see that sqlx reads the environment and would expand nothing anew. It does see clippy's own
    # arguments, so one that differs each time makes it look at each of our crates again, and at nothing else.
    anew = f"--cfg=expanded_{time.time_ns()}"
    lints = ["-D", "warnings"] if strict else []
    command = ["cargo", "clippy", "--workspace", "--all-targets", "--all-features", "--", *lints, anew]
    environment = {**os.environ, "SQLX_OFFLINE": "false", "SQLX_OFFLINE_DIR": str(into)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment).returncode


def write(fresh: Path) -> int:
    if COMMITTED.exists():
        shutil.rmtree(COMMITTED)
    files = queries(fresh)
    if files:
        COMMITTED.mkdir()
    for name in files:
        shutil.copyfile(fresh / name, COMMITTED / name)
    print(f".sqlx describes {len(files)} queries")
    return 0


def check(fresh: Path) -> int:
    ours, theirs = queries(COMMITTED), queries(fresh)
    faults = [f"missing: {sql}" for name, sql in theirs.items() if name not in ours]
    faults += [f"no longer used: {sql}" for name, sql in ours.items() if name not in theirs]
    for name in ours.keys() & theirs.keys():
        if (COMMITTED / name).read_bytes() != (fresh / name).read_bytes():
            faults.append(f"described differently: {ours[name]}")
    for fault in sorted(faults):
        print(f".sqlx, {fault}", file=sys.stderr)
    if faults:
        print('"make sqlx" renews it', file=sys.stderr)
    return 1 if faults else 0


def queries(directory: Path) -> dict[str, str]:
    """File name to the query, on one line."""
    files = sorted(directory.glob("query-*.json"))
    return {file.name: " ".join(json.loads(file.read_text())["query"].split()) for file in files}


if __name__ == "__main__":
    sys.exit(main())
