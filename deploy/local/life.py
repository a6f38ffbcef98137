"""Somebody who keeps writing, and somebody who keeps listening, while other things are tried."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable

from processes import wait_until
from programs import mint_token
from scene import DELIVERY_SECONDS, Disagreement
from sockets import WebSocket
from web import Json, Refused, call, request

# Lanes enough for the five failures in a row that open a circuit.
CONVERSATIONS = 8
# So many messages a second.
RATE = 2.0


class Writer:
    """A user of the API. `text` stands in everything that they write."""

    def __init__(self, api_url: str, jwt_secret: str, text: str) -> None:
        self.api_url = api_url
        self.id = str(uuid.uuid4())
        self.token = mint_token(jwt_secret, self.id)
        self.text = text
        self.conversations: list[str] = []
        self.refused = 0
        self.resting = False
        self._stop = threading.Event()
        self._heard = threading.Semaphore(0)
        self._cursor: str | None = None
        self._socket: WebSocket | None = None
        self._threads: list[threading.Thread] = []

    def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        headers = {"Authorization": f"Bearer {self.token}"}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        return request(method, f"{self.api_url}{path}", body, headers).body

    def write(self, conversation_id: str, text: str) -> str:
        """Returns the message's id."""
        body: Json = {"conversation_id": conversation_id, "plaintext": text}
        return str(self.ask("POST", "/messages", body)["id"])

    def delivery(self, message_id: str) -> str:
        return str(self.ask("GET", f"/messages/{message_id}")["matrix"]["delivery"])

    def deliver(self, conversation_id: str) -> None:
        """Writes into it, and waits until Matrix has it."""
        message = self.write(conversation_id, self.text)
        if not wait_until(lambda: self.delivery(message) == "delivered", DELIVERY_SECONDS, pause=0.2):
            raise Disagreement(f"a message is {self.delivery(message)} after {DELIVERY_SECONDS:.0f} s")

    def open(self) -> str:
        return str(self.ask("POST", "/conversations", {"members": [str(uuid.uuid4())], "name": self.text})["id"])

    def begin(self) -> None:
        """Writes into a few conversations and listens, until it is told to stop."""
        self.listen()
        for _ in range(CONVERSATIONS):
            self.conversations.append(self.open())
            # One room after another: a homeserver on a busy machine is not to look down.
            self.deliver(self.conversations[-1])
        self._start(self._write_on)

    def listen(self) -> None:
        """Over a WebSocket, from where it last stood."""
        self._socket = WebSocket(self.api_url, self.token, self._cursor)
        self._start(self._hear, self._socket)

    def leave(self) -> None:
        """Ends the WebSocket."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def heard(self, seconds: float) -> bool:
        """Whether a message is told of within this time."""
        return self._heard.acquire(timeout=seconds)

    def stop(self) -> None:
        self._stop.set()
        self.leave()
        for thread in self._threads:
            thread.join(timeout=10)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _write_on(self) -> None:
        for number, conversation_id in enumerate(itertools.cycle(self.conversations)):
            if self._stop.wait(1 / RATE):
                return
            if self.resting:
                continue
            try:
                self.write(conversation_id, f"{self.text} {number}")
            except (Refused, OSError):
                self.refused += 1

    def _hear(self, socket: WebSocket) -> None:
        for frame in socket.frames():
            self._cursor = frame.get("cursor") or self._cursor
            if frame.get("type") == "MessageNew":
                self._heard.release()


def log_out(homeserver: str, access_token: str) -> None:
    """Ends the token; its device goes with it."""
    call("POST", f"{homeserver}/_matrix/client/v3/logout", {}, {"Authorization": f"Bearer {access_token}"})
