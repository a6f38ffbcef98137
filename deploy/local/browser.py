"""Node, its modules, and a browser: what tests need that play what people do on pages.

What is missing is installed, or named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from postgres import apt_install
from processes import StartFailed
from runs import run_command
from service import write_private
from synapse import locked
from whole import LOCAL

HERE = Path(__file__).resolve().parent
MODULES = HERE / "node_modules"
OLDEST_NODE = 20
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-dejavu-core")
NODE_HINT = f'Node.js {OLDEST_NODE} or newer, with npm, was not found. Install it (https://nodejs.org), or put it on PATH'
BROWSER_HINT = 'no Chromium was found. Install it (Debian: package "chromium"), or put it on PATH'


def tools() -> tuple[str, str]:
    """Node and a browser, with Node's modules."""
    found = _node(), _browser()
    _install_modules()
    return found


def play(node: str, driver: Path, directory: Path, setting: str) -> int:
    """Runs a driver with a setting, JSON in a file; what its browser leaves behind goes away with the directory."""
    file = directory / f"{driver.parent.name}.json"
    write_private(file, setting)
    home = directory / "home"
    home.mkdir()
    return run_command([node, str(driver), str(file)], {"HOME": str(home), "TMPDIR": str(home)})


def _node() -> str:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise StartFailed("Node.js", NODE_HINT)
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    if int(said.removeprefix("v").partition(".")[0] or 0) < OLDEST_NODE:
        raise StartFailed("Node.js", f"{NODE_HINT}; {node} is {said}")
    return node


def _browser() -> str:
    if (found := _find_browser()) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt_install(*PACKAGES)
        found = _find_browser()
    if found is None:
        raise StartFailed("Chromium", BROWSER_HINT)
    return found


def _find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _install_modules() -> None:
    """Exactly what the lock file names, once for each lock file."""
    lock = HERE / "package-lock.json"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = MODULES / ".lock.sha256"
    LOCAL.mkdir(exist_ok=True)
    with locked(LOCAL / "modules.lock"):
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print("Installing Node modules into deploy/local/node_modules (once)", file=sys.stderr, flush=True)
        done = subprocess.run(
            ["npm", "ci", "--no-progress"],
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise StartFailed("Node modules", '"npm ci" failed', done.stdout)
        stamp.write_text(wanted)
