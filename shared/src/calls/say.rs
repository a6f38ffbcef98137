//! What our own clients do: place calls, and speak in them.

use std::time::Duration;

use serde_json::{Map, Value, json};
use sqlx::PgConnection;

use super::{
    CallError, EndReason, MAX_RING, Move, Next, Origin, RING_MARGIN, SignalKind, Status, candidates,
    carry::{self, Said, Send},
    ending::{Ender, end},
    glare,
    row::{self, NewRow, Row},
};
use crate::{
    chat::Turn,
    events::{self, EventKind},
    ids::{CallId, ConversationId, OutboxId, UserId},
    seal::KeyRing,
};

/// A call to be placed.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// Its id.
    pub call_id: CallId,
    /// Who calls.
    pub initiator_id: UserId,
    /// The device that calls; made up when none is given.
    pub party_id: Option<String>,
    /// Who is called; by default the other one, where there are just two.
    pub invitee_id: Option<UserId>,
    /// For how long it rings.
    pub lifetime: Duration,
    /// What the device offers, byte for byte.
    pub sdp: String,
    /// What its streams are.
    pub sdp_stream_metadata: Option<Value>,
    /// Whether it rings on Matrix too.
    pub on_matrix: bool,
}

/// Something that a client says in a call.
#[derive(Debug, Clone)]
pub enum Saying {
    /// Answers.
    Answer {
        /// The device's answer, byte for byte.
        sdp: String,
        /// What its streams are.
        sdp_stream_metadata: Option<Value>,
    },
    /// Ways to reach the device, as browsers have them. An empty one is the last.
    Candidates(Vec<Value>),
    /// Whose answer counts.
    SelectAnswer {
        /// Which device.
        party_id: String,
    },
    /// Changes what is sent.
    Negotiate {
        /// `{type, sdp}`.
        description: Value,
        /// For how long the offer may be answered, in milliseconds.
        lifetime_ms: Option<u64>,
        /// What the streams are.
        sdp_stream_metadata: Option<Value>,
    },
    /// Says what the streams are.
    Metadata {
        /// What they are.
        sdp_stream_metadata: Value,
    },
    /// Does not want to answer.
    Reject,
    /// Hangs up.
    Hangup {
        /// Why.
        reason: EndReason,
    },
}

/// A party id for a device that gave none.
pub(super) fn new_party() -> String {
    format!("nova-{}", uuid::Uuid::new_v4())
}

/// Who else is in a conversation: members, and contacts who are in its room.
pub(super) async fn others(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    user_id: UserId,
) -> Result<Vec<UserId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select user_id as "user_id!: UserId" from conversation_members
        where conversation_id = $1 and removed_seq is null and user_id <> $2
        union
        select contact_id from conversation_contacts
        where conversation_id = $1 and present and contact_id <> $2
        "#,
        conversation_id.as_uuid(),
        user_id.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// Places a call: it rings. It may lose at once to one that rings the other way: then it is ended, and says which.
pub async fn initiate(
    conn: &mut PgConnection,
    turn: &mut Turn,
    keys: &KeyRing,
    new: &NewCall,
) -> Result<(), CallError> {
    let others = others(conn, turn.conversation_id, new.initiator_id).await?;
    let invitee_id = match (new.invitee_id, others.as_slice()) {
        (Some(invitee), _) if !others.contains(&invitee) => return Err(CallError::NoSuchInvitee),
        (None, []) => return Err(CallError::NoSuchInvitee),
        (None, [other]) => Some(*other),
        (invitee, _) => invitee,
    };
    let party_id = new.party_id.clone().unwrap_or_else(new_party);
    let matrix_call_id = new.call_id.to_string();
    let ring_until = turn.at + new.lifetime.min(MAX_RING);
    let send_outbox_id = new.on_matrix.then(OutboxId::generate);
    let row = NewRow {
        call_id: new.call_id,
        matrix_call_id: &matrix_call_id,
        origin: Origin::Nova,
        initiator_id: new.initiator_id,
        invitee_id,
        party_id: Some(&party_id),
        send_outbox_id,
        event_id: None,
        created_at: turn.at,
        ring_until,
    };
    let (conversation_id, seq, at) = (turn.conversation_id, turn.seq, turn.at);
    row::insert(conn, conversation_id, seq, &row).await?;
    row::join(conn, conversation_id, new.call_id, &party_id, new.initiator_id, Origin::Nova, at).await?;
    let call = loaded(conn, conversation_id, new.call_id).await?;
    if glare::settle(conn, turn, &call).await?.is_some() {
        return Ok(());
    }
    let said = Said {
        kind: SignalKind::Invite,
        party_id: Some(&party_id),
        author_id: new.initiator_id,
        content: Some((keys, &described("offer", &new.sdp, new.sdp_stream_metadata.as_ref()))),
        detail: None,
        send: send_outbox_id.map(|outbox_id| Send {
            outbox_id,
            not_before: None,
            expires_at: Some(ring_until - RING_MARGIN),
        }),
        told: true,
    };
    carry::put(conn, turn, &call, said).await?;
    Ok(())
}

/// Says something in a call, as one of its members does.
pub async fn say(
    conn: &mut PgConnection,
    turn: &mut Turn,
    keys: &KeyRing,
    call_id: CallId,
    user_id: UserId,
    party_id: Option<&str>,
    saying: Saying,
) -> Result<(), CallError> {
    let conversation_id = turn.conversation_id;
    let call = loaded(conn, conversation_id, call_id).await?;
    let given = match (party_id, &saying) {
        (Some(party_id), _) => {
            let known = row::party(conn, conversation_id, call_id, party_id).await?;
            if known.is_some_and(|(user, origin)| user != user_id || origin != Origin::Nova) {
                return Err(CallError::PartyTaken);
            }
            Some(party_id.to_owned())
        }
        // Each device that answers is one of its own.
        (None, Saying::Answer { .. }) => None,
        (None, _) => row::party_of(conn, conversation_id, call_id, user_id).await?,
    };
    let party_id = given.unwrap_or_else(new_party);
    let next = call.state().next(made(&saying, user_id, &party_id))?;
    // Over its time, whoever has not heard of that yet.
    if call.status == Status::Ringing && call.ring_until <= turn.at && matches!(saying, Saying::Answer { .. }) {
        return Err(CallError::Ended);
    }
    let joins = matches!(saying, Saying::Answer { .. } | Saying::Reject | Saying::Hangup { .. });
    if joins {
        row::join(conn, conversation_id, call_id, &party_id, user_id, Origin::Nova, turn.at).await?;
    } else if row::party(conn, conversation_id, call_id, &party_id).await?.is_none() {
        return Err(CallError::NoSuchParty);
    }
    let speaker = Speaker { keys, call: &call, user_id, party_id: &party_id };
    match saying {
        Saying::Answer { sdp, sdp_stream_metadata } if next == Next::Answered => {
            speaker.answer(conn, turn, &sdp, sdp_stream_metadata.as_ref()).await
        }
        Saying::Answer { .. } => Ok(()),
        Saying::Candidates(candidates) => {
            let to_matrix = speaker.is_heard_on_matrix(conn, turn).await?;
            candidates::say(conn, turn, keys, &call, (user_id, &party_id), candidates, to_matrix).await?;
            Ok(())
        }
        // What counts is decided with the first answer.
        Saying::SelectAnswer { .. } if next == Next::Unchanged => Ok(()),
        Saying::SelectAnswer { .. } => Err(CallError::AnsweredElsewhere),
        Saying::Negotiate { description, lifetime_ms, sdp_stream_metadata } => {
            let mut content = Map::new();
            content.insert("description".to_owned(), description);
            content.insert("lifetime".to_owned(), json!(lifetime_ms.unwrap_or(DEFAULT_NEGOTIATION_MS)));
            if let Some(metadata) = sdp_stream_metadata {
                content.insert("sdp_stream_metadata".to_owned(), metadata);
            }
            speaker.tell(conn, turn, SignalKind::Negotiate, &Value::Object(content)).await
        }
        Saying::Metadata { sdp_stream_metadata } => {
            let content = json!({"sdp_stream_metadata": sdp_stream_metadata});
            speaker.tell(conn, turn, SignalKind::SdpStreamMetadataChanged, &content).await
        }
        Saying::Reject | Saying::Hangup { .. } => {
            if let Next::Ended(reason) = next {
                return end(conn, turn, &call, reason, Ender::Nova(user_id, Some(&party_id)), None).await;
            }
            // One of several who are called: the others go on ringing, here and on Matrix.
            let said = Said {
                kind: SignalKind::Reject,
                party_id: Some(&party_id),
                author_id: user_id,
                content: None,
                detail: None,
                send: None,
                told: true,
            };
            carry::put(conn, turn, &call, said).await?;
            Ok(())
        }
    }
}

/// For how long an offer to change the call may be answered, where the client does not say.
const DEFAULT_NEGOTIATION_MS: u64 = 30_000;

fn made<'a>(saying: &'a Saying, user: UserId, party: &'a str) -> Move<'a> {
    match saying {
        Saying::Answer { .. } => Move::Answer { user, party },
        Saying::Candidates(_) | Saying::Metadata { .. } => Move::Tell { user },
        Saying::SelectAnswer { party_id } => Move::Select { user, party: party_id },
        Saying::Negotiate { .. } => Move::Negotiate { user },
        Saying::Reject => Move::Reject { user },
        Saying::Hangup { reason } => Move::Hangup { user, reason: *reason },
    }
}

/// Who speaks, in which call.
struct Speaker<'a> {
    keys: &'a KeyRing,
    call: &'a Row,
    user_id: UserId,
    party_id: &'a str,
}

impl Speaker<'_> {
    async fn answer(
        &self,
        conn: &mut PgConnection,
        turn: &mut Turn,
        sdp: &str,
        metadata: Option<&Value>,
    ) -> Result<(), CallError> {
        let (call, conversation_id) = (self.call, turn.conversation_id);
        let by = Some(self.user_id);
        row::answered(conn, conversation_id, call.call_id, by, self.party_id, Origin::Nova, turn.at).await?;
        let on_matrix = call.origin == Origin::Matrix;
        let said = Said {
            kind: SignalKind::Answer,
            party_id: Some(self.party_id),
            author_id: self.user_id,
            content: Some((self.keys, &described("answer", sdp, metadata))),
            detail: None,
            send: on_matrix.then(Send::now),
            told: true,
        };
        carry::put(conn, turn, call, said).await?;
        if !on_matrix {
            carry::take_back(conn, turn, call.call_id).await?;
            if carry::may_ring_there(conn, conversation_id, call).await? {
                carry::select(conn, turn, call, self.party_id).await?;
            }
        }
        events::record(conn, conversation_id, EventKind::CallUpdated, call.call_id.as_uuid()).await?;
        Ok(())
    }

    async fn tell(
        &self,
        conn: &mut PgConnection,
        turn: &mut Turn,
        kind: SignalKind,
        content: &Value,
    ) -> Result<(), CallError> {
        let to_matrix = self.is_heard_on_matrix(conn, turn).await?;
        let said = Said {
            kind,
            party_id: Some(self.party_id),
            author_id: self.user_id,
            content: Some((self.keys, content)),
            detail: None,
            send: to_matrix.then(Send::now),
            told: true,
        };
        carry::put(conn, turn, self.call, said).await?;
        Ok(())
    }

    /// Whether somebody on Matrix is, or may become, the other one.
    async fn is_heard_on_matrix(&self, conn: &mut PgConnection, turn: &Turn) -> Result<bool, CallError> {
        Ok(match (self.call.origin, self.call.answered_origin) {
            (Origin::Nova, Some(answered)) => answered == Origin::Matrix,
            (Origin::Nova, None) => carry::may_ring_there(conn, turn.conversation_id, self.call).await?,
            (Origin::Matrix, answered) => answered == Some(Origin::Nova),
        })
    }
}

fn described(kind: &str, sdp: &str, metadata: Option<&Value>) -> Value {
    let mut content = Map::new();
    content.insert(kind.to_owned(), json!({"type": kind, "sdp": sdp}));
    if let Some(metadata) = metadata {
        content.insert("sdp_stream_metadata".to_owned(), metadata.clone());
    }
    Value::Object(content)
}

async fn loaded(conn: &mut PgConnection, conversation_id: ConversationId, call_id: CallId) -> Result<Row, CallError> {
    row::load(conn, conversation_id, call_id).await?.ok_or(CallError::NoSuchCall)
}
