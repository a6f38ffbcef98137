//! Who syncs: one worker at a time, by a lease on the account's row. Its epoch fences every transaction that applies events.

use std::time::Duration;

use sqlx::PgConnection;

use crate::ids::{MatrixUserId, WorkerId};

/// The right to sync an account, and how far that has come.
#[derive(Debug, Clone)]
pub struct Leadership {
    /// The account.
    pub sync_user: MatrixUserId,
    /// The fencing token.
    pub epoch: i64,
    /// The homeserver's token; none when nothing was synced yet.
    pub next_batch: Option<String>,
}

/// Takes the lead, if nobody has it.
pub async fn lead(
    conn: &mut PgConnection,
    sync_user: &MatrixUserId,
    worker_id: WorkerId,
    lease: Duration,
) -> Result<Option<Leadership>, sqlx::Error> {
    sqlx::query!(
        "insert into sync_state (sync_user, epoch) values ($1, 0) on conflict do nothing",
        sync_user.as_str(),
    )
    .execute(&mut *conn)
    .await?;
    let row = sqlx::query!(
        r#"
        update sync_state
        set owner = $2, epoch = epoch + 1, leased_until = outbox_now() + make_interval(secs => $3)
        where sync_user = $1 and (leased_until is null or leased_until <= outbox_now())
        returning epoch, next_batch
        "#,
        sync_user.as_str(),
        worker_id.as_uuid(),
        lease.as_secs_f64(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Leadership { sync_user: sync_user.clone(), epoch: row.epoch, next_batch: row.next_batch }))
}

impl Leadership {
    /// Extends the lease. False when it has lapsed: it is never revived.
    pub async fn renew(&self, conn: &mut PgConnection, lease: Duration) -> Result<bool, sqlx::Error> {
        let renewed = sqlx::query!(
            r#"
            update sync_state set leased_until = outbox_now() + make_interval(secs => $3)
            where sync_user = $1 and epoch = $2 and leased_until > outbox_now()
            "#,
            self.sync_user.as_str(),
            self.epoch,
            lease.as_secs_f64(),
        )
        .execute(conn)
        .await?
        .rows_affected();
        Ok(renewed == 1)
    }

    /// Gives the lead away, so that another worker need not wait for the end of the lease.
    pub async fn resign(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "update sync_state set owner = null, leased_until = null where sync_user = $1 and epoch = $2",
            self.sync_user.as_str(),
            self.epoch,
        )
        .execute(conn)
        .await?;
        Ok(())
    }

    /// Fences a transaction that applies events without moving the token. The last of its statements, since it keeps the
    /// lease's row locked. False when another leads: roll back.
    pub async fn fence(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let mine = sqlx::query!(
            "select 1 as mine from sync_state where sync_user = $1 and epoch = $2 for share",
            self.sync_user.as_str(),
            self.epoch,
        )
        .fetch_optional(conn)
        .await?;
        Ok(mine.is_some())
    }

    /// Moves the token: all before it is applied. The last statement of the transaction that applies the last of it. False
    /// when another leads: roll back.
    pub async fn advance(&self, conn: &mut PgConnection, next_batch: &str) -> Result<bool, sqlx::Error> {
        let moved = sqlx::query!(
            "update sync_state set next_batch = $3, synced_at = outbox_now() where sync_user = $1 and epoch = $2",
            self.sync_user.as_str(),
            self.epoch,
            next_batch,
        )
        .execute(conn)
        .await?
        .rows_affected();
        Ok(moved == 1)
    }
}
