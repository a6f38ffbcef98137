"""The little of a Matrix client that the local stack needs."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import urllib.parse

from web import Json, Refused, call


def register(homeserver: str, secret: str, localpart: str) -> str:
    """Makes an account by the homeserver's shared secret, where it does not exist yet. Returns its password."""
    # Derived, so that whoever knows the secret can log in again later.
    password = hmac.new(secret.encode(), localpart.encode(), hashlib.sha256).hexdigest()
    url = f"{homeserver}/_synapse/admin/v1/register"
    nonce = call("GET", url)["nonce"]
    signed = b"\0".join(word.encode() for word in (nonce, localpart, password, "notadmin"))
    mac = hmac.new(secret.encode(), signed, hashlib.sha1).hexdigest()
    request = {"nonce": nonce, "username": localpart, "password": password, "admin": False, "mac": mac}
    try:
        call("POST", url, request)
    except Refused as refused:
        if "M_USER_IN_USE" not in str(refused):
            raise
    return password


class MatrixClient:
    """One logged-in device."""

    def __init__(self, homeserver: str, localpart: str, password: str, device_id: str) -> None:
        self.base = f"{homeserver}/_matrix/client/v3"
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": localpart},
            "password": password,
            "device_id": device_id,
        }
        answer = call("POST", f"{self.base}/login", login)
        self.user_id: str = answer["user_id"]
        self.access_token: str = answer["access_token"]

    def _call(self, method: str, path: str, body: Json | None = None, /, **query: str) -> Json:
        url = f"{self.base}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        return call(method, url, body, {"Authorization": f"Bearer {self.access_token}"})

    def invitations(self) -> list[str]:
        """The rooms that this user is invited to."""
        rooms = self._call("GET", "/sync", timeout="0").get("rooms", {})
        return list(rooms.get("invite", {}))

    def join(self, room_id: str) -> None:
        self._call("POST", f"/rooms/{_quote(room_id)}/join", {})

    def say(self, room_id: str, text: str) -> str:
        """Sends a text. Returns its event's id."""
        return self.send(room_id, "m.room.message", {"msgtype": "m.text", "body": text})

    def send(self, room_id: str, event_type: str, content: Json) -> str:
        """Sends an event. Returns its id."""
        path = f"/rooms/{_quote(room_id)}/send/{event_type}/{secrets.token_hex(16)}"
        return str(self._call("PUT", path, content)["event_id"])

    def members(self, room_id: str) -> dict[str, str]:
        """User id to membership."""
        events = self._call("GET", f"/rooms/{_quote(room_id)}/members")["chunk"]
        return {event["state_key"]: event["content"]["membership"] for event in events}

    def state(self, room_id: str, event_type: str) -> Json:
        return self._call("GET", f"/rooms/{_quote(room_id)}/state/{event_type}/")

    def timeline(self, room_id: str) -> list[Json]:
        """Every event that this user may see, oldest first."""
        events: list[Json] = []
        start: dict[str, str] = {}
        while True:
            page = self._call("GET", f"/rooms/{_quote(room_id)}/messages", dir="f", limit="100", **start)
            events += page["chunk"]
            if not page["chunk"] or "end" not in page:
                return events
            start = {"from": page["end"]}


def _quote(part: str) -> str:
    return urllib.parse.quote(part, safe="")


def new_secret() -> str:
    return secrets.token_hex(32)
