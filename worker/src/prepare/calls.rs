//! `m.call.*`, version "1", from what was said in a call.
//!
//! Types and field names are ruma's; what clients said (SDP, candidates, what streams are) goes out as it came.

use std::time::Duration;

use ruma::VoipVersionId;
use ruma::{
    OwnedUserId, OwnedVoipId, UInt,
    events::call::{
        SessionDescription,
        answer::CallAnswerEventContent,
        candidates::CallCandidatesEventContent,
        hangup::{CallHangupEventContent, Reason},
        invite::CallInviteEventContent,
        negotiate::CallNegotiateEventContent,
        reject::CallRejectEventContent,
        sdp_stream_metadata_changed::CallSdpStreamMetadataChangedEventContent,
        select_answer::CallSelectAnswerEventContent,
    },
};
use serde_json::{Map, Value};
use shared::{
    calls::SignalKind,
    ids::{MatrixUserId, OutboxId, UserId},
};

use super::{Prepared, mark, name_author, object};

/// What was said in a call, as it is to stand in the room.
#[derive(Debug)]
pub(crate) struct Signalled<'a> {
    pub(crate) outbox_id: OutboxId,
    /// The call, as its events name it.
    pub(crate) call_id: &'a str,
    pub(crate) kind: SignalKind,
    pub(crate) party_id: &'a str,
    pub(crate) author_id: UserId,
    /// What each signal says, in order: one, but for candidates.
    pub(crate) contents: Vec<Value>,
    /// Why, of a hangup; which party, of a `select_answer`.
    pub(crate) detail: Option<&'a str>,
    /// For an invite: for how long it may still ring.
    pub(crate) lifetime: Duration,
    /// For an invite: whom it calls, if not everybody.
    pub(crate) invitee: Option<MatrixUserId>,
}

impl Signalled<'_> {
    /// The event's type.
    const fn event_type(&self) -> &'static str {
        match self.kind {
            SignalKind::Invite => "m.call.invite",
            SignalKind::Candidates => "m.call.candidates",
            SignalKind::Answer => "m.call.answer",
            SignalKind::SelectAnswer => "m.call.select_answer",
            SignalKind::Negotiate => "m.call.negotiate",
            SignalKind::SdpStreamMetadataChanged => "m.call.sdp_stream_metadata_changed",
            SignalKind::Reject => "m.call.reject",
            SignalKind::Hangup => "m.call.hangup",
        }
    }

    fn said(&self) -> Option<&Map<String, Value>> {
        self.contents.first()?.as_object()
    }

    fn description(&self, field: &str) -> SessionDescription {
        let text = |name: &str| {
            let value = self.said().and_then(|said| said.get(field)?.get(name)?.as_str());
            value.unwrap_or_default().to_owned()
        };
        SessionDescription::new(text("type"), text("sdp"))
    }
}

/// The event of what was said.
pub(crate) fn event(signalled: &Signalled<'_>) -> Result<Prepared, serde_json::Error> {
    let call_id = OwnedVoipId::from(signalled.call_id);
    let party_id = OwnedVoipId::from(signalled.party_id);
    let lifetime = |ms: u64| UInt::new_saturating(ms);
    let mut content = match signalled.kind {
        SignalKind::Invite => {
            let left = u64::try_from(signalled.lifetime.as_millis()).unwrap_or(u64::MAX);
            let offer = signalled.description("offer");
            let mut invite = CallInviteEventContent::version_1(call_id, party_id, lifetime(left), offer);
            invite.invitee = signalled.invitee.as_ref().and_then(|user| OwnedUserId::try_from(user.as_str()).ok());
            object(&invite)?
        }
        SignalKind::Candidates => object(&CallCandidatesEventContent::version_1(call_id, party_id, Vec::new()))?,
        SignalKind::Answer => {
            object(&CallAnswerEventContent::version_1(signalled.description("answer"), call_id, party_id))?
        }
        SignalKind::SelectAnswer => {
            let selected = OwnedVoipId::from(signalled.detail.unwrap_or_default());
            object(&CallSelectAnswerEventContent::version_1(call_id, party_id, selected))?
        }
        SignalKind::Negotiate => {
            let description = signalled.description("description");
            object(&CallNegotiateEventContent::version_1(call_id, party_id, lifetime(0), description))?
        }
        SignalKind::SdpStreamMetadataChanged => {
            let metadata = std::collections::BTreeMap::new();
            let version = VoipVersionId::V1;
            object(&CallSdpStreamMetadataChangedEventContent::new(call_id, party_id, version, metadata))?
        }
        SignalKind::Reject => object(&CallRejectEventContent::version_1(call_id, party_id))?,
        SignalKind::Hangup => {
            let reason = Reason::from(signalled.detail.unwrap_or("user_hangup"));
            object(&CallHangupEventContent::version_1(call_id, party_id, reason))?
        }
    };
    if let (false, Some(said)) = (signalled.kind.is_bare(), signalled.said()) {
        content.extend(said.clone());
    }
    if signalled.kind == SignalKind::Candidates {
        let all = signalled.contents.iter().filter_map(|said| said.get("candidates")?.as_array()).flatten();
        content.insert("candidates".to_owned(), Value::Array(all.cloned().collect()));
    }
    mark(&mut content, signalled.outbox_id);
    name_author(&mut content, signalled.author_id);
    Ok(Prepared { event_type: signalled.event_type(), content: serde_json::value::to_raw_value(&content)? })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use serde_json::json;

    use super::*;

    const CALLER: &str = "550e8400-e29b-41d4-a716-446655440000";
    const SDP: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\na=x:\u{e9}\"\\\r\n";

    fn signalled(kind: SignalKind, contents: Vec<Value>) -> Signalled<'static> {
        Signalled {
            outbox_id: "0190b5a0-0000-7000-8000-000000000001".parse().unwrap(),
            call_id: "0190b5a0-0000-7000-8000-000000000009",
            kind,
            party_id: "PHONE",
            author_id: CALLER.parse().unwrap(),
            contents,
            detail: None,
            lifetime: Duration::from_millis(61_234),
            invitee: None,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a value written where it is expected")]
    fn golden(kind: &str, signalled: &Signalled<'_>, expected: Value) {
        let prepared = event(signalled).unwrap();
        assert_eq!(prepared.event_type, kind);
        let mut whole = json!({
            "call_id": "0190b5a0-0000-7000-8000-000000000009",
            "party_id": "PHONE",
            "version": "1",
            "com.nova.outbox_id": "0190b5a0-0000-7000-8000-000000000001",
            "com.nova.sender_id": CALLER,
            "com.beeper.per_message_profile": {"id": CALLER, "displayname": "nova-550e8400"},
        });
        whole.as_object_mut().unwrap().extend(expected.as_object().unwrap().clone());
        assert_eq!(serde_json::from_str::<Value>(prepared.content.get()).unwrap(), whole);
    }

    #[test]
    fn an_invite_says_how_long_it_may_still_ring_and_for_whom_and_its_sdp_byte_for_byte() {
        let metadata = json!({"stream": {"purpose": "m.usermedia", "com.example.unknown": [1]}});
        let said = json!({"offer": {"type": "offer", "sdp": SDP}, "sdp_stream_metadata": metadata});
        let invite = Signalled {
            invitee: Some("@grace:example.org".parse().unwrap()),
            ..signalled(SignalKind::Invite, vec![said])
        };
        golden(
            "m.call.invite",
            &invite,
            json!({
                "lifetime": 61_234,
                "invitee": "@grace:example.org",
                "offer": {"type": "offer", "sdp": SDP},
                "sdp_stream_metadata": metadata,
            }),
        );
    }

    #[test]
    fn an_answer_is_what_the_device_answered() {
        let answer = signalled(SignalKind::Answer, vec![json!({"answer": {"type": "answer", "sdp": SDP}})]);
        golden("m.call.answer", &answer, json!({"answer": {"type": "answer", "sdp": SDP}}));
    }

    #[test]
    fn candidates_of_several_signals_go_in_one_event_in_their_order_and_as_they_came() {
        let first = json!({"candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "f"});
        let last = json!({"candidate": ""});
        let contents = vec![json!({"candidates": [first]}), json!({"candidates": [last]})];
        golden("m.call.candidates", &signalled(SignalKind::Candidates, contents), json!({"candidates": [first, last]}));
    }

    #[test]
    fn select_answer_names_the_device_whose_answer_counts() {
        let select = Signalled { detail: Some("TABLET"), ..signalled(SignalKind::SelectAnswer, vec![]) };
        golden("m.call.select_answer", &select, json!({"selected_party_id": "TABLET"}));
    }

    #[test]
    fn a_negotiation_has_its_description_and_its_time() {
        let said = json!({"description": {"type": "offer", "sdp": SDP}, "lifetime": 10_000});
        golden("m.call.negotiate", &signalled(SignalKind::Negotiate, vec![said.clone()]), said);
    }

    #[test]
    fn changed_metadata_is_as_the_device_has_it() {
        let said = json!({"sdp_stream_metadata": {"s": {"purpose": "m.screenshare", "audio_muted": true}}});
        let changed = signalled(SignalKind::SdpStreamMetadataChanged, vec![said.clone()]);
        golden("m.call.sdp_stream_metadata_changed", &changed, said);
    }

    #[test]
    fn a_reject_says_nothing_else_and_a_hangup_why() {
        golden("m.call.reject", &signalled(SignalKind::Reject, vec![]), json!({}));
        for reason in ["user_hangup", "invite_timeout", "ice_failed", "user_busy"] {
            let hangup = Signalled { detail: Some(reason), ..signalled(SignalKind::Hangup, vec![]) };
            golden("m.call.hangup", &hangup, json!({"reason": reason}));
        }
    }

    #[test]
    fn whatever_is_taken_fits_an_event_also_encrypted() {
        let sdp = "\u{1}".repeat((shared::calls::MAX_SIGNAL_BYTES - 100) / 6);
        let said = json!({"offer": {"type": "offer", "sdp": sdp}});
        assert!(said.to_string().len() <= shared::calls::MAX_SIGNAL_BYTES);
        let party = "p".repeat(255);
        let invite = Signalled {
            call_id: &party,
            party_id: &party,
            invitee: Some(format!("@{}:example.org", "u".repeat(200)).parse().unwrap()),
            ..signalled(SignalKind::Invite, vec![said])
        };
        let size = event(&invite).unwrap().content.get().len();
        assert!(size * 4 / 3 + 2048 <= 65_536, "{size} bytes");
    }
}
