#!/usr/bin/env python3
"""Rules about dependencies that no compiler checks. Prints what breaks them; exit code 1 then."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# The api answers without ever calling another server.
HTTP_CLIENTS = {"reqwest", "ruma-client"}
# Postgres is the one database.
SQLITE = {"libsqlite3-sys"}


def main() -> int:
    api = crates("-p", "api", "-e", "normal")
    everything = crates("--workspace", "--all-features")
    direct = crates("--workspace", "--all-features", "--depth", "1")
    faults = [f"api must not depend on {name}" for name in sorted(HTTP_CLIENTS & api.keys())]
    faults += [f"nothing may depend on {name}" for name in sorted(SQLITE & everything.keys())]
    for name, versions in sorted(direct.items()):
        if len(versions) > 1:
            faults.append(f"our crates depend on several versions of {name}: {', '.join(sorted(versions))}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def crates(*selection: str) -> dict[str, set[str]]:
    """Every crate in the tree, with its versions."""
    command = ["cargo", "tree", "--locked", "--prefix", "none", "--format", "{p}", *selection]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f'"{" ".join(command)}" failed')
    found: dict[str, set[str]] = defaultdict(set)
    for line in done.stdout.splitlines():
        if words := line.split():
            found[words[0]].add(words[1])
    return found


if __name__ == "__main__":
    sys.exit(main())
