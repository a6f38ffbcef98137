//! The row of a call.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{EndReason, Origin, State, Status};
use crate::ids::{CallId, ConversationId, OutboxId, UserId};

/// A call, as it stands under its conversation's lock.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) call_id: CallId,
    pub(super) matrix_call_id: String,
    pub(super) origin: Origin,
    pub(super) status: Status,
    pub(super) initiator_id: UserId,
    pub(super) invitee_id: Option<UserId>,
    pub(super) matrix_party_id: Option<String>,
    pub(super) answered_by: Option<UserId>,
    pub(super) answered_party_id: Option<String>,
    pub(super) answered_origin: Option<Origin>,
    pub(super) send_outbox_id: Option<OutboxId>,
    pub(super) ring_until: OffsetDateTime,
    pub(super) answered_at: Option<OffsetDateTime>,
}

impl Row {
    pub(super) fn state(&self) -> State {
        State {
            status: self.status,
            initiator: self.initiator_id,
            invitee: self.invitee_id,
            answered_by: self.answered_by,
            answered_party: self.answered_party_id.clone(),
        }
    }
}

/// Reads a call.
pub(super) async fn load(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
) -> Result<Option<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        select call_id as "call_id: CallId", matrix_call_id, origin as "origin: Origin", status as "status: Status",
            initiator_id as "initiator_id: UserId", invitee_id as "invitee_id: UserId", matrix_party_id,
            answered_by as "answered_by: UserId", answered_party_id, answered_origin as "answered_origin: Origin",
            send_outbox_id as "send_outbox_id: OutboxId", ring_until, answered_at
        from calls
        where conversation_id = $1 and call_id = $2
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The calls of a conversation that are not over.
pub(super) async fn live(conn: &mut PgConnection, conversation_id: ConversationId) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        select call_id as "call_id: CallId", matrix_call_id, origin as "origin: Origin", status as "status: Status",
            initiator_id as "initiator_id: UserId", invitee_id as "invitee_id: UserId", matrix_party_id,
            answered_by as "answered_by: UserId", answered_party_id, answered_origin as "answered_origin: Origin",
            send_outbox_id as "send_outbox_id: OutboxId", ring_until, answered_at
        from calls
        where conversation_id = $1 and status <> 'ended'
        order by seq
        "#,
        conversation_id.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// A call that is written down for the first time.
#[derive(Debug)]
pub(super) struct NewRow<'a> {
    pub(super) call_id: CallId,
    pub(super) matrix_call_id: &'a str,
    pub(super) origin: Origin,
    pub(super) initiator_id: UserId,
    pub(super) invitee_id: Option<UserId>,
    pub(super) party_id: Option<&'a str>,
    pub(super) send_outbox_id: Option<OutboxId>,
    pub(super) event_id: Option<&'a str>,
    pub(super) created_at: OffsetDateTime,
    pub(super) ring_until: OffsetDateTime,
}

/// Writes a call down; it rings. False when there is one of that id.
pub(super) async fn insert(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    seq: i64,
    new: &NewRow<'_>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        r#"
        insert into calls (conversation_id, call_id, matrix_call_id, seq, origin, status, initiator_id, invitee_id,
            matrix_party_id, send_outbox_id, matrix_invite_event_id, created_at, ring_until)
        values ($1, $2, $3, $4, $5, 'ringing', $6, $7, $8, $9, $10, $11, $12)
        on conflict do nothing
        "#,
        conversation_id.as_uuid(),
        new.call_id.as_uuid(),
        new.matrix_call_id,
        seq,
        new.origin.as_str(),
        new.initiator_id.as_uuid(),
        new.invitee_id.map(UserId::as_uuid),
        new.party_id,
        new.send_outbox_id.map(OutboxId::as_uuid),
        new.event_id,
        new.created_at,
        new.ring_until,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(inserted > 0)
}

/// Somebody answered, and that counts.
pub(super) async fn answered(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    by: Option<UserId>,
    party_id: &str,
    origin: Origin,
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update calls
        set status = 'active', answered_by = $3, answered_party_id = $4, answered_origin = $5,
            answered_at = coalesce(answered_at, $6)
        where conversation_id = $1 and call_id = $2
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        by.map(UserId::as_uuid),
        party_id,
        origin.as_str(),
        at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// It is over.
pub(super) async fn ended(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    reason: EndReason,
    by: Option<UserId>,
    replaced_by: Option<CallId>,
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update calls
        set status = 'ended', reason = $3, ended_by = $4, replaced_by = $5, ended_at = $6
        where conversation_id = $1 and call_id = $2
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        reason.as_str(),
        by.map(UserId::as_uuid),
        replaced_by.map(CallId::as_uuid),
        at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A device of a user takes part from now on. False when the party id is another user's.
pub(super) async fn join(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    party_id: &str,
    user_id: UserId,
    origin: Origin,
    at: OffsetDateTime,
) -> Result<bool, sqlx::Error> {
    sqlx::query!(
        r#"
        insert into call_parties (conversation_id, call_id, party_id, user_id, origin, joined_at)
        values ($1, $2, $3, $4, $5, $6)
        on conflict do nothing
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        party_id,
        user_id.as_uuid(),
        origin.as_str(),
        at,
    )
    .execute(&mut *conn)
    .await?;
    Ok(party(conn, conversation_id, call_id, party_id)
        .await?
        .is_some_and(|(user, known)| user == user_id && known == origin))
}

/// Whose device a party is, and where it speaks.
pub(super) async fn party(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    party_id: &str,
) -> Result<Option<(UserId, Origin)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select user_id as "user_id: UserId", origin as "origin: Origin" from call_parties
        where conversation_id = $1 and call_id = $2 and party_id = $3
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        party_id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.user_id, row.origin)))
}

/// A user's device in a call, the newest if there are several.
pub(super) async fn party_of(
    conn: &mut PgConnection,
    conversation_id: ConversationId,
    call_id: CallId,
    user_id: UserId,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select party_id from call_parties
        where conversation_id = $1 and call_id = $2 and user_id = $3 and origin = 'nova'
        order by joined_at desc, party_id
        limit 1
        "#,
        conversation_id.as_uuid(),
        call_id.as_uuid(),
        user_id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}
