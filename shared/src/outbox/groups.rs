//! Dead letters by what they have in common: cause, error code and kind.
//!
//! The groups are found one by one: from one, the index leads to the next, however many letters there are in it.

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{COUNTED_LETTERS, Counted, DeadFilter, Repair, words};
use crate::{database::plan_as_asked, ids::OutboxId};

/// How many groups are looked at: far more than there are codes that homeservers answer with.
const MOST_GROUPS: i64 = 200;

/// Dead letters that died of the same, doing the same.
#[derive(Debug, Clone, Serialize)]
pub struct DeadGroup {
    /// Why they died.
    pub cause: String,
    /// The same in words.
    pub cause_in_words: String,
    /// The Matrix error code of the last attempt.
    pub errcode: Option<String>,
    /// What they do.
    pub kind: String,
    /// How many they are.
    pub count: Counted,
    /// When the first of them died.
    #[serde(with = "time::serde::rfc3339")]
    pub oldest_at: OffsetDateTime,
    /// When the last of them died.
    #[serde(with = "time::serde::rfc3339")]
    pub newest_at: OffsetDateTime,
    /// What to do about them.
    pub hint: String,
    /// What can be done about their cause on Matrix, by this program.
    pub repair: Option<Repair>,
    /// The last of them that died.
    pub newest: OutboxId,
}

/// What names groups, column by column. Without a code, its errcode is empty.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) causes: Vec<String>,
    pub(super) errcodes: Vec<String>,
    pub(super) kinds: Vec<String>,
}

impl Keys {
    /// Leaves out the groups that `keep` (of cause, code and kind) says no to.
    pub(super) fn retain(&mut self, keep: impl Fn(&str, &str, &str) -> bool) {
        let all = std::mem::take(self);
        for ((cause, errcode), kind) in all.causes.into_iter().zip(all.errcodes).zip(all.kinds) {
            if keep(&cause, &errcode, &kind) {
                self.causes.push(cause);
                self.errcodes.push(errcode);
                self.kinds.push(kind);
            }
        }
    }
}

/// The groups that a filter names, all or so many.
pub(super) async fn keys(conn: &mut PgConnection, filter: &DeadFilter, most: Option<i64>) -> Result<Keys, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        with recursive groups as (
            (
                select d.cause, coalesce(d.errcode, '') as errcode, d.kind
                from dead_letters d
                order by d.cause, coalesce(d.errcode, ''), d.kind
                limit 1
            )
            union all
            select next.cause, next.errcode, next.kind
            from groups g
            cross join lateral (
                select d.cause, coalesce(d.errcode, '') as errcode, d.kind
                from dead_letters d
                where (d.cause, coalesce(d.errcode, ''), d.kind) > (g.cause, g.errcode, g.kind)
                order by d.cause, coalesce(d.errcode, ''), d.kind
                limit 1
            ) next
        )
        select cause as "cause!", errcode as "errcode!", kind as "kind!"
        from (select * from groups limit $4) g
        where ($1::text is null or cause = $1)
            and ($2::text is null or errcode = $2)
            and ($3::text is null or kind = $3)
        "#,
        filter.cause,
        filter.errcode,
        filter.kind,
        most,
    )
    .fetch_all(conn)
    .await?;
    let mut keys = Keys::default();
    for row in rows {
        keys.causes.push(row.cause);
        keys.errcodes.push(row.errcode);
        keys.kinds.push(row.kind);
    }
    Ok(keys)
}

/// How many dead letters of these groups died in a filter's time, up to one more than [`COUNTED_LETTERS`].
pub(super) async fn count(conn: &mut PgConnection, groups: &Keys, filter: &DeadFilter) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from (
            select 1
            from unnest($1::text[], $2::text[], $3::text[]) as g (cause, errcode, kind)
            cross join lateral (
                select 1 from dead_letters l
                where l.cause = g.cause and coalesce(l.errcode, '') = g.errcode and l.kind = g.kind
                    and ($4::timestamptz is null or l.died_at >= $4)
                    and ($5::timestamptz is null or l.died_at < $5)
                limit $6
            ) d
            limit $6
        ) counted
        "#,
        &groups.causes,
        &groups.errcodes,
        &groups.kinds,
        filter.since,
        filter.until,
        COUNTED_LETTERS + 1,
    )
    .fetch_one(conn)
    .await
}

/// The groups of all dead letters, the largest first. In a transaction.
pub async fn dead_groups(conn: &mut PgConnection, limit: i64) -> Result<Vec<DeadGroup>, sqlx::Error> {
    plan_as_asked(conn).await?;
    let keys = keys(conn, &DeadFilter::default(), Some(MOST_GROUPS)).await?;
    let rows = sqlx::query!(
        r#"
        select g.cause as "cause!", nullif(g.errcode, '') as errcode, g.kind as "kind!", counted.count as "count!",
            first.died_at as oldest_at, last.died_at as newest_at, last.outbox_id as "newest: OutboxId", last.hint
        from unnest($1::text[], $2::text[], $3::text[]) as g (cause, errcode, kind)
        cross join lateral (
            select count(*) from (
                select 1 from dead_letters l
                where l.cause = g.cause and coalesce(l.errcode, '') = g.errcode and l.kind = g.kind
                limit $4
            ) l
        ) counted
        cross join lateral (
            select l.died_at from dead_letters l
            where l.cause = g.cause and coalesce(l.errcode, '') = g.errcode and l.kind = g.kind
            order by l.died_at, l.outbox_id
            limit 1
        ) first
        cross join lateral (
            select l.died_at, l.outbox_id, l.hint from dead_letters l
            where l.cause = g.cause and coalesce(l.errcode, '') = g.errcode and l.kind = g.kind
            order by l.died_at desc, l.outbox_id desc
            limit 1
        ) last
        order by counted.count desc, last.died_at desc, g.cause, g.errcode, g.kind
        limit $5
        "#,
        &keys.causes,
        &keys.errcodes,
        &keys.kinds,
        COUNTED_LETTERS + 1,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| DeadGroup {
            cause_in_words: words::cause_in_words(&row.cause).to_owned(),
            hint: words::hint(&row.cause, row.errcode.as_deref(), &row.kind, &row.hint).to_owned(),
            repair: words::repair(&row.cause, row.errcode.as_deref(), &row.kind, None),
            count: Counted::up_to(COUNTED_LETTERS, row.count),
            cause: row.cause,
            errcode: row.errcode,
            kind: row.kind,
            oldest_at: row.oldest_at,
            newest_at: row.newest_at,
            newest: row.newest,
        })
        .collect())
}
