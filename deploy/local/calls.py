"""Calls between a real browser and a real Matrix client, through a real Synapse and a real TURN server.

`calls/` holds what is played, for Node; this starts what that needs, and ends it.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

import browser
import coturn
from coturn import Coturn
from matrix import MatrixClient, register
from processes import adopt_orphans, free_port, ignore_signals, stop_orphans, tail
from programs import DATABASE, SERVICE_USER, Api, mint_token
from runs import temporary
from service import Service
from synapse import SERVER_NAME, Synapse
from web import Json, Refused, text
from whole import Stack, say

DRIVER = Path(__file__).resolve().parent / "calls" / "driver.mjs"
# Descriptions have no place in what is printed, whoever logged them; and of our own logs only what is usual is shown.
UNPRINTED = ("candidate:", "v=0", "ice-pwd", '"level":"TRACE"', '"level":"DEBUG"')


# What every description or candidate holds; also as Postgres shows bytes.
_PLAIN_WORDS = (b"a=ice-ufrag", b"a=fingerprint", b"typ relay")
_WORDS = (*_PLAIN_WORDS, *(word.hex().encode() for word in _PLAIN_WORDS))
_TABLES = "select tablename from pg_tables where schemaname = 'public'"


class CallStack(Stack):
    """The whole stack, with a TURN server, and a second api that keeps calls from Matrix.

    Synapse names the TURN server by a port whose proxy can be slow.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, tied=True)
        self.coturn = Coturn(directory / "coturn", tied=True)
        self.slow_port = free_port()
        self.second_api = Api(directory / "second-api", tied=True)
        self.second_api.title = "api that keeps calls from Matrix"

    @property
    def services(self) -> tuple[Service, ...]:
        return self.coturn, *super().services, self.second_api

    def start(self) -> None:
        self.bring_up(self.coturn)
        self.synapse.more = turn_settings(self.coturn, self.slow_port)
        super().start()
        self.bring_up(self.second_api)

    def configure(self) -> None:
        super().configure()
        turn = {
            "TURN_SERVER_URL": f"turn:127.0.0.1:{self.coturn.port}?transport=udp",
            "TURN_SHARED_SECRET": self.coturn.secret,
        }
        self.api.configure({**self.api.settings, **turn, "MATRIX_VOIP_ENABLED": "true"})
        self.second_api.configure({**self.api.settings, "MATRIX_VOIP_ENABLED": "false"})
        self.worker.configure({**self.worker.settings, "MATRIX_VOIP_ENABLED": "true"})


def turn_settings(turn: Coturn, port: int) -> Json:
    """Synapse's, for a TURN server that is spoken to over TCP at this port."""
    return {"turn_uris": [f"turn:127.0.0.1:{port}?transport=tcp"], "turn_shared_secret": turn.secret}


def run(only: list[int]) -> int:
    """Plays the calls, or those of these numbers; returns the exit code."""
    adopt_orphans()
    node, chromium = tools()
    # Logs must not hold what is said in calls, whatever they are asked to tell.
    os.environ.setdefault("RUST_LOG", "trace")
    print("Calls between a browser and a Matrix client\n", flush=True)
    with temporary("matrix-outbox-calls-") as directory:
        stack = CallStack(directory)
        try:
            stack.start()
            say("")
            setting = players(stack.synapse, stack.secrets["JWT_SECRET"]) | {
                "only": only,
                "directory": str(directory),
                "chromium": chromium,
                "api_url": stack.api.url,
                "second_api_url": stack.second_api.url,
                "homeserver_url": stack.synapse.url,
                "homeserver_pid": stack.synapse.pid,
                "turn_port": stack.coturn.port,
                "slow_port": stack.slow_port,
                "relay_ports": stack.coturn.relay_ports,
            }
            code = browser.play(node, DRIVER, directory, json.dumps(setting))
            code = code or _look_for_descriptions(stack, all_played=not only)
            if code != 0:
                _show_logs(stack)
                print("\nThe calls are NOT as they have to be.", file=sys.stderr)
            return code
        except (Refused, OSError) as error:
            _show_logs(stack)
            print(f"\nThe calls could not be played: {error}", file=sys.stderr)
            return 1
        finally:
            ignore_signals()
            stop_orphans(spare=[service.pid for service in stack.services])
            say("")
            stack.stop(at_once=True)


def tools() -> tuple[str, str]:
    """Node and a browser. What is missing is installed, or named: these, the TURN server, and Node's modules."""
    coturn.program()
    return browser.tools()


def players(synapse: Synapse, jwt_secret: str) -> Json:
    """Ada, and Grace and Linus, who have Matrix accounts too."""
    users = {}
    for name in ("ada", "grace", "linus"):
        user = uuid.uuid4()
        users[name] = {"id": str(user), "token": mint_token(jwt_secret, str(user))}
        if name == "ada":
            continue
        localpart = f"nova-{user.hex}"
        device = f"{name.upper()}PHONE"
        password = register(synapse.url, synapse.registration_secret, localpart)
        account = MatrixClient(synapse.url, localpart, password, device)
        matrix = {"matrix_user_id": account.user_id, "access_token": account.access_token, "device_id": device}
        users[name] |= matrix
    return {"server_name": SERVER_NAME, "service_user": SERVICE_USER, "users": users}


def _look_for_descriptions(stack: CallStack, *, all_played: bool) -> int:
    """Nobody but Matrix and those who call may have a description or a candidate readable. Returns the exit code."""
    # There they have to be, or else this would find none anywhere. Some calls have none on Matrix.
    if all_played and not _found(stack.synapse.directory.glob("homeserver.db*")):
        print("       the homeserver's own database has no descriptions: this looks for the wrong words")
        return 1
    rows = stack.directory / "rows"
    with open(rows, "w") as dump:
        for table in stack.postgres.run_sql("-c", _TABLES, database=DATABASE).splitlines():
            copy = f'copy (select t::text from "{table}" t) to stdout'
            dump.write(stack.postgres.run_sql("-c", copy, database=DATABASE))
    programs = (stack.api, stack.second_api, stack.worker)
    metrics = stack.directory / "metrics"
    metrics.write_text("".join(text(f"{program.url}/metrics") for program in programs))
    places = _found([rows, metrics, *(program.log for program in programs)])
    for place in places:
        print(f"       a description or a candidate can be read in {place.relative_to(stack.directory)}")
    if not places:
        say("   in no row, log or metric can a description or a candidate be read")
    return 1 if places else 0


def _found(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if _speaks(file.read_bytes())]


def _speaks(content: bytes) -> bool:
    return any(word in content for word in _WORDS)


def _show_logs(stack: CallStack) -> None:
    logs = [(service.title, service.log_tail()) for service in stack.services if service.launched]
    clients = sorted(stack.directory.glob("*.log"))
    logs += [(f"{log.stem}'s Matrix client", log.read_text(errors="replace")) for log in clients]
    sys.stdout.flush()
    for title, text in logs:
        lines = (line for line in text.splitlines() if not any(word in line for word in UNPRINTED))
        print(f"{title}, the end of its log:{tail(chr(10).join(lines))}", file=sys.stderr)
