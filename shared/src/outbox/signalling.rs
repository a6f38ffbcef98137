//! What an operation of a call's lane sends, and whether it is still to be sent. Read at a claim.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    calls::{self, Origin, RING_MARGIN, SignalKind, Status},
    ids::{CallId, ConversationId, MatrixUserId, OutboxId, SignalId, UserId},
};

/// Something that was said in a call.
#[derive(Debug, Clone)]
pub struct SignalToSend {
    /// Its id.
    pub signal_id: SignalId,
    /// The device that says it.
    pub party_id: Option<String>,
    /// Whose device.
    pub author_id: UserId,
    /// What it says, sealed; none for what says nothing but itself.
    pub payload: Option<Vec<u8>>,
    /// Why, of a hangup; which party, of a `select_answer`.
    pub detail: Option<String>,
}

/// The call that an operation is about, and what it says there.
#[derive(Debug, Clone)]
pub struct CallToSend {
    /// The call.
    pub call_id: CallId,
    /// As its events name it.
    pub matrix_call_id: String,
    /// Where it was placed.
    pub origin: Origin,
    /// Where it stands.
    pub status: Status,
    /// Who is called; none for everybody in the conversation.
    pub invitee_id: Option<UserId>,
    /// Who that is on Matrix, when it is no user of ours.
    pub invitee: Option<MatrixUserId>,
    /// Until when it may ring, by this machine's clock; none when that is over.
    pub rings_until: Option<Instant>,
    /// The operation that sends the invite, of a call that was placed here.
    pub invite: Option<OutboxId>,
    /// Whether the invite stands in the room, or may.
    pub invite_may_stand: bool,
    /// What is said, in order; several of candidates.
    pub signals: Vec<SignalToSend>,
}

impl CallToSend {
    /// For how long it may still ring, if that is worth an invite.
    pub fn rings_for(&self) -> Option<Duration> {
        let left = self.rings_until?.saturating_duration_since(Instant::now());
        (left >= RING_MARGIN).then_some(left)
    }

    /// Whether anybody may hear what it says: the invite stands in the room, or may, or is what it says. `was_sent` knows
    /// what was sent since the claim.
    pub fn is_heard(&self, kind: SignalKind, was_sent: impl FnOnce(OutboxId) -> bool) -> bool {
        kind == SignalKind::Invite
            || self.origin == Origin::Matrix
            || self.invite_may_stand
            || self.invite.is_some_and(was_sent)
    }

    /// Whether what it says is still to be said. What concludes a call is, always; what sets it up is not once it is over.
    pub(super) fn is_wanted(&self, kind: SignalKind) -> bool {
        let opens = self.signals.iter().all(|signal| kind.is_bare() || signal.payload.is_some());
        let timely = match kind {
            SignalKind::Invite => self.status == Status::Ringing && self.rings_for().is_some(),
            SignalKind::Reject | SignalKind::Hangup => true,
            _ => self.status != Status::Ended,
        };
        opens && timely && !self.signals.is_empty()
    }
}

type Key = (ConversationId, OutboxId);

/// Reads what operations of calls send: by conversation, operation and call. `now` was not before `read_at`.
pub(super) async fn read(
    conn: &mut PgConnection,
    (conversations, operations, calls): &(Vec<Uuid>, Vec<Uuid>, Vec<Uuid>),
    now: OffsetDateTime,
    read_at: Instant,
) -> Result<HashMap<Key, CallToSend>, sqlx::Error> {
    if operations.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query!(
        r#"
        select x.conversation_id as "conversation_id!: ConversationId", x.outbox_id as "outbox_id!: OutboxId",
            c.call_id as "call_id: CallId", c.matrix_call_id, c.origin as "origin: Origin", c.status as "status: Status",
            c.invitee_id as "invitee_id: UserId", k.matrix_user_id as "invitee?", c.ring_until,
            c.send_outbox_id as "invite: OutboxId",
            exists (
                select 1 from sent_events s
                where s.conversation_id = c.conversation_id and s.outbox_id = c.send_outbox_id
            ) or exists (
                select 1 from dead_letters d
                where d.conversation_id = c.conversation_id and d.outbox_id = c.send_outbox_id
                    and d.maybe_sent_at is not null
            ) or exists (
                select 1 from withdrawn_operations w
                where w.conversation_id = c.conversation_id and w.outbox_id = c.send_outbox_id
            ) as "invite_may_stand!"
        from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as x (conversation_id, outbox_id, call_id)
        join calls c on c.conversation_id = x.conversation_id and c.call_id = x.call_id
        left join conversation_contacts k on k.conversation_id = c.conversation_id and k.contact_id = c.invitee_id
        "#,
        conversations,
        operations,
        calls,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut to_send: HashMap<Key, CallToSend> = rows
        .into_iter()
        .map(|row| {
            let left = Duration::try_from(row.ring_until - now).ok();
            let call = CallToSend {
                call_id: row.call_id,
                matrix_call_id: row.matrix_call_id,
                origin: row.origin,
                status: row.status,
                invitee_id: row.invitee_id,
                invitee: row.invitee.and_then(|user| user.parse().ok()),
                rings_until: left.map(|left| read_at + left),
                invite: row.invite,
                invite_may_stand: row.invite_may_stand,
                signals: Vec::new(),
            };
            ((row.conversation_id, row.outbox_id), call)
        })
        .collect();
    let signals = sqlx::query!(
        r#"
        select s.conversation_id as "conversation_id: ConversationId", x.outbox_id as "outbox_id!: OutboxId",
            s.signal_id as "signal_id: SignalId", s.party_id, s.author_id as "author_id: UserId", s.payload, s.detail
        from unnest($1::uuid[], $2::uuid[]) as x (conversation_id, outbox_id)
        join call_signals s on s.conversation_id = x.conversation_id and s.send_outbox_id = x.outbox_id
        order by s.conversation_id, s.seq
        "#,
        conversations,
        operations,
    )
    .fetch_all(conn)
    .await?;
    for row in signals {
        if let Some(call) = to_send.get_mut(&(row.conversation_id, row.outbox_id)) {
            call.signals.push(SignalToSend {
                signal_id: row.signal_id,
                party_id: row.party_id,
                author_id: row.author_id,
                payload: row.payload,
                detail: row.detail,
            });
        }
    }
    Ok(to_send)
}

/// Opens what a signal says.
pub fn open_signal(
    keys: &crate::seal::KeyRing,
    conversation_id: ConversationId,
    signal: &SignalToSend,
) -> Result<Option<serde_json::Value>, calls::CallError> {
    signal.payload.as_ref().map(|sealed| calls::open(keys, conversation_id, signal.signal_id, sealed)).transpose()
}
