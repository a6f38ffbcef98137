//! The table of metrics.
//!
//! The tables in `worker/OPERATING.md` are made from it: `make docs`.

use super::{Counter, Gauge, Histogram, LabelOf, Metric, OTHER, Source, Values};

/// Kinds of operations.
pub const KINDS: Values = Values::Of(&[
    "message",
    "edit",
    "redact",
    "react",
    "invite",
    "remove",
    "call_invite",
    "call_candidates",
    "call_answer",
    "call_select_answer",
    "call_negotiate",
    "call_sdp_stream_metadata_changed",
    "call_reject",
    "call_hangup",
]);

/// Classes of lanes.
pub const LANE_CLASSES: Values = Values::Of(&["call", "chat"]);

/// How attempts end; see `Outcome`.
pub const OUTCOMES: Values = Values::Rare(
    &[
        "delivered",
        "done",
        "refused",
        "ambiguous",
        "room_fault",
        "own_fault",
        "gave_up",
        "parent_dead",
        "expired",
        "not_there",
    ],
    1,
);

/// What a failure means; see the worker's table of errors.
pub const CLASSES: Values = Values::Of(&[
    "down",
    "ambiguous",
    "server_error",
    "rate_limited",
    "account",
    "room",
    "own",
    "not_matrix",
    "unknown",
]);

/// What a failure's code is called when the answer had none, or when there was no answer.
pub const NO_ERRCODE: &str = "none";

/// Error codes of Matrix that a homeserver may answer us with. Others are [`OTHER`]: whoever stands before the homeserver
/// may say anything.
pub const ERRCODES: Values = Values::Rare(
    &[
        NO_ERRCODE,
        "M_BAD_ALIAS",
        "M_BAD_JSON",
        "M_BAD_STATE",
        "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM",
        "M_CONSENT_NOT_GIVEN",
        "M_DUPLICATE_ANNOTATION",
        "M_EXCLUSIVE",
        "M_FORBIDDEN",
        "M_GUEST_ACCESS_FORBIDDEN",
        "M_INCOMPATIBLE_ROOM_VERSION",
        "M_INVALID_PARAM",
        "M_INVALID_ROOM_STATE",
        "M_INVALID_USERNAME",
        "M_INVITE_BLOCKED",
        "M_LIMIT_EXCEEDED",
        "M_MISSING_PARAM",
        "M_MISSING_TOKEN",
        "M_NOT_FOUND",
        "M_NOT_JOINED",
        "M_NOT_JSON",
        "M_RESOURCE_LIMIT_EXCEEDED",
        "M_ROOM_IN_USE",
        "M_TOO_LARGE",
        "M_UNABLE_TO_AUTHORISE_JOIN",
        "M_UNKNOWN",
        "M_UNKNOWN_TOKEN",
        "M_UNRECOGNIZED",
        "M_UNSUPPORTED_ROOM_VERSION",
        "M_USER_DEACTIVATED",
        "M_USER_LOCKED",
        "M_USER_SUSPENDED",
        OTHER,
    ],
    1,
);

/// How a hangup says why a call ended.
pub const HANGUPS: Values = Values::Of(&[
    "user_hangup",
    "invite_timeout",
    "ice_failed",
    "ice_timeout",
    "user_media_failed",
    "user_busy",
    "unknown_error",
]);

/// Why what Matrix told was left out.
pub const SKIPPED: Values = Values::Of(&[
    "unknown_room",
    "user_format",
    "own_without_operation",
    "edit_by_another",
    "edit_from_another_room",
    "edit_of_no_message",
    "reaction_to_no_message",
    "reaction_key",
    "not_a_member",
    "poison",
]);

/// Methods of requests.
pub const METHODS: Values = Values::Of(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", OTHER]);

/// Statuses that the API answers with.
pub const STATUSES: Values = Values::Of(&[
    "101", "200", "201", "202", "204", "303", "304", "400", "401", "403", "404", "405", "408", "409", "410", "412",
    "413", "415", "422", "426", "429", "500", "503", OTHER,
]);

/// Frames that are sent to clients.
pub const FRAMES: Values = Values::Of(&[
    "ready",
    "heartbeat",
    "resync",
    "ack",
    "error",
    "MessageNew",
    "MessageEdited",
    "MessageDeleted",
    "MessageDelivery",
    "ConversationNew",
    "MemberAdded",
    "MemberRemoved",
    "ReactionAdded",
    "ReactionRemoved",
    "CallUpdated",
    "CallInvite",
    "CallAnswer",
    "CallCandidates",
    "CallHangup",
    "CallReject",
    "CallSignal",
    "CallInviteViaMatrix",
    "CallAnswerViaMatrix",
    "CallCandidatesViaMatrix",
    "CallHangupViaMatrix",
    "CallRejectViaMatrix",
    "CallSignalViaMatrix",
]);

/// Why a connection ended.
pub const ENDS: Values =
    Values::Of(&["gone", "stopping", "expired", "slow", "silent", "not_text", "not_utf8", "too_long", "broken"]);

/// The tables of the database that fill and empty with every operation.
pub const TABLES: Values = Values::Of(&["lanes", "messages", "outbox"]);

/// Upper bounds of how long a request takes, in seconds: from one fast round trip to the longest that is waited for.
pub const REQUEST_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0];

/// Upper bounds of how long operations wait, in seconds: from one fast round trip to a long outage.
pub const WAIT_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];

/// Upper bounds of how long calls last, in seconds: from a few words to a whole day.
pub const CALL_SECONDS: &[f64] =
    &[5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 86_400.0];

/// Each line becomes what its metric is written by, and a line of [`ALL`]. A gauge is there when it is first known, but for
/// those that are truly zero at the start.
macro_rules! metrics {
    ($(
        $kind:ident $constant:ident ($($label:literal: $values:expr),*) $(in $buckets:ident)? of $source:ident
            $(from $zero:tt)? =
            $name:literal, $help:literal;
    )*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help, ".")]
            pub static $constant: $kind<{ <[&str]>::len(&[$($label),*]) }> = $kind::new(Metric {
                name: $name,
                kind: $kind::<0>::KIND,
                source: Source::$source,
                labels: &[$(LabelOf { name: $label, values: $values }),*],
                help: $help,
                buckets: metrics!(@buckets $($buckets)?),
                starts: metrics!(@starts $kind $($zero)?),
            });
        )*

        /// Every metric, in the order of the table.
        pub static ALL: &[&Metric] = &[$($constant.metric()),*];
    };
    (@starts Gauge) => { false };
    (@starts $kind:ident $($zero:tt)?) => { true };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

metrics! {
    Counter HTTP_REQUESTS("route": Values::Routes, "method": METHODS, "status": STATUSES) of Api =
        "http_requests_total", "requests answered; the route is its pattern, never an id, or none";
    Histogram HTTP_REQUEST_DURATION("route": Values::Routes) in REQUEST_SECONDS of Api =
        "http_request_duration_seconds", "how long requests took";
    Counter API_PANICS() of Api =
        "api_panics_total", "faults of ours that ended a request with 500";
    Counter API_REQUESTS_LIMITED() of Api =
        "api_requests_limited_total", "requests refused with 429, since one user made too many";
    Counter CALLS_LIMITED("role": Values::Of(&["caller", "callee"])) of Api =
        "calls_limited_total", "calls refused with 429, since too many were placed by one user (caller) or to one (callee)";
    Counter OUTBOX_WAKEUPS_SENT() of Api =
        "outbox_wakeups_sent_total", "wake-ups sent to workers; many commits share one";
    Gauge EVENT_LOG_LISTENING() of Api =
        "event_log_listening", "1 while wake-ups of the event log are heard, 0 while they are not";
    Counter EVENT_LOG_ERRORS() of Api =
        "event_log_errors_total", "failed reads of the event log; each is repeated";
    Gauge WS_CONNECTIONS() of Api from 0 =
        "ws_connections", "WebSockets that are open";
    Counter WS_RESUMES() of Api =
        "ws_resumes_total", "connections with a cursor";
    Counter WS_RESYNCS("reason": Values::Of(&["too_old", "from_the_future", "unknown"])) of Api =
        "ws_resyncs_total", "clients that were told to read anew";
    Counter WS_FRAMES("type": FRAMES) of Api =
        "ws_frames_total", "frames sent";
    Counter WS_FRAMES_UNREADABLE() of Api =
        "ws_frames_unreadable_total", "events not shown, since their content could not be opened: see the log";
    Counter WS_SLOW_CLIENTS() of Api =
        "ws_slow_clients_total", "clients closed because they did not read";
    Counter WS_CLOSED("why": ENDS) of Api =
        "ws_closed_total", "connections that ended";

    Counter EVENT_LOG_WAKEUPS_SENT() of Both =
        "event_log_wakeups_sent_total", "wake-ups sent to API processes; many commits share one";
    Gauge EVENT_LOG_LAG() of Both =
        "event_log_lag_seconds", "how long the oldest event has waited that is committed and cannot be told yet, since an older transaction is open; 0 when there is none";
    Counter VOIP_INVITE_FAILED("reason": Values::Of(&["expired", "own_fault", "gave_up"])) of Both =
        "matrix_voip_invite_failed_total", "invites that never reach their room";
    Histogram VOIP_CALL_DURATION() in CALL_SECONDS of Both =
        "matrix_voip_call_duration_seconds", "how long calls lasted, from the answer to the end";
    Gauge DATABASE_CONNECTIONS("state": Values::Of(&["idle", "used"])) of Both from 0 =
        "database_connections", "connections of this process to the database, as of this look";
    Counter TRACE_EXPORTS("result": Values::Of(&["ok", "failed"])) of Both =
        "trace_exports_total", "batches of spans handed to the collector of traces, where there is one";

    Counter OUTBOX_ATTEMPTS("kind": KINDS, "outcome": OUTCOMES) of Worker =
        "outbox_attempts_total", "attempts by how they ended";
    Counter SEND_SUCCESS("kind": KINDS, "lane_class": LANE_CLASSES) of Worker =
        "matrix_send_success_total", "operations delivered";
    Counter SEND_FAILURE("class": CLASSES, "errcode": ERRCODES) of Worker =
        "matrix_send_failure_total", "attempts that the homeserver failed, also in making the room, by what that means and by the Matrix error code: none without one, other for one that we do not know";
    Histogram OUTBOX_QUEUE_WAIT("lane_class": LANE_CLASSES) in WAIT_SECONDS of Worker =
        "outbox_queue_wait_seconds", "of each attempt, how long its operation might have gone before a worker claimed it";
    Histogram OUTBOX_SEND("lane_class": LANE_CLASSES) in REQUEST_SECONDS of Worker =
        "outbox_send_seconds", "how long the homeserver took for a send or a redaction, failed ones included";
    Histogram OUTBOX_END_TO_END("lane_class": LANE_CLASSES) in WAIT_SECONDS of Worker =
        "outbox_end_to_end_seconds", "of what was delivered, from its being written to its delivery";
    Gauge OUTBOX_LANES_UNDERWAY("lane_class": LANE_CLASSES) of Worker from 0 =
        "outbox_lanes_underway", "lanes that this worker has under way";
    Gauge OUTBOX_SLOTS() of Worker =
        "outbox_slots", "lanes that this worker sends for at most";
    Counter ROOM_CREATION("result": Values::Of(&["created", "adopted", "replaced", "abandoned", "failed"])) of Worker =
        "matrix_room_creation_total", "rooms made, adopted (one of ours that stood already), replaced (a tombstone was followed), abandoned (one that never came to be), or failed";
    Counter ROOM_CACHE("result": Values::Of(&["hit", "miss"])) of Worker =
        "matrix_room_cache_lookups_total", "rooms looked for in memory before the database is asked";
    Gauge CIRCUIT_STATE() of Worker =
        "outbox_circuit_state", "0 closed, 1 ramping up, 2 open: nothing is claimed";
    Counter CIRCUIT_OPENED("reason": Values::Of(&["down", "account"])) of Worker =
        "outbox_circuit_opened_total", "how often the circuit opened";
    Counter CIRCUIT_PROBES("result": Values::Of(&["ok", "failed"])) of Worker =
        "outbox_circuit_probes_total", "questions to a homeserver that was down";
    Gauge TOKEN_ACCEPTED() of Worker =
        "matrix_token_accepted", "1, or 0 while the homeserver does not accept the token";
    Counter RATE_LIMITED() of Worker =
        "outbox_rate_limited_seconds_total", "how long the worker rested because the homeserver said so";
    Counter LOOKUPS() of Worker =
        "outbox_lookups_total", "operations looked for in their room, since nobody knew whether they had arrived";
    Counter VOIDS() of Worker =
        "outbox_voids_total", "transaction ids closed with an empty event";
    Counter OUTBOX_EXPIRED() of Worker =
        "outbox_expired_total", "operations that were no longer worth sending: what was said in calls that were over, invites to those that nearly were";
    Counter OUTBOX_DEAD() of Worker =
        "outbox_dead_total", "operations that became dead letters";
    Counter LEASE_EXPIRED() of Worker =
        "outbox_lease_expired_total", "lanes taken over from a worker that was gone";
    Counter FENCED_SETTLES() of Worker =
        "outbox_fenced_settles_total", "batches finished too late, of which only the evidence was kept";
    Counter ATTEMPTS_BROKEN_OFF() of Worker =
        "outbox_attempts_broken_off_total", "attempts ended by a fault of ours or by a stop; they count as unknown";
    Counter DATABASE_ERRORS("loop": Values::Of(&["claim", "settle", "renew", "gauges", "heartbeat", "tasks"])) of Worker =
        "outbox_database_errors_total", "failed calls to the database; each is repeated";
    Counter SETTLEMENTS_REFUSED() of Worker =
        "outbox_settlements_refused_total", "results that the database will not take: a fault of ours, see the log; their lanes are taken over when the lease lapses";
    Gauge OUTBOX_LISTENING() of Worker =
        "outbox_listening", "1 while wake-ups are heard, 0 while they are not";
    Counter EVENT_LOG_FORGOTTEN() of Worker =
        "event_log_forgotten_total", "rows cut from the old end of the event log";
    Gauge SYNC_LEADER() of Worker =
        "matrix_sync_leader", "1 on the worker that reads what happens on Matrix";
    Counter SYNC_EVENTS_RECEIVED() of Worker =
        "matrix_sync_events_received_total", "events that the homeserver told";
    Counter SYNC_EVENTS_APPLIED() of Worker =
        "matrix_sync_events_applied_total", "those of others that were applied";
    Counter SYNC_ECHOES("settled": Values::Of(&["true", "false"])) of Worker =
        "matrix_sync_echoes_total", "those of our own; true: an operation was settled by it";
    Counter DUPLICATE_EVENTS("source": Values::Of(&["echo", "redelivery"])) of Worker =
        "matrix_duplicate_events_total", "those that were known already";
    Counter SYNC_EVENTS_PARKED() of Worker =
        "matrix_sync_events_parked_total", "those that wait for what they relate to";
    Counter SYNC_EVENTS_SKIPPED("reason": SKIPPED) of Worker =
        "matrix_sync_events_skipped_total", "those that are nobody's or make no sense";
    Counter SYNC_GAPS() of Worker =
        "matrix_sync_gaps_total", "timelines that had lost their beginning, which was fetched";
    Gauge SYNC_LAG() of Worker =
        "matrix_sync_lag_seconds", "how old the newest event was when it was applied, by the homeserver's clock and ours; 0 when there was none";
    Counter SYNC_FAILURES() of Worker =
        "matrix_sync_failures_total", "syncs that did not succeed; each is repeated";
    Counter SYNC_CRASHES() of Worker =
        "matrix_sync_crashes_total", "how often the loop began again after a fault of ours";
    Counter VOIP_INVITE_SENT() of Worker =
        "matrix_voip_invite_sent_total", "invites that reached their room";
    Counter VOIP_ANSWER_RECEIVED() of Worker =
        "matrix_voip_answer_received_total", "answers that came from Matrix";
    Counter VOIP_ICE_CANDIDATES_SENT() of Worker =
        "matrix_voip_ice_candidates_sent_total", "candidates that reached their room, each counted, however many share an event";
    Counter VOIP_HANGUP_SENT("reason": HANGUPS) of Worker =
        "matrix_voip_hangup_sent_total", "hangups that reached their room, by why the call ended";
    Counter VOIP_CALLS_TIMED_OUT() of Worker =
        "matrix_voip_calls_timed_out_total", "calls that nobody answered in time";
    Counter INVITES("answer": Values::Of(&["rejected", "ignored", "failed"])) of Worker =
        "matrix_invites_total", "invitations of the service account by strangers";

    Gauge OUTBOX_DEPTH("lane_class": LANE_CLASSES) of Database =
        "outbox_depth", "operations still to be done, of up to 10,000 lanes that go and 10,000 that are held";
    Gauge OUTBOX_OLDEST_AGE("lane_class": LANE_CLASSES) of Database =
        "outbox_oldest_age_seconds", "how long the oldest of them has waited since it was enqueued; 0 when nothing waits";
    Gauge OUTBOX_BLOCKED_ROOMS() of Database =
        "outbox_blocked_rooms", "conversations of which a lane is held, or waits after a failed attempt; of 10,000 such lanes each at most";
    Gauge OUTBOX_DEAD_LETTERS() of Database =
        "outbox_dead_letters", "dead letters; 10000 means that or more";
    Gauge OUTBOX_HELD_LANES() of Database =
        "outbox_held_lanes", "lanes that wait for somebody; 10000 means that or more";
    Gauge OUTBOX_PAUSED("scope": Values::Of(&["all", "call", "chat", "lane"])) of Database =
        "outbox_paused", "all, call, chat: 1 while paused; lane: how many lanes are paused until a time, up to 10000";
    Gauge DEDUPE_WINDOW_RISK() of Database =
        "outbox_dedupe_window_risk", "operations that may have arrived longer ago than the homeserver is trusted to remember (OUTBOX_DEDUPE_WINDOW), and are still to be done: they are looked up before they are repeated; 10000 means that or more";
    Counter OUTBOX_REQUEUED() of Database =
        "outbox_requeued_total", "operations that operators brought back since this worker started, by the audit trail: also by commands elsewhere";
    Counter OUTBOX_DISCARDED() of Database =
        "outbox_discarded_total", "the same, thrown away";
    Gauge SYNC_AGE() of Database =
        "matrix_sync_age_seconds", "how long ago what happens on Matrix was last read to its end; an idle homeserver answers within MATRIX_SYNC_HOLD";
    Gauge SYNC_INBOX_DEPTH("cause": Values::Of(&["awaits_target", "poison"])) of Database =
        "matrix_sync_inbox_depth", "events of Matrix that are kept and not applied: their target has not come, or they make no sense; 10000 means that or more";
    Gauge XMIN_HORIZON_AGE() of Database =
        "postgres_xmin_horizon_age_seconds", "for how long the oldest snapshot, replication slot or prepared transaction has kept the database from clearing dead rows away";
    Gauge DEAD_TUPLES("table": TABLES) of Database =
        "postgres_dead_tuples", "dead rows of a table, by PostgreSQL's own estimate";
    Gauge LIVE_TUPLES("table": TABLES) of Database =
        "postgres_live_tuples", "live rows of a table, by PostgreSQL's own estimate";
    Gauge TABLE_SIZE("table": TABLES) of Database =
        "postgres_table_size_bytes", "what a table takes on disk, with its indexes";
    Gauge NOTIFICATION_QUEUE() of Database =
        "postgres_notification_queue_usage_ratio", "how full the queue of NOTIFY is, 0 to 1; full, every commit that notifies fails";
    Gauge CONNECTIONS() of Database =
        "postgres_connections", "connections to the database server, of anybody, to any of its databases";
    Gauge CONNECTIONS_MAX() of Database =
        "postgres_connections_max", "how many the server allows";
}
