"""Processes of the local stack: started with their output in a file, stopped only by pid and start time together.

A pid alone is not enough: after a restart of the machine, or after long enough, it may belong to somebody else.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TAIL_LINES = 25
LONGEST_LINE = 500

# Popen objects of our own children: waiting on them is what removes a dead child from the process table.
_children: dict[int, subprocess.Popen[bytes]] = {}


class StartFailed(Exception):
    """A part did not start: which one, why, and the end of its log."""

    def __init__(self, part: str, reason: str, log: str = "") -> None:
        super().__init__(f"{part}: {reason}")
        self.part, self.reason, self.log = part, reason, log

    def report(self) -> str:
        return f"{self.part} failed: {self.reason}{tail(self.log)}"


def tail(log: str) -> str:
    """The end of a log, to be printed below a line."""
    return "".join(f"\n  | {line[:LONGEST_LINE]}" for line in log.rstrip().splitlines()[-TAIL_LINES:])


@dataclass(frozen=True)
class ProcessId:
    """One process, told apart from a later one with the same pid."""

    pid: int
    started: str

    def alive(self) -> bool:
        if child := _children.get(self.pid):
            child.poll()
        return _start_time(self.pid) == self.started

    def send(self, number: int) -> None:
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def stop(self, number: int = signal.SIGTERM, patience: float = 15.0) -> None:
        """Asks with the signal, waits for the process to end, and ends it by force when patience runs out."""
        self.send(number)
        if not wait_until(lambda: not self.alive(), patience):
            self.send(signal.SIGKILL)
            wait_until(lambda: not self.alive(), 5.0)


def _start_time(pid: int) -> str | None:
    """When the process began, in whatever unit the system counts; None when it is gone or a zombie."""
    if sys.platform == "linux":
        try:
            # The name, in brackets, may hold spaces and brackets of its own.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout
    state, _, started = answer.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(pause)
    return True


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def die_with_parent(number: int) -> Callable[[], None]:
    """For `preexec_fn`: the kernel sends the child this signal when its parent dies, even by SIGKILL."""
    parent = os.getpid()

    def arrange() -> None:
        _prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def spawn(
    command: list[str],
    log: Path,
    *,
    environment: dict[str, str] | None = None,
    user: Account | None = None,
    tied: int | None = None,
) -> ProcessId:
    """Starts a process in a session of its own. `tied`: the signal it gets if we die; None lets it outlive us."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=die_with_parent(tied) if tied else None,
            **(user.popen() if user else {}),
        )
    _children[child.pid] = child
    # A child that has already ended has no start time left to read; one that never matches says just that.
    return ProcessId(child.pid, _start_time(child.pid) or "ended")


@dataclass(frozen=True)
class Account:
    """An unprivileged user to run as."""

    name: str
    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        os.chown(path, self.uid, self.gid)

    def can_use(self, path: Path) -> bool:
        """Whether this user may enter the directory and write there."""
        test = ["/bin/sh", "-c", 'cd "$1" && test -w .', "sh", str(path)]
        return subprocess.run(test, cwd="/", capture_output=True, **self.popen()).returncode == 0


def adopt_orphans() -> None:
    """Children of our children become ours when their parent ends, so that we can end them too."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def wait_for(child: subprocess.Popen[bytes]) -> int:
    """The child's exit code, as a shell says it. Meanwhile clears away every other child that ends.

    An adopted process that stays a zombie would look alive: Postgres, for one, would not start again on its data.
    """
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def stop_orphans(spare: list[int]) -> None:
    """Ends every child of this process that is left, but those spared."""
    listing = Path("/proc/self/task") / str(os.getpid()) / "children"
    for number in (signal.SIGTERM, signal.SIGKILL):
        limit = time.monotonic() + 5.0
        asked: set[int] = set()
        while listing.exists() and time.monotonic() < limit:
            _reap()
            left = [int(pid) for pid in listing.read_text().split() if int(pid) not in spare]
            if not left:
                return
            for pid in set(left) - asked:
                os.kill(pid, number)
                asked.add(pid)
            time.sleep(0.05)


def _reap() -> None:
    """Clears away ended children that no Popen object waits for."""
    for child in _children.values():
        child.poll()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def free_port() -> int:
    """A free port of 127.0.0.1, below the range that the system takes for outgoing connections.

    A server that restarts on a port within that range may find it taken, in the meantime, by some client's connection;
    a client that tries to reconnect to it may even connect to itself.
    """
    try:
        ceiling = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        ceiling = 32768
    candidates = [random.randrange(10240, ceiling) for _ in range(50)] if ceiling > 12000 else []
    for port in [*candidates, 0]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StartFailed("ports", "no free port on 127.0.0.1")


class Interrupted(BaseException):
    """A signal asked this program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def raise_on_signals() -> None:
    """Makes the signals that ask to end raise Interrupted, so that `finally` blocks run."""

    def interrupt(number: int, _frame: object) -> None:
        ignore_signals()
        raise Interrupted(number)

    for number in _ENDING:
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """From here on nothing keeps us from tidying up."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
