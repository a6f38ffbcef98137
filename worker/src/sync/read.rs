//! From an event as the homeserver wrote it to what is applied: pure, and typed by ruma.
//!
//! Whoever is in a room may put anything into an event. What is no event of ours to understand is [`Read::Skip`]; what
//! claims to be one and is not, is [`Read::Poison`], which people can look at.

use ruma::events::{
    call::{
        answer::CallAnswerEventContent, candidates::CallCandidatesEventContent, hangup::CallHangupEventContent,
        invite::CallInviteEventContent, negotiate::CallNegotiateEventContent, reject::CallRejectEventContent,
        sdp_stream_metadata_changed::CallSdpStreamMetadataChangedEventContent,
        select_answer::CallSelectAnswerEventContent,
    },
    reaction::ReactionEventContent,
    room::{
        MediaSource,
        member::{MembershipState, RoomMemberEventContent},
        message::{MessageType, Relation, RoomMessageEventContent, RoomMessageEventContentWithoutRelation},
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use shared::{
    calls::{CallSignal, SignalKind},
    chat::{Content, Media, MessageKind},
    html,
    ids::{EventId, MatrixUserId, OutboxId, RoomId},
    inbound::{Incoming, Membership, What},
};

/// The latest time that is stored: beyond it no clock is right. The end of the year 9999.
const LATEST_MS: i64 = 253_402_300_799_999;

/// The longest id that Matrix allows, in bytes.
const MAX_ID_BYTES: usize = 255;

/// What an event turned out to be.
#[derive(Debug)]
pub(super) enum Read {
    /// Something to apply.
    Event(Box<Incoming>),
    /// Nothing that concerns us.
    Skip,
    /// It claims to be what it is not: its id, if it has one, and what is wrong, without its content.
    Poison { event_id: Option<EventId>, detail: String },
}

/// An event's frame: what all have.
#[derive(Deserialize)]
struct Frame<'a> {
    r#type: String,
    event_id: String,
    sender: String,
    origin_server_ts: i64,
    #[serde(borrow)]
    content: &'a RawValue,
    state_key: Option<String>,
    /// Up to room version 10 a redaction names its target here.
    redacts: Option<String>,
    #[serde(default)]
    unsigned: Unsigned,
}

#[derive(Default, Deserialize)]
struct Unsigned {
    #[serde(default)]
    transaction_id: Option<String>,
    #[serde(default)]
    redacted_because: Option<serde::de::IgnoredAny>,
}

/// What of an event is read when all else of it makes no sense.
#[derive(Deserialize)]
struct Named {
    event_id: String,
}

/// Our marker, and what a redaction names from room version 11 on.
#[derive(Default, Deserialize)]
struct Marks {
    #[serde(rename = "com.nova.outbox_id", default)]
    marker: Value,
    #[serde(default)]
    redacts: Value,
}

/// Reads an event of a room.
pub(super) fn read(room_id: &RoomId, json: &str) -> Read {
    let frame: Frame<'_> = match serde_json::from_str(json) {
        Ok(frame) => frame,
        Err(error) => {
            let named = serde_json::from_str::<Named>(json).ok();
            return Read::Poison { event_id: named.and_then(|named| id(&named.event_id)), detail: place_of(&error) };
        }
    };
    let Some(event_id) = id(&frame.event_id) else {
        return Read::Poison { event_id: None, detail: "event_id is no event id".to_owned() };
    };
    match read_frame(room_id, &event_id, &frame) {
        Ok(Some(event)) => Read::Event(Box::new(event)),
        Ok(None) => Read::Skip,
        Err(detail) => Read::Poison { event_id: Some(event_id), detail },
    }
}

fn read_frame(room_id: &RoomId, event_id: &EventId, frame: &Frame<'_>) -> Result<Option<Incoming>, String> {
    let marks: Marks = serde_json::from_str(frame.content.get()).unwrap_or_default();
    let redacts = frame.redacts.as_deref().or_else(|| marks.redacts.as_str());
    let Some(what) = what(frame, redacts)? else { return Ok(None) };
    let sender: MatrixUserId = frame.sender.parse().map_err(|_| "sender is no Matrix user id".to_owned())?;
    if frame.sender.len() > MAX_ID_BYTES {
        return Err("sender is longer than Matrix allows".to_owned());
    }
    Ok(Some(Incoming {
        event_id: event_id.clone(),
        room_id: room_id.clone(),
        sender,
        sent_at_ms: frame.origin_server_ts.clamp(0, LATEST_MS),
        marker: marks.marker.as_str().and_then(|marker| marker.parse::<OutboxId>().ok()),
        transaction_id: frame.unsigned.transaction_id.clone(),
        what,
    }))
}

/// What an event says; none for a type that does not concern us.
fn what(frame: &Frame<'_>, redacts: Option<&str>) -> Result<Option<What>, String> {
    let is_state = frame.state_key.is_some();
    let redacted = frame.unsigned.redacted_because.is_some();
    Ok(Some(match frame.r#type.as_str() {
        "m.room.member" => return member(frame).map(Some),
        // A state event of a type that is none: of no consequence, and nobody's message.
        _ if is_state => return Ok(None),
        "m.room.redaction" if redacted && redacts.is_none() => What::Nothing,
        "m.room.redaction" => {
            let target = redacts.and_then(id).ok_or_else(|| "a redaction that names no event".to_owned())?;
            What::Redaction { target }
        }
        "m.room.message" | "m.reaction" if redacted => What::Nothing,
        "m.room.message" => message(frame)?,
        "m.reaction" => reaction(frame)?,
        "com.nova.outbox.void" => What::Nothing,
        call if call.starts_with("m.call.") && redacted => What::Nothing,
        call => match call.strip_prefix("m.call.").and_then(SignalKind::parse) {
            Some(kind) => What::Call(signal(kind, frame)?),
            None => return Ok(None),
        },
    }))
}

fn id(text: &str) -> Option<EventId> {
    let plain = text.starts_with('$') && text.len() > 1 && text.len() <= MAX_ID_BYTES;
    (plain && text.chars().all(|c| c.is_ascii_graphic())).then(|| EventId::from(text.to_owned()))
}

/// Where JSON stops making sense: serde's words name values, which are content.
fn place_of(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a field is missing or of another type",
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
            "no JSON"
        }
    };
    format!("{what}, at column {}", error.column())
}

fn content<T: DeserializeOwned>(frame: &Frame<'_>) -> Result<T, String> {
    serde_json::from_str(frame.content.get()).map_err(|error| format!("{}: {}", frame.r#type, place_of(&error)))
}

fn member(frame: &Frame<'_>) -> Result<What, String> {
    let user = frame.state_key.as_deref().unwrap_or_default();
    let user = user.parse().map_err(|_| "m.room.member of no Matrix user".to_owned())?;
    let member: RoomMemberEventContent = content(frame)?;
    let membership = match member.membership {
        MembershipState::Invite => Membership::Invite,
        MembershipState::Join => Membership::Join,
        MembershipState::Leave => Membership::Leave,
        MembershipState::Ban => Membership::Ban,
        MembershipState::Knock => Membership::Knock,
        _ => return Err("m.room.member of an unknown membership".to_owned()),
    };
    let display_name = member.displayname.map(|name| name.chars().filter(|c| *c != '\0').take(255).collect());
    Ok(What::Member { user, membership, display_name, now: None })
}

fn reaction(frame: &Frame<'_>) -> Result<What, String> {
    let annotation = content::<ReactionEventContent>(frame)?.relates_to;
    Ok(What::Reaction { target: event_id(annotation.event_id.as_str())?, key: annotation.key })
}

fn event_id(text: &str) -> Result<EventId, String> {
    id(text).ok_or_else(|| "it relates to what is no event id".to_owned())
}

/// A message or an edit. What is said about a file beside its address is of use, and no reason to lose the message.
fn message(frame: &Frame<'_>) -> Result<What, String> {
    let message = match content::<RoomMessageEventContent>(frame) {
        Ok(message) => message,
        Err(detail) => {
            let mut bare: Value = content(frame)?;
            let fields = bare.as_object_mut().ok_or_else(|| detail.clone())?;
            fields.remove("info").ok_or_else(|| detail.clone())?;
            serde_json::from_value(bare).map_err(|_| detail)?
        }
    };
    let mentioned = |mentions: Option<&ruma::events::Mentions>| -> (Vec<MatrixUserId>, bool) {
        let users = mentions.iter().flat_map(|mentions| &mentions.user_ids).take(MOST_MENTIONED);
        (users.filter_map(|user| user.as_str().parse().ok()).collect(), mentions.is_some_and(|mentions| mentions.room))
    };
    if let Some(Relation::Replacement(replacement)) = &message.relates_to {
        let RoomMessageEventContentWithoutRelation { msgtype, mentions, .. } = &replacement.new_content;
        let (_, mut content) = said(msgtype);
        let (mentioned, room) = mentioned(mentions.as_ref());
        content.mentions.room = room;
        return Ok(What::Edit { target: event_id(replacement.event_id.as_str())?, content, mentioned });
    }
    let (kind, mut content) = said(&message.msgtype);
    let (mentioned, room) = mentioned(message.mentions.as_ref());
    content.mentions.room = room;
    let (mut reply_to, mut thread_of) = (None, None);
    match &message.relates_to {
        Some(Relation::Reply(reply)) => reply_to = id(reply.in_reply_to.event_id.as_str()),
        Some(Relation::Thread(thread)) => {
            thread_of = id(thread.event_id.as_str());
            // A reply that is there for clients without threads answers nobody.
            let meant = thread.in_reply_to.as_ref().filter(|_| !thread.is_falling_back);
            reply_to = meant.and_then(|reply| id(reply.event_id.as_str()));
        }
        _ => {}
    }
    Ok(What::Message { kind, content, reply_to, thread_of, mentioned })
}

/// How many people one message can mention here: as many as our own clients may.
const MOST_MENTIONED: usize = 50;

/// What a message says. A type that we do not know says its body, as Matrix has it.
fn said(message: &MessageType) -> (MessageKind, Content) {
    let text = |body: &str, formatted: Option<&ruma::events::room::message::FormattedBody>| Content {
        text: plain(body),
        formatted: formatted
            .filter(|formatted| formatted.format == ruma::events::room::message::MessageFormat::Html)
            .map(|formatted| plain(&html::sanitize(&formatted.body))),
        ..Content::default()
    };
    match message {
        MessageType::Text(said) => (MessageKind::Text, text(&said.body, said.formatted.as_ref())),
        MessageType::Notice(said) => (MessageKind::Notice, text(&said.body, said.formatted.as_ref())),
        MessageType::Emote(said) => (MessageKind::Emote, text(&said.body, said.formatted.as_ref())),
        MessageType::Image(said) => {
            let info = said.info.as_deref();
            let media = Media {
                mimetype: info.and_then(|info| info.mimetype.as_deref().map(plain)),
                size: info.and_then(|info| info.size).map(u64::from),
                width: info.and_then(|info| info.width).map(u64::from),
                height: info.and_then(|info| info.height).map(u64::from),
                ..file(&said.source, said.filename())
            };
            (MessageKind::Image, Content { media: Some(media), ..text(&said.body, said.formatted.as_ref()) })
        }
        MessageType::Video(said) => {
            let info = said.info.as_deref();
            let media = Media {
                mimetype: info.and_then(|info| info.mimetype.as_deref().map(plain)),
                size: info.and_then(|info| info.size).map(u64::from),
                width: info.and_then(|info| info.width).map(u64::from),
                height: info.and_then(|info| info.height).map(u64::from),
                duration_ms: info.and_then(|info| info.duration).map(milliseconds),
                ..file(&said.source, said.filename())
            };
            (MessageKind::Video, Content { media: Some(media), ..text(&said.body, said.formatted.as_ref()) })
        }
        MessageType::Audio(said) => {
            let info = said.info.as_deref();
            let media = Media {
                mimetype: info.and_then(|info| info.mimetype.as_deref().map(plain)),
                size: info.and_then(|info| info.size).map(u64::from),
                duration_ms: info.and_then(|info| info.duration).map(milliseconds),
                ..file(&said.source, said.filename())
            };
            (MessageKind::Audio, Content { media: Some(media), ..text(&said.body, said.formatted.as_ref()) })
        }
        MessageType::File(said) => {
            let info = said.info.as_deref();
            let media = Media {
                mimetype: info.and_then(|info| info.mimetype.as_deref().map(plain)),
                size: info.and_then(|info| info.size).map(u64::from),
                ..file(&said.source, said.filename())
            };
            (MessageKind::File, Content { media: Some(media), ..text(&said.body, said.formatted.as_ref()) })
        }
        other => (MessageKind::Text, text(other.body(), None)),
    }
}

/// A database takes no NUL in JSON that is looked into, and no screen shows one.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn file(source: &MediaSource, filename: &str) -> Media {
    let (url, file) = match source {
        MediaSource::Plain(url) => (url.to_string(), None),
        MediaSource::Encrypted(file) => (file.url.to_string(), serde_json::to_value(file).ok()),
    };
    Media { url, filename: Some(plain(filename)), file, ..Media::default() }
}

/// A step of a call. Typed, so that what is stored can be understood; kept as it came, so that nothing of it is lost.
fn signal(kind: SignalKind, frame: &Frame<'_>) -> Result<CallSignal, String> {
    let mut lifetime_ms = None;
    let (call_id, party_id) = match kind {
        SignalKind::Invite => {
            let said: CallInviteEventContent = content(frame)?;
            lifetime_ms = Some(said.lifetime.into());
            (said.call_id, said.party_id)
        }
        SignalKind::Candidates => {
            let said: CallCandidatesEventContent = content(frame)?;
            (said.call_id, said.party_id)
        }
        SignalKind::Answer => {
            let said: CallAnswerEventContent = content(frame)?;
            (said.call_id, said.party_id)
        }
        SignalKind::SelectAnswer => {
            let said: CallSelectAnswerEventContent = content(frame)?;
            (said.call_id, Some(said.party_id))
        }
        SignalKind::Negotiate => {
            let said: CallNegotiateEventContent = content(frame)?;
            (said.call_id, Some(said.party_id))
        }
        SignalKind::SdpStreamMetadataChanged => {
            let said: CallSdpStreamMetadataChangedEventContent = content(frame)?;
            (said.call_id, Some(said.party_id))
        }
        SignalKind::Reject => {
            let said: CallRejectEventContent = content(frame)?;
            (said.call_id, Some(said.party_id))
        }
        SignalKind::Hangup => {
            let said: CallHangupEventContent = content(frame)?;
            (said.call_id, said.party_id)
        }
    };
    let call_id = call_id.to_string();
    if call_id.is_empty() || call_id.len() > MAX_ID_BYTES || call_id.contains('\0') {
        return Err("a call id that is none".to_owned());
    }
    let party_id = party_id.map(|party| plain(party.as_str()));
    if party_id.as_ref().is_some_and(|party| party.len() > MAX_ID_BYTES) {
        return Err("a party id that is none".to_owned());
    }
    Ok(CallSignal { kind, call_id, party_id, lifetime_ms, content: frame.content.get().to_owned() })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use serde_json::json;
    use shared::testing::mutation::{Mutator, specimens};

    use super::*;

    const GRACE: &str = "@nova-550e8400e29b41d4a716446655440000:nova.test";

    fn room_id() -> RoomId {
        RoomId::from("!room".to_owned())
    }

    fn event(json: &Value) -> Incoming {
        match read(&room_id(), &json.to_string()) {
            Read::Event(event) => *event,
            other => panic!("{json} is {other:?}"),
        }
    }

    #[test]
    fn every_specimen_is_read() {
        for specimen in specimens(GRACE, "$target") {
            event(&specimen);
        }
    }

    /// `SEED=` tries others.
    #[test]
    fn ten_thousand_mutated_events_are_read_without_a_panic_and_what_is_wrong_is_said_without_their_content() {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
        println!("SEED={seed}");
        let mut mutator = Mutator::new(seed);
        let specimens = specimens(GRACE, "$target");
        let (mut events, mut poison, mut skipped) = (0, 0, 0);
        for _ in 0..10_000 {
            let mutated = mutator.mutate(&specimens).to_string();
            match read(&room_id(), &mutated) {
                Read::Event(_) => events += 1,
                Read::Skip => skipped += 1,
                Read::Poison { detail, .. } => {
                    poison += 1;
                    assert!(!detail.contains("words") && !detail.contains("drop table"), "{detail}");
                }
            }
            // A homeserver that sends less than an event.
            let cut = mutated.char_indices().map(|(at, _)| at).nth(mutator.below(mutated.len())).unwrap_or(0);
            read(&room_id(), &mutated[..cut]);
        }
        println!("{events} events, {poison} poison, {skipped} skipped");
        assert!(events > 500 && poison > 500, "the mutations are too mild or too wild");
    }

    #[test]
    fn a_redaction_names_its_target_in_old_and_in_new_rooms() {
        let old = json!({"type": "m.room.redaction", "event_id": "$r", "sender": GRACE, "origin_server_ts": 1, "redacts": "$x",
            "content": {}});
        let new = json!({"type": "m.room.redaction", "event_id": "$r", "sender": GRACE, "origin_server_ts": 1,
            "content": {"redacts": "$x", "reason": "spam"}});
        for redaction in [old, new] {
            let What::Redaction { target } = event(&redaction).what else { panic!("{redaction}") };
            assert_eq!(target.as_str(), "$x");
        }
    }

    #[test]
    fn a_bare_end_of_candidates_is_legal() {
        let content = json!({"call_id": "c", "party_id": "p", "version": "1", "candidates": [{"candidate": ""}]});
        let json = json!({"type": "m.call.candidates", "event_id": "$c", "sender": GRACE, "origin_server_ts": 1,
            "content": content});
        let What::Call(signal) = event(&json).what else { panic!() };
        assert_eq!(serde_json::from_str::<Value>(&signal.content).unwrap(), content);
    }

    #[test]
    fn html_from_outside_is_sanitised_and_a_file_is_kept_as_a_reference() {
        let content = json!({"msgtype": "m.image", "body": "a cat", "filename": "cat.png", "url": "mxc://evil.example/cat",
            "format": "org.matrix.custom.html", "formatted_body": "<script>x</script><img src=\"https://evil.example/t\"><b>a cat</b>",
            "info": {"mimetype": "image/png", "size": 5, "w": 3, "h": 4}});
        let json = json!({"type": "m.room.message", "event_id": "$c", "sender": GRACE, "origin_server_ts": 1, "content": content});
        let What::Message { kind, content, .. } = event(&json).what else { panic!() };
        assert_eq!(kind, MessageKind::Image);
        let formatted = content.formatted.unwrap();
        assert!(formatted.contains("<b>a cat</b>"), "{formatted}");
        assert!(!formatted.contains("script") && !formatted.contains("https://"), "{formatted}");
        let media = content.media.unwrap();
        assert_eq!((media.url.as_str(), media.filename.as_deref()), ("mxc://evil.example/cat", Some("cat.png")));
        assert_eq!((media.mimetype.as_deref(), media.size, media.width), (Some("image/png"), Some(5), Some(3)));
    }

    #[test]
    fn a_file_whose_details_make_no_sense_is_kept_without_them() {
        let json = json!({"type": "m.room.message", "event_id": "$c", "sender": GRACE, "origin_server_ts": 1,
            "content": {"msgtype": "m.image", "body": "a cat", "url": "mxc://nova.test/cat", "info": {"size": "large"}}});
        let What::Message { content, .. } = event(&json).what else { panic!() };
        assert_eq!(content.media.unwrap().size, None);
    }
}
