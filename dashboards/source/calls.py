"""Calls over Matrix."""

from __future__ import annotations

from .panels import FEW_ARE_WELL, GREEN, NO_LIMIT, RED, YELLOW, Dashboard, Row, bars, graph, stat, steps
from .queries import increase, quantile, rate, worst

EXPIRED = 'reason="expired"'

DASHBOARD = Dashboard(
    name="calls",
    title="calls",
    about="Whether phones on Matrix ring in time, and how calls end",
    job="matrix-outbox-(api|worker)",
    rows=[
        Row(
            "Is it healthy?",
            [
                stat(
                    "Phones that did not ring",
                    "Invites that expired in the last hour before they could leave. None.",
                    increase("matrix_voip_invite_failed_total", EXPIRED, over="1h"),
                    decimals=0,
                    runbook="CallInviteExpired",
                ),
                stat(
                    "Invites refused",
                    "Invites of the last hour that the homeserver would not take. None.",
                    increase("matrix_voip_invite_failed_total", 'reason!="expired"', over="1h"),
                    decimals=0,
                    runbook="DeadLetters",
                ),
                stat(
                    "Oldest signal",
                    "How long the oldest signal of a call has waited. Well below a second; 5 seconds are too long for who waits "
                    "for a ring.",
                    'max(outbox_oldest_age_seconds{lane_class="call"})',
                    unit="s",
                    thresholds=steps((2, YELLOW), (5, RED)),
                    runbook="OldestAgeBurnsFast",
                ),
                stat(
                    "Calls paused",
                    "Whether operators have paused calls, or everything.",
                    'max(outbox_paused{scope=~"all|call"})',
                    words={"0": ("no", GREEN), "1": ("PAUSED", YELLOW)},
                    thresholds=steps((1, YELLOW)),
                    runbook="PauseForgotten",
                ),
                stat(
                    "Homeserver",
                    "While the circuit is open nobody on Matrix is rung.",
                    worst("outbox_circuit_state"),
                    words={"0": ("answers", GREEN), "1": ("ramping up", YELLOW), "2": ("DOWN", RED)},
                    thresholds=steps((1, YELLOW), (2, RED)),
                    runbook="CircuitOpen",
                ),
                stat(
                    "Answered on Matrix",
                    "Of the invites of the time that is looked at, the share that was answered on Matrix. What people do; a "
                    "sudden fall is worth a look.",
                    f"{increase('matrix_voip_answer_received_total')} / {increase('matrix_voip_invite_sent_total')}",
                    unit="percentunit",
                    thresholds=NO_LIMIT,
                ),
            ],
        ),
        Row(
            "Since when not?",
            [
                graph(
                    "Invites",
                    "sent follows the calls that are placed. Failed is nothing.",
                    {
                        "sent": rate("matrix_voip_invite_sent_total"),
                        "failed: {{reason}}": rate("matrix_voip_invite_failed_total", by="reason"),
                    },
                    unit="ops",
                    runbook="CallInviteExpired",
                ),
                graph(
                    "From a signal's being written to its delivery",
                    "Half below 100 ms, 99 of 100 below half a second: also while messages queue up, since calls go first.",
                    {
                        "half": quantile(0.5, "outbox_end_to_end_seconds", labels='lane_class="call"'),
                        "99 %": quantile(0.99, "outbox_end_to_end_seconds", labels='lane_class="call"'),
                    },
                    unit="s",
                    thresholds=steps((5, RED)),
                    runbook="OldestAgeBurnsFast",
                ),
            ],
        ),
        Row(
            "Where is it stuck?",
            [
                graph(
                    "A signal's time (99 %)",
                    "In line: until a worker took it. At the homeserver: until that answered.",
                    {
                        "in line": quantile(0.99, "outbox_queue_wait_seconds", labels='lane_class="call"'),
                        "at the homeserver": quantile(0.99, "outbox_send_seconds", labels='lane_class="call"'),
                    },
                    unit="s",
                    width=8,
                ),
                graph(
                    "Signals that wait",
                    "Near zero.",
                    {"waiting": 'max(outbox_depth{lane_class="call"})'},
                    width=8,
                ),
                graph(
                    "What is sent",
                    "Candidates come in batches: many of them, few events. Answers are those that came from Matrix.",
                    {
                        "candidates": rate("matrix_voip_ice_candidates_sent_total"),
                        "answers": rate("matrix_voip_answer_received_total"),
                        "hangups": rate("matrix_voip_hangup_sent_total"),
                    },
                    unit="ops",
                    width=8,
                ),
                graph(
                    "Hangups by reason",
                    "user_hangup and invite_timeout. ice_failed and ice_timeout: devices do not find each other; look at the "
                    "TURN servers. unknown_error: ended by us.",
                    {"{{reason}}": rate("matrix_voip_hangup_sent_total", by="reason")},
                    unit="ops",
                    stacked=True,
                ),
                graph(
                    "How long calls last",
                    "As long as people talk. Many that end within seconds had no sound: look at the TURN servers.",
                    {
                        "half": quantile(0.5, "matrix_voip_call_duration_seconds"),
                        "90 %": quantile(0.9, "matrix_voip_call_duration_seconds"),
                    },
                    unit="s",
                ),
            ],
        ),
        Row(
            "Who is affected?",
            [
                bars(
                    "Calls by how they came out",
                    "In the time that is looked at. Unanswered ones are usual; expired ones were never heard of on Matrix.",
                    {
                        "invites sent": increase("matrix_voip_invite_sent_total"),
                        "answered on Matrix": increase("matrix_voip_answer_received_total"),
                        "nobody answered": increase("matrix_voip_calls_timed_out_total"),
                        "phone did not ring": increase("matrix_voip_invite_failed_total", EXPIRED),
                    },
                    decimals=0,
                ),
                graph(
                    "Calls refused by a limit",
                    "Nothing. caller: one user placed too many; callee: one was rung too often. An attack, or a limit that is "
                    "too low (CALLS_PER_CALLER, CALLS_PER_CALLEE).",
                    {"{{role}}": rate("calls_limited_total", by="role")},
                    unit="ops",
                    thresholds=FEW_ARE_WELL,
                ),
            ],
        ),
    ],
)
