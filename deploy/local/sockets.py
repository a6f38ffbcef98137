"""As much of a WebSocket client as it takes to hear what happens."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from urllib.parse import urlsplit

from web import Json

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class WebSocket:
    """One connection to the API. Ended by `close`; what comes is read with `frames`."""

    def __init__(self, url: str, token: str, since: str | None = None) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        self._file = self._socket.makefile("rb")
        query = f"?since={since}" if since else ""
        request = (
            f"GET /ws{query} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            f"Authorization: Bearer {token}",
        )
        self._socket.sendall(("\r\n".join(request) + "\r\n\r\n").encode())
        status = self._file.readline().decode()
        while self._file.readline().strip():
            pass
        if " 101 " not in status:
            raise OSError(f"the WebSocket was refused: {status.strip()}")

    def frames(self) -> Iterator[Json]:
        """Until the connection ends."""
        with contextlib.suppress(OSError, ValueError):
            while head := self._file.read(2):
                kind, length = head[0] & 0x0F, head[1] & 0x7F
                if length == 126:
                    (length,) = struct.unpack(">H", self._file.read(2))
                elif length == 127:
                    (length,) = struct.unpack(">Q", self._file.read(8))
                content = self._file.read(length)
                if kind == PING:
                    self._send(PONG, content)
                elif kind == CLOSE:
                    return
                elif kind == TEXT:
                    yield json.loads(content)

    def _send(self, kind: int, content: bytes) -> None:
        # Clients mask what they send; with zeros it stays as it is.
        self._socket.sendall(bytes((0x80 | kind, 0x80 | len(content), 0, 0, 0, 0)) + content)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._send(CLOSE, struct.pack(">H", 1000))
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
