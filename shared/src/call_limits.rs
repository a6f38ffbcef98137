//! How many calls may be placed: by one user, and to one.
//!
//! A bucket of tokens for each, which holds what a minute allows and fills within a minute. It is a row, so all processes
//! count together; and it is counted in the transaction that places the call, so what is refused for another reason, or
//! repeated under its idempotency key, is not counted.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    config::CallLimits,
    ids::{ConversationId, UserId},
};

/// Who is to be rung.
#[derive(Debug, Clone, Copy)]
pub enum Callee {
    /// A user or contact.
    One(UserId),
    /// Whoever is in the conversation.
    All(ConversationId),
}

/// Why a call is not placed.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// There were as many calls as a minute allows.
    #[error("the limit of calls is reached")]
    Reached {
        /// Of whose calls.
        role: Role,
        /// How many a minute allows.
        limit: u32,
        /// When the next one may be placed.
        retry_after: Duration,
    },
    /// The database refused or did not answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Whose calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Those that one places.
    Caller,
    /// Those that one is rung for.
    Callee,
}

impl Role {
    /// As in the database and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Callee => "callee",
        }
    }
}

/// Counts a call that is about to be placed. The callers' buckets are taken before the callees', so that nobody waits in a
/// ring.
pub async fn count(
    conn: &mut PgConnection,
    limits: CallLimits,
    initiator_id: UserId,
    callee: Callee,
) -> Result<(), LimitError> {
    let rung = match callee {
        Callee::One(user_id) => user_id.as_uuid(),
        Callee::All(conversation_id) => conversation_id.as_uuid(),
    };
    for (role, subject_id, limit) in
        [(Role::Caller, initiator_id.as_uuid(), limits.by_one), (Role::Callee, rung, limits.to_one)]
    {
        let Some(limit) = limit else { continue };
        if let Some(retry_after) = take(conn, role, subject_id, limit).await? {
            return Err(LimitError::Reached { role, limit, retry_after });
        }
    }
    Ok(())
}

/// Takes a token. When there is none: how long until there is.
async fn take(
    conn: &mut PgConnection,
    role: Role,
    subject_id: Uuid,
    limit: u32,
) -> Result<Option<Duration>, sqlx::Error> {
    // Whoever waited for the row has an older statement than the one that it waited for: time does not go back for that.
    let taken = sqlx::query!(
        r#"
        insert into call_allowances as a (subject_id, role, tokens, counted_at)
        values ($1, $2, $3::float8 - 1, outbox_now())
        on conflict (subject_id, role) do update
        set tokens = least($3, a.tokens
                + greatest(extract(epoch from outbox_now() - a.counted_at)::float8, 0) * $3 / 60) - 1,
            counted_at = greatest(a.counted_at, outbox_now())
        where least($3, a.tokens + greatest(extract(epoch from outbox_now() - a.counted_at)::float8, 0) * $3 / 60) >= 1
        "#,
        subject_id,
        role.as_str(),
        f64::from(limit),
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if taken == 1 {
        return Ok(None);
    }
    let left = sqlx::query_scalar!(
        r#"
        select tokens + greatest(extract(epoch from outbox_now() - counted_at)::float8, 0) * $3 / 60 as "left!"
        from call_allowances
        where subject_id = $1 and role = $2
        "#,
        subject_id,
        role.as_str(),
        f64::from(limit),
    )
    .fetch_one(conn)
    .await?;
    let seconds = (1.0 - left).max(0.0) * 60.0 / f64::from(limit);
    Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or_default()))
}

/// Forgets buckets that are full again. Returns how many; call it again while that is as many as `limit`.
pub async fn forget(pool: &PgPool, limit: i64) -> Result<u64, sqlx::Error> {
    let gone = sqlx::query!(
        r#"
        delete from call_allowances
        where (subject_id, role) in (
            select subject_id, role from call_allowances
            where counted_at <= outbox_now() - interval '2 minutes'
            limit $1
            for no key update skip locked
        )
        "#,
        limit,
    )
    .execute(pool)
    .await?;
    Ok(gone.rows_affected())
}
