"""The database, as far as it concerns us."""

from __future__ import annotations

from .panels import FEW_ARE_WELL, GREEN, RED, YELLOW, Dashboard, Row, graph, stat, steps
from .queries import MINE, increase, quantile, rate, worst

ROOMS = "matrix_room_cache_lookups_total"
HIT = 'result="hit"'

DASHBOARD = Dashboard(
    name="postgres",
    title="Postgres",
    about="Whether the database keeps up: held snapshots, dead rows, wake-ups, connections",
    job="matrix-outbox-(api|worker)",
    rows=[
        Row(
            "Is it healthy?",
            [
                stat(
                    "Failed calls",
                    "Calls of the workers to the database that failed in the last 5 minutes. None.",
                    increase("outbox_database_errors_total", over="5m"),
                    thresholds=FEW_ARE_WELL,
                    decimals=0,
                    runbook="DatabaseErrors",
                ),
                stat(
                    "Xmin horizon held for",
                    "For how long something has kept dead rows from being cleared away. Seconds.",
                    worst("postgres_xmin_horizon_age_seconds"),
                    unit="s",
                    thresholds=steps((30, YELLOW), (60, RED)),
                    runbook="XminHeld",
                ),
                stat(
                    "Queue of NOTIFY",
                    "How full it is. Near 0; full, every commit that notifies fails.",
                    worst("postgres_notification_queue_usage_ratio"),
                    unit="percentunit",
                    thresholds=steps((0.05, YELLOW), (0.25, RED)),
                    runbook="NotifyQueueFills",
                ),
                stat(
                    "Connections in use",
                    "Of those that the server allows, by anybody. Well below 90 %.",
                    "max(postgres_connections) / max(postgres_connections_max)",
                    unit="percentunit",
                    thresholds=steps((0.7, YELLOW), (0.9, RED)),
                    runbook="ConnectionsRunOut",
                ),
                stat(
                    "Event log held back for",
                    "By a transaction that has written and is still open. 0.",
                    worst("event_log_lag_seconds"),
                    unit="s",
                    thresholds=steps((5, YELLOW), (15, RED)),
                    runbook="EventLogLag",
                ),
                stat(
                    "Wake-ups heard",
                    "Whether all workers hear them. If not they poll, up to a second later.",
                    "min(outbox_listening)",
                    words={"1": ("yes", GREEN), "0": ("NO", YELLOW)},
                    thresholds=steps((1, GREEN), start=YELLOW),
                    runbook="ListeningLost",
                ),
            ],
        ),
        Row(
            "Since when not?",
            [
                graph(
                    "Xmin horizon",
                    "A low saw. A line that climbs: somebody keeps a snapshot, a slot or a prepared transaction, and claims get "
                    "slower with every operation done.",
                    {"seconds": worst("postgres_xmin_horizon_age_seconds")},
                    unit="s",
                    thresholds=steps((60, RED)),
                    runbook="XminHeld",
                ),
                graph(
                    "Failed calls of the workers",
                    "Nothing; each is repeated. All loops at once: the database is away. gauges alone: it is slow.",
                    {"{{loop}}": rate("outbox_database_errors_total", by="loop")},
                    unit="ops",
                    runbook="DatabaseErrors",
                ),
            ],
        ),
        Row(
            "Where is it stuck?",
            [
                graph(
                    "Dead rows",
                    "Saws: autovacuum clears them away. A line that only climbs: it cannot, or does not come round.",
                    {"{{table}}": worst("postgres_dead_tuples", "table")},
                    width=8,
                    runbook="XminHeld",
                ),
                graph(
                    "Dead rows for each live one",
                    "lanes and outbox are small and change with every operation, so above 1 for a while is usual there.",
                    {"{{table}}": "max by (table) (postgres_dead_tuples) / (max by (table) (postgres_live_tuples) + 1)"},
                    width=8,
                    runbook="XminHeld",
                ),
                graph(
                    "Size on disk",
                    "messages grows with what is written. outbox and lanes stay as they are; if not, they are bloated.",
                    {"{{table}}": worst("postgres_table_size_bytes", "table")},
                    unit="bytes",
                    width=8,
                ),
                graph(
                    "Connections",
                    "Of the server, and below them those of our processes.",
                    {
                        "allowed": worst("postgres_connections_max"),
                        "all": worst("postgres_connections"),
                        "ours, {{state}}": f"sum by (state) (database_connections{{{MINE}}})",
                    },
                    width=8,
                    runbook="ConnectionsRunOut",
                ),
                graph(
                    "Wake-ups heard",
                    "1. At 0 a process polls.",
                    {"{{instance}}": f"min by (instance) (outbox_listening{{{MINE}}} or event_log_listening{{{MINE}}})"},
                    decimals=0,
                    width=8,
                    runbook="ListeningLost",
                ),
                graph(
                    "Rooms found in memory",
                    "Near 100 % after a while. Each miss is a query.",
                    {"found": f"{rate(ROOMS, HIT)} / {rate(ROOMS)}"},
                    unit="percentunit",
                    width=8,
                ),
            ],
        ),
        Row(
            "Who is affected?",
            [
                graph(
                    "What waits",
                    "Operations still to be done. When the database is slow, this grows with nothing wrong at the homeserver.",
                    {"{{lane_class}}": worst("outbox_depth", "lane_class")},
                ),
                graph(
                    "Time in line (99 %)",
                    "Until a worker took it: milliseconds. What a slow database makes long.",
                    {
                        "{{lane_class}}": quantile(0.99, "outbox_queue_wait_seconds", "lane_class"),
                    },
                    unit="s",
                ),
                graph(
                    "Results the database did not take, and old events cut",
                    "refused: nothing. cut: the event log is cut every minute.",
                    {"refused": rate("outbox_settlements_refused_total"), "cut": rate("event_log_forgotten_total")},
                    unit="ops",
                    runbook="OwnFaults",
                ),
                graph(
                    "Attempts broken off",
                    "Nothing, but when workers stop.",
                    {"broken off": rate("outbox_attempts_broken_off_total")},
                    unit="ops",
                    runbook="OwnFaults",
                ),
            ],
        ),
    ],
)
