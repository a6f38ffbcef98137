//! Events that cannot be applied yet, or at all: kept sealed.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Applied, InboundError, Incoming};
use crate::{
    chat::Turn,
    ids::{EventId, MessageId, RoomId},
    seal::{KeyRing, Place},
};

fn place(turn: &Turn, parked_id: Uuid) -> Place {
    Place { conversation_id: turn.conversation_id, message_id: MessageId::from(parked_id), revision: 1 }
}

/// Keeps an event until its target comes.
pub(super) async fn wait_for(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    event: &Incoming,
    target: &EventId,
) -> Result<Applied, InboundError> {
    let text = serde_json::to_string(event).map_err(|_| InboundError::Parked)?;
    let parked_id = Uuid::now_v7();
    let sealed = keys.seal(place(turn, parked_id), &text)?;
    sqlx::query!(
        r#"
        insert into sync_parked (conversation_id, event_id, parked_id, cause, relates_to, event, room_id, sent_at_ms,
            parked_at)
        values ($1, $2, $3, 'awaits_target', $4, $5, $6, $7, $8)
        on conflict do nothing
        "#,
        turn.conversation_id.as_uuid(),
        event.event_id.as_str(),
        parked_id,
        target.as_str(),
        sealed,
        event.room_id.as_str(),
        event.sent_at_ms,
        turn.at,
    )
    .execute(conn)
    .await?;
    Ok(Applied::Parked)
}

/// Takes out what waited for an event, oldest first. What cannot be opened stays, for people to look at: it must not keep
/// what it waited for from being applied.
pub(super) async fn release(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    target: &EventId,
) -> Result<Vec<Incoming>, InboundError> {
    let mut rows = sqlx::query!(
        r#"
        select event_id, parked_id, event, sent_at_ms from sync_parked
        where conversation_id = $1 and relates_to = $2 and cause = 'awaits_target'
        "#,
        turn.conversation_id.as_uuid(),
        target.as_str(),
    )
    .fetch_all(&mut *conn)
    .await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    rows.sort_by(|a, b| (a.sent_at_ms, &a.event_id).cmp(&(b.sent_at_ms, &b.event_id)));
    let (mut released, mut gone, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let text = keys.open(place(turn, row.parked_id), &row.event).ok();
        match text.and_then(|text| serde_json::from_str::<Incoming>(&text).ok()) {
            Some(event) => {
                released.push(event);
                gone.push(row.event_id);
            }
            None => damaged.push(row.event_id),
        }
    }
    sqlx::query!(
        "delete from sync_parked where conversation_id = $1 and event_id = any($2)",
        turn.conversation_id.as_uuid(),
        &gone,
    )
    .execute(&mut *conn)
    .await?;
    if !damaged.is_empty() {
        tracing::error!(events = damaged.len(), "parked events cannot be opened: is a key missing from CONTENT_KEYS?");
        sqlx::query!(
            r#"
            update sync_parked set cause = 'poison', detail = 'it could not be opened when its target came'
            where conversation_id = $1 and event_id = any($2)
            "#,
            turn.conversation_id.as_uuid(),
            &damaged,
        )
        .execute(conn)
        .await?;
    }
    Ok(released)
}

/// Keeps an event that makes no sense, as it came, for people to look at. False when it is known already. `detail` says
/// what is wrong with it, without its content.
pub async fn park_poison(
    conn: &mut PgConnection,
    turn: &Turn,
    keys: &KeyRing,
    room_id: &RoomId,
    event_id: &EventId,
    event: &str,
    detail: &str,
) -> Result<bool, InboundError> {
    let parked_id = Uuid::now_v7();
    let sealed = keys.seal(place(turn, parked_id), event)?;
    let parked = sqlx::query!(
        r#"
        insert into sync_parked (conversation_id, event_id, parked_id, cause, event, detail, room_id, sent_at_ms,
            parked_at)
        values ($1, $2, $3, 'poison', $4, $5, $6, 0, $7)
        on conflict do nothing
        "#,
        turn.conversation_id.as_uuid(),
        event_id.as_str(),
        parked_id,
        sealed,
        detail,
        room_id.as_str(),
        turn.at,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(parked == 1)
}

/// Forgets what waited for its target for so many days, and poison as old: at most `limit` of them. How many went.
pub async fn forget_parked(conn: &mut PgConnection, days: i32, limit: i64) -> Result<u64, sqlx::Error> {
    let gone = sqlx::query!(
        r#"
        delete from sync_parked
        where (conversation_id, event_id) in (
            select conversation_id, event_id from sync_parked
            where cause in ('awaits_target', 'poison') and parked_at < outbox_now() - make_interval(days => $1)
            limit $2
        )
        "#,
        days,
        limit,
    )
    .execute(conn)
    .await?
    .rows_affected();
    Ok(gone)
}
