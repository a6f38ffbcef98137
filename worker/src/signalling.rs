//! What is told of calls: counters and log lines, with nothing in them that leads to a person or an address.

use serde_json::{Value, value::RawValue};
use shared::{
    calls::{EndReason, SignalKind},
    metric,
    outbox::{ClaimedOperation, Kind, Mode, Outcome},
};

/// Tells how an operation of a call ended. True when that was a failure which is told by that.
pub(crate) fn report(operation: &ClaimedOperation, outcome: &Outcome, error: Option<&str>) -> bool {
    let (Kind::Call(kind), Some(call)) = (operation.kind, &operation.call) else { return false };
    let call_id = call.call_id;
    match (kind, outcome) {
        // A transaction that was closed is no ring.
        (SignalKind::Invite, Outcome::Delivered { event_id, room_id })
            if !matches!(operation.mode, Mode::Close { .. }) =>
        {
            metric::VOIP_INVITE_SENT.increment(1);
            tracing::info!(%call_id, %room_id, %event_id, "matrix_voip.send_invite");
        }
        (SignalKind::Hangup, Outcome::Delivered { .. }) => {
            let detail = call.signals.first().and_then(|signal| signal.detail.as_deref());
            metric::VOIP_HANGUP_SENT.with([reason(detail)]).increment(1);
        }
        // One that somebody took back in time did not fail.
        (SignalKind::Invite, Outcome::Expired) if call.rings_for().is_some() => {}
        (SignalKind::Invite, Outcome::Expired | Outcome::OwnFault { .. } | Outcome::GaveUp { .. }) => {
            metric::VOIP_INVITE_FAILED.with([outcome.as_str()]).increment(1);
        }
        _ => {}
    }
    let failed = matches!(outcome, Outcome::OwnFault { .. } | Outcome::GaveUp { .. });
    if failed {
        tracing::error!(%call_id, error = error.unwrap_or_default(), "matrix_voip.send_failed");
    }
    failed
}

/// A hangup's reason, of those that are known: labels are few.
fn reason(detail: Option<&str>) -> &'static str {
    EndReason::of_hangup(detail).as_str()
}

/// Counts the candidates that were sent, and says of what sort they were.
pub(crate) fn candidates_sent(operation: &ClaimedOperation, content: &RawValue) {
    let (Kind::Call(SignalKind::Candidates), Some(call)) = (operation.kind, &operation.call) else { return };
    let Ok(content) = serde_json::from_str::<Value>(content.get()) else { return };
    let candidates = content.get("candidates").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let named =
        candidates.iter().filter_map(|candidate| candidate.get("candidate")?.as_str()).filter(|c| !c.is_empty());
    let mut count = 0;
    for candidate in named {
        count += 1;
        tracing::debug!(call_id = %call.call_id, candidate = sort(candidate), "matrix_voip.ice_candidate");
    }
    metric::VOIP_ICE_CANDIDATES_SENT.increment(count);
}

/// Type and protocol of a candidate, never its address.
fn sort(candidate: &str) -> String {
    let words: Vec<&str> = candidate.split_ascii_whitespace().collect();
    let known = |word: Option<&&str>, known: &[&'static str]| {
        let word = word.map(|word| word.to_ascii_lowercase()).unwrap_or_default();
        known.iter().find(|known| **known == word).copied().unwrap_or("unknown")
    };
    let kind = words.iter().position(|word| *word == "typ").and_then(|at| words.get(at + 1));
    let kind = known(kind, &["host", "srflx", "prflx", "relay"]);
    format!("{kind} {}", known(words.get(2), &["udp", "tcp"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_candidate_only_its_type_and_its_protocol_are_told() {
        assert_eq!(sort("candidate:1 1 UDP 2122 192.0.2.7 40000 typ relay raddr 192.0.2.8 rport 9"), "relay udp");
        assert_eq!(sort("candidate:1 1 tcp 2122 2001:db8::1 9 typ host tcptype active"), "host tcp");
        assert_eq!(sort("192.0.2.7"), "unknown unknown");
        assert_eq!(sort("candidate:1 1 192.0.2.9 1 192.0.2.7 40000 typ 192.0.2.10"), "unknown unknown");
    }

    #[test]
    fn reasons_that_nobody_knows_are_one_label() {
        assert_eq!(reason(Some("ice_failed")), "ice_failed");
        assert_eq!(reason(Some("com.example.whatever")), "unknown_error");
    }
}
