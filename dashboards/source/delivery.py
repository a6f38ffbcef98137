"""From the database to Matrix."""

from __future__ import annotations

from .panels import FEW_ARE_WELL, GREEN, ONE_IS_WELL, RED, YELLOW, Dashboard, Row, bars, graph, stat, steps
from .queries import FIRING, MINE, increase, or_none, quantile, rate, worst

DASHBOARD = Dashboard(
    name="delivery",
    title="delivery",
    about="Whether what people write gets to Matrix, how long it takes, and what keeps it",
    job="matrix-outbox-worker",
    rows=[
        Row(
            "Is it healthy?",
            [
                stat("Pages", "Alerts that somebody has to get up for. None.", FIRING.format("page")),
                stat("Tickets", "Alerts for the day. None.", FIRING.format("ticket"), thresholds=steps((1, YELLOW))),
                stat(
                    "Workers",
                    "Workers that answer. As many as you run; without any, nothing is delivered.",
                    or_none('sum(up{job="matrix-outbox-worker"})'),
                    thresholds=ONE_IS_WELL,
                    runbook="NoWorker",
                ),
                stat(
                    "Homeserver",
                    "The circuit breaker of the worker that is worst off. Closed: the homeserver answers. Open: it is down, or "
                    "does not want our account, and is only probed. Ramping up: it has come back, and gets more by and by.",
                    worst("outbox_circuit_state"),
                    words={"0": ("answers", GREEN), "1": ("ramping up", YELLOW), "2": ("DOWN", RED)},
                    thresholds=steps((1, YELLOW), (2, RED)),
                    runbook="CircuitOpen",
                ),
                stat(
                    "Access token",
                    "Whether the homeserver accepts the token of every worker.",
                    "min(matrix_token_accepted)",
                    words={"1": ("accepted", GREEN), "0": ("REVOKED", RED)},
                    thresholds=ONE_IS_WELL,
                    runbook="TokenInvalid",
                ),
                stat(
                    "Paused",
                    "Whether operators have paused everything, or a class of lanes. Not, unless somebody has reason to.",
                    'max(outbox_paused{scope=~"all|call|chat"})',
                    words={"0": ("no", GREEN), "1": ("PAUSED", YELLOW)},
                    thresholds=steps((1, YELLOW)),
                    runbook="PauseForgotten",
                ),
            ],
        ),
        Row(
            "Since when not?",
            [
                graph(
                    "How long the oldest has waited",
                    "A second or two; up to a minute for a moment, such as when the homeserver restarts. A line that climbs as "
                    "time passes is one operation that waits: held lanes count too, so look at those first.",
                    {"{{lane_class}}": worst("outbox_oldest_age_seconds", "lane_class")},
                    unit="s",
                    thresholds=steps((60, RED)),
                    runbook="OldestAgeBurnsFast",
                ),
                graph(
                    "From written to delivered",
                    "Half below 100 ms; 99 of 100 below a second or two. Far above that after an outage, while what waited "
                    "goes out.",
                    {
                        "half, {{lane_class}}": quantile(0.5, "outbox_end_to_end_seconds", "lane_class"),
                        "99 %, {{lane_class}}": quantile(0.99, "outbox_end_to_end_seconds", "lane_class"),
                    },
                    unit="s",
                    thresholds=steps((60, RED)),
                    runbook="DeliveriesLate",
                ),
                graph(
                    "Waiting operations",
                    "Near zero. A hill that shrinks is work after an outage; a plateau is held or paused.",
                    {"{{lane_class}}": worst("outbox_depth", "lane_class")},
                ),
                graph(
                    "Delivered and failed",
                    "Delivered follows what people write. Failed is near zero; a tenth of all is an alert.",
                    {
                        "delivered": rate("matrix_send_success_total"),
                        "failed": or_none(rate("matrix_send_failure_total")),
                    },
                    unit="ops",
                    runbook="MatrixSendFailures",
                ),
            ],
        ),
        Row(
            "Where is it stuck?",
            [
                graph(
                    "Where the time goes (99 %)",
                    "In line: from when an operation might have gone until a worker took it; much of it means too few slots or "
                    "a slow database. At the homeserver: how long that took to answer.",
                    {
                        "in line, {{lane_class}}": quantile(0.99, "outbox_queue_wait_seconds", "lane_class"),
                        "at the homeserver, {{lane_class}}": quantile(0.99, "outbox_send_seconds", "lane_class"),
                    },
                    unit="s",
                ),
                graph(
                    "Failures by what they mean",
                    "Nothing. down, ambiguous, server_error: the homeserver or the way to it. rate_limited: lift its limits. "
                    "account: the token. room: a conversation is held. own: a dead letter.",
                    {"{{class}} {{errcode}}": or_none(rate("matrix_send_failure_total", by="class, errcode"))},
                    unit="ops",
                    stacked=True,
                    runbook="MatrixSendFailures",
                ),
                graph(
                    "Circuit",
                    "0. At 2 nothing is claimed and the homeserver is asked once a second whether it is back; 1 while it gets "
                    "more again.",
                    {"{{instance}}": f"max by (instance) (outbox_circuit_state{{{MINE}}})"},
                    thresholds=steps((2, RED)),
                    decimals=0,
                    width=8,
                    runbook="CircuitOpen",
                ),
                graph(
                    "Slots in use",
                    "Well below 100 %. Near it for long, and with long waits in line, raise OUTBOX_SLOTS or add a worker.",
                    {
                        "{{instance}}": f"sum by (instance) (outbox_lanes_underway{{{MINE}}})"
                        f" / sum by (instance) (outbox_slots{{{MINE}}})"
                    },
                    unit="percentunit",
                    thresholds=steps((0.9, YELLOW)),
                    width=8,
                ),
                graph(
                    "Resting because of a rate limit",
                    "0. Anything else: the homeserver limits our account, and everybody waits. Lift its limits.",
                    {"seconds of each second": rate("outbox_rate_limited_seconds_total")},
                    unit="percentunit",
                    width=8,
                    runbook="RateLimited",
                ),
                graph(
                    "Rooms",
                    "created follows new conversations. failed is nothing.",
                    {"{{result}}": rate("matrix_room_creation_total", by="result")},
                    unit="ops",
                    width=8,
                    runbook="RoomCreationFails",
                ),
                graph(
                    "Attempts by how they ended",
                    "delivered and done. ambiguous: repeated under the same transaction id, safely.",
                    {"{{outcome}}": rate("outbox_attempts_total", by="outcome")},
                    unit="ops",
                    stacked=True,
                    width=8,
                ),
                graph(
                    "Made certain",
                    "Near zero. Look-ups and closed transaction ids follow attempts of which nobody knew how they ended; "
                    "leases that lapsed follow a worker that was killed; too late is one that was overtaken.",
                    {
                        "looked up": rate("outbox_lookups_total"),
                        "closed": rate("outbox_voids_total"),
                        "lease lapsed": rate("outbox_lease_expired_total"),
                        "too late": rate("outbox_fenced_settles_total"),
                    },
                    unit="ops",
                    width=8,
                    runbook="LeasesExpire",
                ),
            ],
        ),
        Row(
            "Who is affected?",
            [
                stat(
                    "Conversations that do not go on",
                    "Conversations of which a lane is held, or waits after a failed attempt. None, or few and for seconds. "
                    "Which: outboxctl list --state held, and outboxctl list --state live.",
                    worst("outbox_blocked_rooms"),
                    thresholds=FEW_ARE_WELL,
                    runbook="LanesHeld",
                ),
                stat(
                    "Held lanes",
                    "Lanes that wait for somebody. None. Which, and why: outboxctl list --state held.",
                    worst("outbox_held_lanes"),
                    runbook="LanesHeld",
                ),
                stat(
                    "Dead letters",
                    "Operations that are not tried again by themselves, until somebody requeues or discards them. "
                    "Which, and what to do: outboxctl list --groups.",
                    worst("outbox_dead_letters"),
                    thresholds=FEW_ARE_WELL,
                    runbook="DeadLetters",
                ),
                stat(
                    "Lanes paused until a time",
                    "As many as operators have paused. They go on by themselves.",
                    'max(outbox_paused{scope="lane"})',
                    thresholds=steps((1, YELLOW)),
                ),
                stat(
                    "In doubt for too long",
                    "Operations that may have arrived so long ago that the homeserver may forget them. None.",
                    worst("outbox_dedupe_window_risk"),
                    runbook="DedupeWindowRisk",
                ),
                stat(
                    "Lasted too long to be sent",
                    "What expired in the time that is looked at: signals of calls that were over. Few.",
                    increase("outbox_expired_total"),
                    thresholds=FEW_ARE_WELL,
                    decimals=0,
                    runbook="CallInviteExpired",
                ),
                graph(
                    "Dead letters that came, and that operators acted on",
                    "Nothing. What comes back is sent at its old place.",
                    {
                        "died": increase("outbox_dead_total", over="$__rate_interval"),
                        "requeued": "max(increase(outbox_requeued_total[$__rate_interval]))",
                        "discarded": "max(increase(outbox_discarded_total[$__rate_interval]))",
                    },
                    runbook="DeadLetters",
                ),
                bars(
                    "Delivered, by what it was",
                    "In the time that is looked at. Mostly messages.",
                    {"{{kind}}": increase("matrix_send_success_total", by="kind")},
                    decimals=0,
                ),
            ],
        ),
    ],
)
