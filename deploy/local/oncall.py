"""The whole stack, watched by a real Prometheus with our rules: a healthy life, in which nothing fires; then one trouble after
another, each of which has to fire its alert, and to clear.

What alerts are compared with is as in life. Their windows and waits are divided by `FASTER`, so that five minutes are ten
seconds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import dashboards
from life import Writer, log_out
from postgres import programs
from processes import ProcessId, StartFailed, ignore_signals, spawn, tail, wait_until
from programs import DATABASE, binary, service_account, worker_settings
from prometheus import Prometheus, program, promtool
from promql import with_shorter_times
from runs import temporary
from scene import Disagreement, Scene
from service import Service
from telephone import ANSWER, OFFER, Telephone
from web import Refused, text
from whole import Stack, say

FASTER = 30
API_JOB, WORKER_JOB = "matrix-outbox-api", "matrix-outbox-worker"
POLICY = Path(__file__).resolve().parent / "policy"
# Stands in every text and every name; no metric may have it.
CANARY = "canary-" + uuid.uuid4().hex
MANY, USED = 10_000, 5
MANY_CONVERSATIONS = """
with made as (
    insert into conversations (conversation_id, name, created_by, created_at, last_seq)
    select gen_random_uuid(), 'one of many', '{user}', now(), 1 from generate_series(1, {count})
    returning conversation_id
), joined as (
    insert into conversation_members (conversation_id, user_id, added_seq)
    select conversation_id, '{user}', 1 from made
), lined_up as (
    insert into lanes (conversation_id, lane_id, lane_class, open, frozen_through, epoch)
    select conversation_id, conversation_id, 'chat', 0, 0, 0 from made
)
select conversation_id from made
"""
# So long nothing may fire.
HEALTHY_SECONDS = 45.0
# The longest that anything waits for: a minute and a half without a sync.
OUTAGE_SECONDS = 150.0
SOON = 30.0
CLEAR_SECONDS = 90.0
# The shortest that the API takes. Such an invite is not sent 20 seconds later.
RING_MS = 30_000

# What an outage of the homeserver has to fire, and what may fire with it: what waited is late when it goes out.
OUTAGE = {"CircuitOpen", "MatrixSendFailures", "OldestAgeBurnsFast", "SyncStalled", "CallInviteExpired", "XminHeld"}
WITH_OUTAGE = {"DeliveriesLate", "OldestAgeBurnsSlowly", "SyncLate"}
WITH_TOKEN = {"CircuitOpen", "MatrixSendFailures", "NoWorker", "ProcessDown"}


class WatchedStack(Stack):
    """The whole stack, whose homeserver refuses what holds a certain word, and a Prometheus."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, tied=True)
        self.word = "refuse-" + uuid.uuid4().hex
        module = {"module": "refusal.Refusal", "config": {"word": self.word}}
        self.synapse.more = {"modules": [module]}
        self.synapse.variables = {"PYTHONPATH": str(POLICY)}
        self.prometheus: Prometheus | None = None

    @property
    def services(self) -> tuple[Service, ...]:
        return (*super().services, *([self.prometheus] if self.prometheus else []))

    def watch(self) -> Prometheus:
        rules = self.directory / "rules.yml"
        rules.write_text(with_shorter_times(dashboards.RULES.read_text(), FASTER))
        targets = {API_JOB: [f"127.0.0.1:{self.api.port}"], WORKER_JOB: [f"127.0.0.1:{self.worker.port}"]}
        self.prometheus = Prometheus(self.directory / "prometheus", targets=targets, rules=[rules], tied=True)
        self.bring_up(self.prometheus)
        # Two seconds without a worker are a minute in life: what Prometheus has not looked at yet does not count.
        if not wait_until(self._looked, SOON, pause=0.2):
            raise Disagreement("Prometheus does not scrape api and worker")
        return self.prometheus

    def _looked(self) -> bool:
        if self.prometheus is None or len(self.prometheus.query("up == 1")) < 2:
            return False
        return not self.prometheus.query('count_over_time(ALERTS{alertstate="firing"}[2s])')


def run() -> int:
    """Plays it; returns the exit code."""
    program("prometheus")
    print(f"On call: a real Prometheus, and rules whose times are {FASTER} times as short as in life\n", flush=True)
    with temporary("matrix-outbox-oncall-") as directory:
        stack = WatchedStack(directory)
        watch: Watch | None = None
        try:
            stack.start()
            watch = Watch(stack, stack.watch())
            watch.play()
            print("\nEach alert fired when it had to, and only then.")
            return 0
        except (Disagreement, Refused, StartFailed, OSError) as error:
            sys.stdout.flush()
            for service in stack.services:
                if service.launched:
                    print(f"{service.title}, the end of its log:{tail(service.log_tail())}", file=sys.stderr)
            print(f"\nNot as it has to be: {error}", file=sys.stderr)
            return 1
        finally:
            ignore_signals()
            if watch:
                watch.end()
            say("")
            stack.stop(at_once=True)


class Watch:
    """The play. `seen` is what has fired since the last look."""

    def __init__(self, stack: WatchedStack, prometheus: Prometheus) -> None:
        self.stack = stack
        self.prometheus = prometheus
        self.writer = Writer(stack.api.url, stack.secrets["JWT_SECRET"], CANARY)
        self.holder: ProcessId | None = None
        self.began = time.monotonic()
        self.looked = time.time()
        self.old_token = ""

    def play(self) -> None:
        self.healthy()
        self.outage()
        self.dead_letter()
        self.revoked_token()
        self.aftermath()

    def end(self) -> None:
        self.writer.stop()
        if self.holder:
            self.holder.stop(signal.SIGKILL)

    # A healthy life.

    def healthy(self) -> None:
        say("\n   1. A healthy life")
        scene = Scene(self.stack)
        for name in ("Grace", "Linus"):
            scene.give_matrix_account(name)
        scene.open("Ada", ["Grace", "Linus"], title=CANARY)
        first = scene.say("Ada", f"{CANARY} one")
        scene.accept_invitation("Grace")
        scene.accept_invitation("Linus")
        self.writer.begin()
        second = scene.say("Ada", f"{CANARY} two")
        scene.wait_for_delivery()
        scene.say_on_matrix("Linus", f"{CANARY} three")
        scene.edit(first, f"{CANARY} four")
        scene.delete(second)
        if not Telephone(scene, caller="Ada", called="Grace").play():
            raise Disagreement("the call is not the same for both sides")
        self.clients_come_and_go()
        self.scene = scene
        self.many_conversations()
        time.sleep(max(0.0, HEALTHY_SECONDS - (time.monotonic() - self.began)))
        unreached = self.prometheus.query("count_over_time((up == 0)[2m:1s])")
        if fired := self.fired():
            failed = ", ".join(f"{series['metric']['job']}: {series['value'][1]}" for series in unreached) or "none"
            raise Disagreement(f"in a healthy life these fired: {', '.join(sorted(fired))} (failed scrapes: {failed})")
        if faults := self.prometheus.rule_faults():
            raise Disagreement(f"rules could not be evaluated: {'; '.join(faults)}")
        self.told("nothing fires")
        self.every_metric_is_there()
        self.no_panel_is_empty()

    def clients_come_and_go(self) -> None:
        for _ in range(2):
            if not self.writer.heard(SOON):
                raise Disagreement("nothing was heard over the WebSocket")
        self.writer.leave()
        self.writer.listen()
        if not self.writer.heard(SOON):
            raise Disagreement("nothing was heard over the WebSocket that came back")

    def many_conversations(self) -> None:
        """However many there are, there are as many series. They are made in the database; a few of them are then used."""
        # Each route is asked once before.
        self.writer.ask("GET", f"/conversations/{self.writer.conversations[0]}")
        self.writer.delivery(self.writer.write(self.writer.conversations[0], CANARY))
        before = self.series()
        made = self.stack.postgres.run_sql("-c", MANY_CONVERSATIONS.format(count=MANY, user=self.writer.id), database=DATABASE)
        for conversation_id in made.split()[:: MANY // USED]:
            self.writer.ask("GET", f"/conversations/{conversation_id}")
            self.writer.deliver(conversation_id)
        if grown := self.series() - before:
            raise Disagreement(f"{MANY:,} conversations made these series: {', '.join(sorted(grown)[:10])}")
        self.told(f"{MANY:,} more conversations, {USED} of which are used, leave the series as they were: {len(before)}")

    def series(self) -> set[str]:
        """Everything but the values."""
        lines = (line for _, page in self.pages() for line in page.splitlines() if line and not line.startswith("#"))
        return {line.rpartition(" ")[0] for line in lines}

    def pages(self) -> Iterator[tuple[str, str]]:
        for service in (self.stack.api, self.stack.worker):
            yield service.title, text(f"{service.url}/metrics")

    def every_metric_is_there(self) -> None:
        stored = self.prometheus.metrics()
        if missing := dashboards.metrics().keys() - stored:
            raise Disagreement(f"these metrics are not there: {', '.join(sorted(missing))}")
        self.told(f"all {len(dashboards.metrics())} metrics of the table are there")

    def no_panel_is_empty(self) -> None:
        """Every query of every panel gives a number, over all that has happened: on a busy machine the call is long past."""
        asked = 0
        since = f"{int(time.monotonic() - self.began) + 1}s"
        empty = []
        for path in dashboards.board_files():
            for title, query in dashboards.queries(json.loads(path.read_text())):
                asked += 1
                full = dashboards.substituted(query, interval=since, range_=since)
                values = [float(series["value"][1]) for series in self.prometheus.query(full)]
                if not any(value == value for value in values):
                    empty.append(f"{path.stem}, {title}: {full}")
        if empty:
            raise Disagreement("these panels are empty:\n  " + "\n  ".join(empty))
        self.told(f"none of {asked} queries of the dashboards is empty")

    # Trouble.

    def outage(self) -> None:
        say("\n   2. The homeserver hangs, and somebody forgets a transaction")
        synapse = self.stack.synapse.process
        if synapse is None:
            raise Disagreement("the homeserver is not there")
        self.hold_a_snapshot()
        synapse.send(signal.SIGSTOP)
        try:
            self.await_alerts({"CircuitOpen"}, OUTAGE_SECONDS)
            # From now on nothing is tried, so nobody can have heard of it.
            self.call_that_cannot_ring()
            # Enough waits by now; more would only take its time afterwards.
            self.writer.resting = True
            self.await_alerts(OUTAGE - {"CircuitOpen"}, OUTAGE_SECONDS)
        finally:
            synapse.send(signal.SIGCONT)
        self.release_the_snapshot()
        started = time.monotonic()
        if not wait_until(lambda: self.waiting() == "0", CLEAR_SECONDS, pause=0.5):
            raise Disagreement(f"{self.waiting()} operations still wait")
        self.told(f"all that waited is delivered ({time.monotonic() - started:.0f} s)")
        self.writer.resting = False
        self.await_clear(OUTAGE - {"CallInviteExpired", "MatrixSendFailures", "OldestAgeBurnsFast"}, CLEAR_SECONDS)
        self.only(OUTAGE | WITH_OUTAGE)

    def hold_a_snapshot(self) -> None:
        """As somebody does who looks into the database, and goes home."""
        psql = programs() / "psql"
        script = "begin isolation level repeatable read; select count(*) from outbox; select pg_sleep(600);"
        command = [str(psql), "-X", "-q", "-d", self.stack.postgres.url(DATABASE), "-c", script]
        self.holder = spawn(command, self.stack.directory / "holder.log", tied=signal.SIGKILL)

    def release_the_snapshot(self) -> None:
        who = "query like '%pg_sleep(600)%' and pid <> pg_backend_pid()"
        self.stack.postgres.run_sql("-c", f"select pg_terminate_backend(pid) from pg_stat_activity where {who}")

    def call_that_cannot_ring(self) -> None:
        ada, grace = self.scene.users["Ada"], self.scene.users["Grace"]
        offer = {
            "conversation_id": self.scene.conversation_id,
            "invitee": str(grace.id),
            "sdp_offer": OFFER,
            "lifetime_ms": RING_MS,
        }
        self.scene.api(ada, "POST", "/calls/initiate", offer)
        self.told("Ada calls Grace, whose phone cannot ring")

    def dead_letter(self) -> None:
        say("\n   3. The homeserver refuses a message for good")
        conversation_id = self.writer.conversations[0]
        message = self.writer.write(conversation_id, f"{CANARY} {self.stack.word}")
        if not wait_until(lambda: self.writer.delivery(message) == "dead", SOON, pause=0.5):
            raise Disagreement(f"what is refused does not die: it is {self.writer.delivery(message)}")
        self.await_alerts({"DeadLetters"}, SOON)
        self.outboxctl("discard", message, "--reason", "nobody will take it")
        self.told("discarded by outboxctl")

    def revoked_token(self) -> None:
        say("\n   4. The access token is revoked, and the worker is taken away to give it another")
        stack = self.stack
        self.old_token = stack.secrets["MATRIX_ACCESS_TOKEN"]
        log_out(stack.synapse.url, self.old_token)
        self.await_alerts({"TokenInvalid"}, SOON)
        stack.worker.stop()
        self.await_alerts({"NoWorker"}, SOON)
        token = stack.secrets["MATRIX_ACCESS_TOKEN"] = service_account(stack.synapse)
        stack.worker.configure(worker_settings(stack.postgres, stack.synapse, stack.secrets, token))
        stack.bring_up(stack.worker)
        self.await_clear(None, CLEAR_SECONDS)
        self.only(OUTAGE | WITH_OUTAGE | WITH_TOKEN | {"DeadLetters", "TokenInvalid"})

    def aftermath(self) -> None:
        say("\n   5. What is left")
        self.writer.stop()
        for title, page in self.pages():
            if said := promtool("check", "metrics", given=page):
                raise Disagreement(f"promtool does not like the metrics of {title}:\n{said}")
        secrets = [CANARY, self.stack.word, OFFER[:40], ANSWER[:40], self.old_token, self.writer.token]
        secrets += [value.rpartition(":")[2] for value in self.stack.secrets.values()]
        secrets += [user.token for user in self.scene.users.values()]
        stored = "\n".join([*(page for _, page in self.pages()), json.dumps(self.prometheus.query('{__name__=~".+"}'))])
        if any(secret in stored for secret in secrets):
            raise Disagreement("a text or a secret can be read in the metrics")
        self.told("promtool likes the metrics, and no text and no secret can be read in them")
        if not wait_until(lambda: self.waiting() == "0", SOON, pause=0.5):
            raise Disagreement(f"{self.waiting()} operations still wait")
        self.told(f"all is delivered; the API failed {self.writer.refused} requests of the writer")
        if self.writer.refused:
            raise Disagreement("the API failed requests, though its database was there")

    def waiting(self) -> str:
        return self.stack.postgres.run_sql("-c", "select count(*) from outbox", database=DATABASE)

    def outboxctl(self, *arguments: str) -> None:
        environment = {"DATABASE_URL": self.stack.postgres.url(DATABASE), "USER": "oncall"}
        done = subprocess.run(
            [str(binary("outboxctl")), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise Disagreement(f"outboxctl {arguments[0]} failed: {done.stdout}{done.stderr}")

    # Alerts.

    def fired(self) -> set[str]:
        """What has fired since this was last asked."""
        seconds = max(1, int(time.time() - self.looked))
        self.looked = time.time()
        found = self.prometheus.query(f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{seconds}s]))')
        return {series["metric"]["alertname"] for series in found}

    def only(self, allowed: set[str]) -> None:
        if strays := self.fired() - allowed:
            raise Disagreement(f"these fired for nothing: {', '.join(sorted(strays))}")

    def await_alerts(self, wanted: set[str], seconds: float) -> None:
        started = time.monotonic()
        missing = set(wanted)

        def look() -> bool:
            for name in sorted(missing & self.prometheus.firing()):
                missing.discard(name)
                self.told(f"{name} fires ({time.monotonic() - started:.0f} s)")
            return not missing

        if not wait_until(look, seconds, pause=0.5):
            raise Disagreement(f"these do not fire: {', '.join(sorted(missing))}")

    def await_clear(self, names: set[str] | None, seconds: float) -> None:
        """Until these fire no more; without names, until nothing does."""
        started = time.monotonic()

        def left() -> set[str]:
            firing = self.prometheus.firing()
            return firing if names is None else firing & names

        if not wait_until(lambda: not left(), seconds, pause=0.5):
            raise Disagreement(f"these do not clear: {', '.join(sorted(left()))}")
        which = "all is clear" if names is None else f"{', '.join(sorted(names))} clear"
        self.told(f"{which} ({time.monotonic() - started:.0f} s)")

    def told(self, what: str) -> None:
        say(f"{time.monotonic() - self.began:5.0f} s  {what}")


def prepare() -> None:
    """Only installs what is missing, or names it."""
    program("prometheus")
