"""A TURN server of one's own: coturn, on 127.0.0.1 only, with credentials that expire."""

from __future__ import annotations

import contextlib
import random
import socket
from functools import cache
from pathlib import Path

from matrix import new_secret
from packages import find_program, install_quietly, installs
from processes import StartFailed
from service import Service, write_private

PROGRAM = "turnserver"
RELAY_PORTS = 100
INSTALL_HINT = f'the TURN server "{PROGRAM}" was not found. Install it (package "coturn"), or put it on PATH'


class Coturn(Service):
    name = "coturn"
    title = "coturn"
    start_seconds = 30.0
    retry_signs = (*Service.retry_signs, "cannot bind")

    @property
    def secret(self) -> str:
        return str(self.record["secret"])

    @property
    def relay_ports(self) -> tuple[int, int]:
        first, last = self.record["relay_ports"]
        return first, last

    @property
    def _config(self) -> Path:
        return self.directory / "turnserver.conf"

    def prepare(self) -> None:
        self.record.setdefault("secret", new_secret())
        self.record.setdefault("relay_ports", _free_udp_ports())
        first, last = self.relay_ports
        lines = (
            "listening-ip=127.0.0.1",
            "relay-ip=127.0.0.1",
            f"listening-port={self.port}",
            f"min-port={first}",
            f"max-port={last}",
            "realm=nova.test",
            "use-auth-secret",
            f"static-auth-secret={self.secret}",
            "no-tls",
            "no-dtls",
            "no-cli",
            "no-multicast-peers",
            # Both sides relay, so each is the other's peer at 127.0.0.1; without this they are answered 403.
            "allow-loopback-peers",
            f"pidfile={self.directory / 'turnserver.pid'}",
            f"userdb={self.directory / 'turndb'}",
            "log-file=stdout",
            "simple-log",
        )
        write_private(self._config, "\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [str(program()), "-c", str(self._config)]

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return self.running()
        return False


@cache
def program() -> Path:
    """Installs it where it is missing and that is possible."""
    found = find_program(PROGRAM)
    if found is None and installs():
        install_quietly("coturn")
        found = find_program(PROGRAM)
    if found is None:
        raise StartFailed("coturn", INSTALL_HINT)
    return found


def _free_udp_ports() -> tuple[int, int]:
    """A range below the one that the system takes for outgoing connections."""
    for _ in range(20):
        first = random.randrange(10240, 32768 - RELAY_PORTS)
        last = first + RELAY_PORTS - 1
        if all(_free_udp_port(port) for port in range(first, last + 1)):
            return first, last
    raise StartFailed("ports", f"no {RELAY_PORTS} free UDP ports in a row on 127.0.0.1")


def _free_udp_port(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
