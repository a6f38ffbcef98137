"""JSON over HTTP to servers on this machine."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

# A proxy named in the environment is none of our business: every address here is 127.0.0.1.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """An answer other than 2xx, in full."""

    def __init__(self, request: str, status: int, answer: str) -> None:
        super().__init__(f"{request} was answered with {status}: {answer[:500]}")
        self.status = status


@dataclass(frozen=True)
class Answer:
    status: int
    body: Json


def request(method: str, url: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Answer:
    """One request. Anything but 2xx is raised as Refused; an empty answer is {}."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    if data is not None:
        asked.add_header("Content-Type", "application/json")
    try:
        with _opener.open(asked, timeout=60) as response:
            text = response.read()
            return Answer(response.status, json.loads(text) if text else {})
    except urllib.error.HTTPError as error:
        raise Refused(f"{method} {url}", error.code, error.read().decode(errors="replace")) from None


def call(method: str, url: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Json:
    return request(method, url, body, headers).body


def text(url: str) -> str:
    """What GET gives."""
    with _opener.open(url, timeout=60) as response:
        return str(response.read().decode())


def answers(url: str) -> bool:
    """Whether GET gives 200."""
    try:
        with _opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
