//! Calls as their members see them.

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{CallError, EndReason, Origin, Status, signals};
use crate::{
    chat::{self, Contact},
    ids::{CallId, ConversationId, EventId, RoomId, SignalId, UserId},
    outbox::Delivery,
    seal::KeyRing,
};

/// Whose answer counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answerer {
    /// Who; none when only the device is known.
    pub user_id: Option<UserId>,
    /// By which device; empty for one of before version 1.
    pub party_id: String,
}

/// A call, as one of its members sees it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its id.
    pub call_id: CallId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// Where it stands.
    pub status: Status,
    /// Why it ended.
    pub reason: Option<EndReason>,
    /// Where it was placed.
    pub origin: Origin,
    /// Who calls.
    pub initiator_id: UserId,
    /// Who that is, when it is no user of ours.
    pub external: Option<Contact>,
    /// Who is called; none for everybody in the conversation.
    pub invitee_id: Option<UserId>,
    /// Whose answer counts.
    pub answered_by: Option<Answerer>,
    /// The reader's own device in it, the newest if there are several.
    pub party_id: Option<String>,
    /// When it was placed.
    pub created_at: OffsetDateTime,
    /// When nobody may ring for it any more.
    pub ring_until: OffsetDateTime,
    /// When it was answered.
    pub answered_at: Option<OffsetDateTime>,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// Who ended it; none when nobody did.
    pub ended_by: Option<UserId>,
    /// The call that it lost to.
    pub replaced_by: Option<CallId>,
    /// Whether the reader was called, and neither answered nor declined before it was over.
    pub missed: bool,
    /// The Matrix event of the invite, once it is known.
    pub event_id: Option<EventId>,
    /// The device that calls.
    pub matrix_party_id: Option<String>,
    /// The conversation's room, once there is one.
    pub room_id: Option<RoomId>,
    /// How far the invite has come; none for a call from Matrix.
    pub delivery: Option<Delivery>,
}

/// What a client that comes late needs to join.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// What the caller offers: its SDP and what its streams are.
    pub offer: Option<(String, Option<Value>)>,
    /// What the device answered whose answer counts.
    pub answer: Option<(String, Option<Value>)>,
    /// What the two devices have named so far, in order: ways to reach them.
    pub candidates: Vec<Named>,
}

/// Candidates of a device.
#[derive(Debug, Clone)]
pub struct Named {
    /// Whose device.
    pub user_id: UserId,
    /// Which device; none for one of before version 1.
    pub party_id: Option<String>,
    /// What it named, as it came.
    pub candidates: Vec<Value>,
}

/// Which calls.
#[derive(Debug, Clone, Copy)]
pub struct CallsRequest {
    /// Of this conversation only.
    pub conversation_id: Option<ConversationId>,
    /// Only those that the reader missed.
    pub missed: bool,
    /// Only those before this one.
    pub before: Option<CallId>,
    /// How many at most.
    pub limit: i64,
}

/// The conversation of a call.
pub async fn conversation_of_call(
    conn: &mut PgConnection,
    call_id: CallId,
) -> Result<Option<ConversationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select conversation_id as "conversation_id: ConversationId" from calls where call_id = $1
        order by created_at limit 1
        "#,
        call_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

struct Detail {
    call_id: CallId,
    conversation_id: ConversationId,
    status: Status,
    reason: Option<EndReason>,
    origin: Origin,
    initiator_id: UserId,
    contact_matrix_user_id: Option<String>,
    contact_display_name: Option<String>,
    invitee_id: Option<UserId>,
    answered_by: Option<UserId>,
    answered_party_id: Option<String>,
    party_id: Option<String>,
    created_at: OffsetDateTime,
    ring_until: OffsetDateTime,
    answered_at: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
    ended_by: Option<UserId>,
    replaced_by: Option<CallId>,
    missed: bool,
    event_id: Option<EventId>,
    matrix_party_id: Option<String>,
    room_id: Option<RoomId>,
    delivery: Option<Delivery>,
}

impl From<Detail> for Call {
    fn from(row: Detail) -> Self {
        let external = row.contact_matrix_user_id.map(|matrix_user_id| Contact {
            contact_id: row.initiator_id,
            matrix_user_id,
            display_name: row.contact_display_name,
        });
        let user_id = row.answered_by;
        Self {
            call_id: row.call_id,
            conversation_id: row.conversation_id,
            status: row.status,
            reason: row.reason,
            origin: row.origin,
            initiator_id: row.initiator_id,
            external,
            invitee_id: row.invitee_id,
            answered_by: row.answered_party_id.map(|party_id| Answerer { user_id, party_id }),
            party_id: row.party_id,
            created_at: row.created_at,
            ring_until: row.ring_until,
            answered_at: row.answered_at,
            ended_at: row.ended_at,
            ended_by: row.ended_by,
            replaced_by: row.replaced_by,
            missed: row.missed,
            event_id: row.event_id,
            matrix_party_id: row.matrix_party_id,
            room_id: row.room_id,
            delivery: row.delivery,
        }
    }
}

/// A call, for a member of its conversation.
pub async fn call(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    reader: UserId,
) -> Result<Call, CallError> {
    if !chat::is_member(conn, conversation_id, reader).await? {
        return Err(CallError::NotAMember);
    }
    calls_of(conn, conversation_id, &[call_id], reader).await?.pop().ok_or(CallError::NoSuchCall)
}

/// Calls of a conversation, for whoever has made sure of the reader's right to them. Those that are not there are left out.
pub async fn calls_of(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    ids: &[CallId],
    reader: UserId,
) -> Result<Vec<Call>, sqlx::Error> {
    let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
    let rows = sqlx::query_as!(
        Detail,
        r#"
        select c.call_id as "call_id!: CallId", c.conversation_id as "conversation_id!: ConversationId",
            c.status as "status!: Status", c.reason as "reason: EndReason", c.origin as "origin!: Origin",
            c.initiator_id as "initiator_id!: UserId", k.matrix_user_id as "contact_matrix_user_id?",
            k.display_name as "contact_display_name?", c.invitee_id as "invitee_id: UserId",
            c.answered_by as "answered_by: UserId", c.answered_party_id,
            (
                select p.party_id from call_parties p
                where p.conversation_id = c.conversation_id and p.call_id = c.call_id and p.user_id = $3
                    and p.origin = 'nova'
                order by p.joined_at desc, p.party_id
                limit 1
            ) as party_id,
            c.created_at as "created_at!", c.ring_until as "ring_until!", c.answered_at, c.ended_at,
            c.ended_by as "ended_by: UserId", c.replaced_by as "replaced_by: CallId",
            call_missed(c.status, c.reason, c.answered_at, c.initiator_id, c.invitee_id, $3) and not exists (
                select 1 from call_signals s
                where s.conversation_id = c.conversation_id and s.call_id = c.call_id and s.kind = 'reject'
                    and s.author_id = $3
            ) as "missed!",
            c.matrix_invite_event_id as "event_id: EventId", c.matrix_party_id, c.matrix_room_id as "room_id: RoomId",
            c.delivery as "delivery: Delivery"
        from call_details c
        left join conversation_contacts k on k.conversation_id = c.conversation_id and k.contact_id = c.initiator_id
        where c.conversation_id = $1 and c.call_id = any($2)
        order by c.created_at desc, c.call_id desc
        "#,
        conversation_id.as_uuid(),
        &ids,
        reader.as_uuid(),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Call::from).collect())
}

/// The calls of the conversations that a user belongs to, newest first: those that they take part in.
pub async fn calls(conn: &mut PgConnection, reader: UserId, request: &CallsRequest) -> Result<Vec<Call>, CallError> {
    if let Some(conversation_id) = request.conversation_id
        && !chat::is_member(conn, conversation_id, reader).await?
    {
        return Err(CallError::NotAMember);
    }
    // Of each conversation so many at most, by its index; then the newest of all.
    let page = sqlx::query!(
        r#"
        select c.conversation_id as "conversation_id!: ConversationId", c.call_id as "call_id!: CallId"
        from conversation_members m
        cross join lateral (
            select * from calls
            where calls.conversation_id = m.conversation_id
                and (calls.initiator_id = $1 or coalesce(calls.invitee_id, $1) = $1)
                and (not $3 or call_missed(calls.status, calls.reason, calls.answered_at, calls.initiator_id,
                    calls.invitee_id, $1) and not exists (
                        select 1 from call_signals s
                        where s.conversation_id = calls.conversation_id and s.call_id = calls.call_id
                            and s.kind = 'reject' and s.author_id = $1
                    ))
                and ($4::uuid is null or (calls.created_at, calls.call_id) < (
                    select b.created_at, b.call_id from calls b where b.call_id = $4 order by b.created_at limit 1
                ))
            order by calls.created_at desc, calls.call_id desc
            limit $5
        ) c
        where m.user_id = $1 and m.removed_seq is null and ($2::uuid is null or m.conversation_id = $2)
        order by c.created_at desc, c.call_id desc
        limit $5
        "#,
        reader.as_uuid(),
        request.conversation_id.map(ConversationId::as_uuid),
        request.missed,
        request.before.map(CallId::as_uuid),
        request.limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut calls = Vec::with_capacity(page.len());
    for row in page {
        calls.extend(calls_of(conn, row.conversation_id, &[row.call_id], reader).await?);
    }
    Ok(calls)
}

/// What was offered and answered in a call that is not over.
pub async fn session(conn: &mut PgConnection, keys: &KeyRing, call: &Call) -> Result<Session, CallError> {
    if call.status == Status::Ended {
        return Ok(Session::default());
    }
    let answered_by = call.answered_by.as_ref();
    let rows = sqlx::query!(
        r#"
        select s.signal_id as "signal_id: SignalId", s.kind, s.payload as "payload!", s.party_id,
            s.author_id as "author_id: UserId"
        from call_signals s
        join calls c on c.conversation_id = s.conversation_id and c.call_id = s.call_id
        where s.conversation_id = $1 and s.call_id = $2 and s.payload is not null and (
                s.kind in ('invite', 'candidates') and s.author_id = c.initiator_id
                    and coalesce(s.party_id, '') = coalesce(c.matrix_party_id, '')
                or s.kind in ('answer', 'candidates') and s.author_id = $3 and coalesce(s.party_id, '') = $4
            )
        order by s.seq
        "#,
        call.conversation_id.as_uuid(),
        call.call_id.as_uuid(),
        answered_by.and_then(|answerer| answerer.user_id).map(UserId::as_uuid),
        answered_by.map(|answerer| answerer.party_id.as_str()),
    )
    .fetch_all(conn)
    .await?;
    let mut session = Session::default();
    for row in rows {
        let mut content = signals::open(keys, call.conversation_id, row.signal_id, &row.payload)?;
        let (pointer, place) = match row.kind.as_str() {
            "invite" => ("/offer/sdp", &mut session.offer),
            "answer" => ("/answer/sdp", &mut session.answer),
            _ => {
                if let Some(Value::Array(candidates)) = content.get_mut("candidates").map(Value::take) {
                    session.candidates.push(Named { user_id: row.author_id, party_id: row.party_id, candidates });
                }
                continue;
            }
        };
        let sdp = content.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        if let Some(sdp) = sdp.filter(|_| place.is_none()) {
            *place = Some((sdp, content.get("sdp_stream_metadata").cloned()));
        }
    }
    Ok(session)
}
