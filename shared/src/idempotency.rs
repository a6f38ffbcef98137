//! Idempotency keys: a request that is repeated under the same key is answered with the same resource, as it is then.
//!
//! The record is written in the transaction of the write that it stands for. It keeps a keyed fingerprint of the request,
//! the status and the resource's id for a day, and no content.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    ids::UserId,
    seal::{KeyRing, SealError},
};

/// Why a request under a key is refused.
#[derive(Debug, thiserror::Error)]
pub enum IdempotencyError {
    /// A request with this key is being answered just now.
    #[error("a request with this Idempotency-Key is under way; repeat it when that one is answered")]
    InFlight,
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request; use a new one")]
    AnotherRequest,
    /// The fingerprint could not be made.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database refused or did not answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What to do about a request.
#[derive(Debug)]
pub enum Entry {
    /// Do it, then [`Pending::record`] it in the same transaction.
    New(Pending),
    /// It was done: answer with this status and resource.
    Done {
        /// The status that was answered.
        status: u16,
        /// What was created.
        resource_id: Uuid,
    },
}

/// A key that is held until its transaction ends.
#[derive(Debug)]
pub struct Pending {
    user_id: UserId,
    route: &'static str,
    key: String,
    fingerprint: Vec<u8>,
}

/// Enters a request under its key. A second request of the same key does not wait for the first, it is told so.
pub async fn enter(
    conn: &mut PgConnection,
    keys: &KeyRing,
    user_id: UserId,
    route: &'static str,
    key: &str,
    request: &[u8],
) -> Result<Entry, IdempotencyError> {
    let free = sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtextextended($1, 0)) as "free!""#,
        format!("{user_id} {route} {key}"),
    )
    .fetch_one(&mut *conn)
    .await?;
    if !free {
        return Err(IdempotencyError::InFlight);
    }
    let known = sqlx::query!(
        r#"
        select fingerprint, http_status, resource_id from idempotency_keys
        where user_id = $1 and route = $2 and idempotency_key = $3
            and created_at > outbox_now() - interval '24 hours'
        "#,
        user_id.as_uuid(),
        route,
        key,
    )
    .fetch_optional(conn)
    .await?;
    match known {
        None => {
            let fingerprint = keys.fingerprint(request)?;
            Ok(Entry::New(Pending { user_id, route, key: key.to_owned(), fingerprint }))
        }
        Some(known) if keys.is_fingerprint_of(&known.fingerprint, request) => {
            let status = u16::try_from(known.http_status).unwrap_or(200);
            Ok(Entry::Done { status, resource_id: known.resource_id })
        }
        Some(_) => Err(IdempotencyError::AnotherRequest),
    }
}

impl Pending {
    /// Remembers what was answered.
    pub async fn record(self, conn: &mut PgConnection, status: u16, resource_id: Uuid) -> Result<(), sqlx::Error> {
        sqlx::query!(
            r#"
            insert into idempotency_keys (user_id, route, idempotency_key, fingerprint, http_status, resource_id,
                created_at)
            values ($1, $2, $3, $4, $5, $6, outbox_now())
            on conflict (user_id, route, idempotency_key) do update
            set fingerprint = excluded.fingerprint, http_status = excluded.http_status,
                resource_id = excluded.resource_id, created_at = excluded.created_at
            "#,
            self.user_id.as_uuid(),
            self.route,
            self.key,
            self.fingerprint,
            i32::from(status),
            resource_id,
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Forgets keys older than a day. Returns how many; call it again while that is as many as `limit`.
pub async fn forget(pool: &PgPool, limit: i64) -> Result<u64, sqlx::Error> {
    let gone = sqlx::query!(
        r#"
        delete from idempotency_keys
        where (user_id, route, idempotency_key) in (
            select user_id, route, idempotency_key from idempotency_keys
            where created_at <= outbox_now() - interval '24 hours'
            order by created_at
            limit $1
        )
        "#,
        limit,
    )
    .execute(pool)
    .await?;
    Ok(gone.rows_affected())
}
