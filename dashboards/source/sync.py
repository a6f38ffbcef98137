"""From Matrix to the database."""

from __future__ import annotations

from .panels import FEW_ARE_WELL, ONE_IS_WELL, RED, YELLOW, Dashboard, Row, bars, graph, stat, steps
from .queries import MINE, increase, rate, worst

DASHBOARD = Dashboard(
    name="sync",
    title="sync",
    about="Whether what people do on Matrix arrives here, and what was left out",
    job="matrix-outbox-worker",
    rows=[
        Row(
            "Is it healthy?",
            [
                stat(
                    "Last read",
                    "How long ago Matrix was last read to its end. Up to half a minute (MATRIX_SYNC_HOLD) while nothing "
                    "happens there.",
                    worst("matrix_sync_age_seconds"),
                    unit="s",
                    thresholds=steps((60, YELLOW), (90, RED)),
                    runbook="SyncStalled",
                ),
                stat(
                    "Readers",
                    "Workers that read Matrix. One; for seconds none, when another takes over.",
                    "sum(matrix_sync_leader)",
                    thresholds=ONE_IS_WELL,
                    runbook="SyncStalled",
                ),
                stat(
                    "Age of the newest event",
                    "How old the newest event was when it was applied. Well below a second.",
                    worst("matrix_sync_lag_seconds"),
                    unit="s",
                    thresholds=steps((10, YELLOW), (60, RED)),
                    runbook="SyncLate",
                ),
                stat(
                    "Crashes of the loop",
                    "In the last hour. None; it begins again by itself.",
                    increase("matrix_sync_crashes_total", over="1h"),
                    decimals=0,
                    runbook="SyncCrashed",
                ),
                stat(
                    "Kept, not applied",
                    "Events that wait for what they relate to, or that made no sense. Few.",
                    "sum(max by (cause) (matrix_sync_inbox_depth))",
                    thresholds=steps((100, YELLOW)),
                ),
                stat(
                    "Failed syncs",
                    "In the last hour. None, or few; each is repeated.",
                    increase("matrix_sync_failures_total", over="1h"),
                    thresholds=FEW_ARE_WELL,
                    decimals=0,
                    runbook="SyncStalled",
                ),
            ],
        ),
        Row(
            "Since when not?",
            [
                graph(
                    "How long ago Matrix was last read",
                    "A saw with teeth of at most half a minute. A line that climbs: nothing is read.",
                    {"seconds ago": worst("matrix_sync_age_seconds")},
                    unit="s",
                    thresholds=steps((90, RED)),
                    runbook="SyncStalled",
                ),
                graph(
                    "Age of the newest event",
                    "Well below a second. High after an outage, while what happened meanwhile is fetched.",
                    {"{{instance}}": f"max by (instance) (matrix_sync_lag_seconds{{{MINE}}})"},
                    unit="s",
                    thresholds=steps((60, RED)),
                    runbook="SyncLate",
                ),
            ],
        ),
        Row(
            "Where is it stuck?",
            [
                graph(
                    "Events",
                    "received: all that Matrix told. Our own come back as echoes; the others are applied.",
                    {
                        "received": rate("matrix_sync_events_received_total"),
                        "applied": rate("matrix_sync_events_applied_total"),
                        "echoes": rate("matrix_sync_echoes_total"),
                    },
                    unit="ops",
                ),
                graph(
                    "Failures and crashes",
                    "Nothing. Failures in a row: the homeserver does not answer. Crashes: a fault of ours, see the log.",
                    {
                        "failed syncs": rate("matrix_sync_failures_total"),
                        "crashes": rate("matrix_sync_crashes_total"),
                    },
                    unit="ops",
                    runbook="SyncCrashed",
                ),
                graph(
                    "Who reads",
                    "One worker at 1. Changing often: workers lose the lease; look at the database.",
                    {"{{instance}}": f"max by (instance) (matrix_sync_leader{{{MINE}}})"},
                    decimals=0,
                    width=8,
                    runbook="SyncStalled",
                ),
                graph(
                    "Known already",
                    "echo: our own operations, settled by their answer before. redelivery: told twice. Neither counts twice.",
                    {"{{source}}": rate("matrix_duplicate_events_total", by="source")},
                    unit="ops",
                    width=8,
                ),
                graph(
                    "Gaps that were fetched",
                    "Near zero. Many: more happens in a room between two syncs than MATRIX_SYNC_LIMIT.",
                    {"gaps": rate("matrix_sync_gaps_total")},
                    unit="ops",
                    width=8,
                ),
            ],
        ),
        Row(
            "Who is affected?",
            [
                graph(
                    "Left out, by reason",
                    "Near zero. unknown_room: a room of no conversation. own_without_operation: somebody else uses the service "
                    "account. The others made no sense to us.",
                    {"{{reason}}": rate("matrix_sync_events_skipped_total", by="reason")},
                    unit="ops",
                    stacked=True,
                ),
                graph(
                    "Kept, not applied",
                    "awaits_target: edits, redactions and replies whose event has not come. poison: events that made no sense, "
                    "kept for 30 days.",
                    {
                        "{{cause}}": worst("matrix_sync_inbox_depth", "cause"),
                        "parked, a second": rate("matrix_sync_events_parked_total"),
                    },
                ),
                bars(
                    "Operations settled by their echo",
                    "In the time that is looked at. true: nobody had answered for it, and it was seen in its room.",
                    {"{{settled}}": increase("matrix_sync_echoes_total", by="settled")},
                    decimals=0,
                ),
                bars(
                    "Invitations of the service account by strangers",
                    "In the time that is looked at. Few.",
                    {"{{answer}}": increase("matrix_invites_total", by="answer")},
                    decimals=0,
                ),
            ],
        ),
    ],
)
