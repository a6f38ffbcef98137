"""The REST API and its WebSocket."""

from __future__ import annotations

from .panels import FEW_ARE_WELL, GREEN, NO_LIMIT, ONE_IS_WELL, RED, YELLOW, Dashboard, Row, bars, graph, stat, steps
from .queries import MINE, increase, or_none, quantile, rate, worst

REQUESTS = "http_requests_total"
FAULTS = 'status=~"5.."'

DASHBOARD = Dashboard(
    name="api",
    title="API",
    about="Whether callers are answered, and whether clients hear what happens",
    job="matrix-outbox-api",
    rows=[
        Row(
            "Is it healthy?",
            [
                stat(
                    "API processes",
                    "Processes that answer. As many as you run.",
                    or_none('sum(up{job="matrix-outbox-api"})'),
                    thresholds=ONE_IS_WELL,
                    runbook="NoApi",
                ),
                stat(
                    "Failed requests",
                    "The share of requests of the last 5 minutes that was answered with 5xx. None.",
                    f"({or_none(increase(REQUESTS, FAULTS, over='5m'))}) / {increase(REQUESTS, over='5m')}",
                    unit="percentunit",
                    thresholds=steps((0.001, YELLOW), (0.05, RED)),
                    runbook="ApiErrors",
                ),
                stat(
                    "Answer time (99 %)",
                    "99 of 100 requests below a quarter of a second, those that wait for a delivery apart.",
                    quantile(0.99, "http_request_duration_seconds", labels='route!="/ws"'),
                    unit="s",
                    thresholds=steps((1, YELLOW), (5, RED)),
                ),
                stat(
                    "Held back from clients",
                    "How long the oldest event has waited that clients cannot be told of, since an older transaction is open. 0.",
                    worst("event_log_lag_seconds"),
                    unit="s",
                    thresholds=steps((5, YELLOW), (15, RED)),
                    runbook="EventLogLag",
                ),
                stat(
                    "Panics",
                    "Faults of ours in the last hour. None.",
                    increase("api_panics_total", over="1h"),
                    decimals=0,
                    runbook="OwnFaults",
                ),
                stat(
                    "Wake-ups heard",
                    "Whether every API process hears of what happens at once. If not it polls, up to half a second later.",
                    "min(event_log_listening)",
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
                    "Requests by status",
                    "2xx, and some 4xx of callers' mistakes. 5xx: 503 while the database is away, 500 a fault of ours.",
                    {"{{status}}": rate("http_requests_total", by="status")},
                    unit="reqps",
                    stacked=True,
                    runbook="ApiErrors",
                ),
                graph(
                    "Answer time",
                    "Half in some 10 ms, 99 of 100 below a quarter of a second. Requests with Prefer: wait take longer.",
                    {
                        "half": quantile(0.5, "http_request_duration_seconds", labels='route!="/ws"'),
                        "99 %": quantile(0.99, "http_request_duration_seconds", labels='route!="/ws"'),
                    },
                    unit="s",
                ),
                graph(
                    "Held back from clients",
                    "0. A line that climbs: a transaction is open somewhere on the database server.",
                    {"{{job}}": f"max by (job) (event_log_lag_seconds)"},
                    unit="s",
                    thresholds=steps((15, RED)),
                    runbook="EventLogLag",
                ),
                graph(
                    "WebSockets",
                    "As many as clients are connected. A cliff is a restart, or a network that broke.",
                    {"{{instance}}": f"sum by (instance) (ws_connections{{{MINE}}})"},
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Where is it stuck?",
            [
                graph(
                    "Slowest routes (99 %)",
                    "Which route makes the answer time what it is.",
                    {"{{route}}": f"topk(5, {quantile(0.99, 'http_request_duration_seconds', 'route')})"},
                    unit="s",
                ),
                graph(
                    "Failed requests by route",
                    "Nothing.",
                    {"{{route}} {{status}}": or_none(rate("http_requests_total", FAULTS, by="route, status"))},
                    unit="reqps",
                    stacked=True,
                    runbook="ApiErrors",
                ),
                graph(
                    "Connections to the database",
                    "used well below DATABASE_MAX_CONNECTIONS (16). At it for long, requests wait for a connection.",
                    {"{{state}}, {{instance}}": f"sum by (state, instance) (database_connections{{{MINE}}})"},
                    width=8,
                ),
                graph(
                    "Failed reads of the event log",
                    "Nothing; each is repeated.",
                    {"failed": rate("event_log_errors_total")},
                    unit="ops",
                    width=8,
                    runbook="DatabaseErrors",
                ),
                graph(
                    "Wake-ups sent",
                    "They follow what is written, and many commits share one. None while people write: OUTBOX_NOTIFY is off.",
                    {"to workers": rate("outbox_wakeups_sent_total"), "to API processes": rate("event_log_wakeups_sent_total")},
                    unit="ops",
                    width=8,
                    runbook="ListeningLost",
                ),
            ],
        ),
        Row(
            "Who is affected?",
            [
                graph(
                    "WebSockets that ended, by why",
                    "gone and expired are usual. slow: clients that do not read. silent: a network that broke.",
                    {"{{why}}": rate("ws_closed_total", by="why")},
                    unit="ops",
                    stacked=True,
                    width=8,
                ),
                graph(
                    "Clients that came back",
                    "resumed: they were told what they had missed. The others have to read anew: too_old was away for longer "
                    "than EVENTS_RETENTION.",
                    {"resumed": rate("ws_resumes_total"), "{{reason}}": rate("ws_resyncs_total", by="reason")},
                    unit="ops",
                    width=8,
                ),
                graph(
                    "Refused by a limit",
                    "Nothing, or single users that ask too much. Those of calls stand on their own dashboard.",
                    {"requests": rate("api_requests_limited_total"), "closed, too slow": rate("ws_slow_clients_total")},
                    unit="reqps",
                    width=8,
                ),
                bars(
                    "Frames sent, by type",
                    "In the time that is looked at.",
                    {"{{type}}": increase("ws_frames_total", by="type")},
                    decimals=0,
                ),
                stat(
                    "Events that could not be shown",
                    "In the time that is looked at, since their content could not be opened: a key is missing from "
                    "CONTENT_KEYS. None.",
                    increase("ws_frames_unreadable_total"),
                    decimals=0,
                    thresholds=FEW_ARE_WELL,
                    width=6,
                ),
                stat(
                    "Requests",
                    "In the time that is looked at.",
                    increase("http_requests_total"),
                    thresholds=NO_LIMIT,
                    decimals=0,
                    width=6,
                ),
            ],
        ),
    ],
)
