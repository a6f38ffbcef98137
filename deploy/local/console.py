"""The operators' console in a real browser, on a stack of its own: a real Postgres, a real Synapse, api and worker.

`console/` holds what an operator does there, for Node; this starts what that needs, and ends it.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path

import browser
from processes import adopt_orphans, free_port, ignore_signals, stop_orphans, tail
from programs import mint_token
from runs import temporary
from web import Json, Refused
from whole import Stack, say

DRIVER = Path(__file__).resolve().parent / "console" / "driver.mjs"
SCOPES = {"stranger": None, "reader": "outbox:read", "operator": "outbox:read outbox:operate"}


class ConsoleStack(Stack):
    """The whole stack; its worker reaches the homeserver through a proxy of the driver's, which can refuse what it sends."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, tied=True)
        self.proxy_port = free_port()

    def configure(self) -> None:
        super().configure()
        proxied = {"MATRIX_HOMESERVER_URL": f"http://127.0.0.1:{self.proxy_port}"}
        self.worker.configure({**self.worker.settings, **proxied})


def run(pictures: str | None) -> int:
    """Drives the console; returns the exit code. `pictures`: a directory for pictures of its pages."""
    adopt_orphans()
    node, chromium = browser.tools()
    print("The operators' console in a browser\n", flush=True)
    with temporary("matrix-outbox-console-") as directory:
        stack = ConsoleStack(directory)
        try:
            stack.start()
            say("")
            code = browser.play(node, DRIVER, directory, json.dumps(_setting(stack, chromium, pictures)))
            if code != 0:
                _show_logs(stack)
                print("\nThe console is NOT as it has to be.", file=sys.stderr)
            return code
        except (Refused, OSError) as error:
            _show_logs(stack)
            print(f"\nThe console could not be driven: {error}", file=sys.stderr)
            return 1
        finally:
            ignore_signals()
            stop_orphans(spare=[service.pid for service in stack.services])
            say("")
            stack.stop(at_once=True)


def _setting(stack: ConsoleStack, chromium: str, pictures: str | None) -> Json:
    def person(scope: str | None) -> Json:
        user = str(uuid.uuid4())
        return {"id": user, "token": mint_token(stack.secrets["JWT_SECRET"], user, scope)}

    return {
        "chromium": chromium,
        "api_url": stack.api.url,
        "homeserver_url": stack.synapse.url,
        "proxy_port": stack.proxy_port,
        "pictures": pictures and str(Path(pictures).resolve()),
        "people": {name: person(scope) for name, scope in SCOPES.items()} | {"ada": person(None), "grace": person(None)},
    }


def _show_logs(stack: Stack) -> None:
    sys.stdout.flush()
    for service in stack.services:
        if service.launched:
            print(f"{service.title}, the end of its log:{tail(service.log_tail())}", file=sys.stderr)
