//! Which conversations suffer from what a repair mends: by what their lanes are held for, or what their invitations died of.

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::{COUNTED_LETTERS, Counted, DeadFilter, Kind, Repair, groups, words};
use crate::{database::plan_as_asked, ids::ConversationId};

/// A repair, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ailment<'a> {
    /// What would mend it.
    pub repair: Repair,
    /// Of invitations: only those that died of this code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errcode: Option<&'a str>,
}

impl Ailment<'_> {
    /// What is wrong with it, for whoever asked; none when it makes sense.
    pub fn problem(&self) -> Option<&'static str> {
        (self.errcode.is_some() && self.repair != Repair::Reinvite)
            .then_some("errcode: goes with reinvite only: other repairs are for lanes that are held")
    }

    /// As a task and the trail keep it.
    pub fn arguments(&self) -> Value {
        json!(self)
    }
}

/// The conversations that suffer from it, in the order of their ids. In a transaction.
pub async fn ailing(conn: &mut PgConnection, of: Ailment<'_>) -> Result<Vec<ConversationId>, sqlx::Error> {
    Ok(signs(conn, of, i64::MAX).await?.into_iter().map(|(conversation_id, _)| conversation_id).collect())
}

/// How many conversations suffer from it: at least those of the first [`COUNTED_LETTERS`] lanes or letters that tell of
/// it, and exactly those if that is all there is. In a transaction.
pub async fn count_ailing(conn: &mut PgConnection, of: Ailment<'_>) -> Result<Counted, sqlx::Error> {
    let signs = signs(conn, of, COUNTED_LETTERS + 1).await?;
    let looked_at: i64 = signs.iter().map(|(_, n)| n).sum();
    Ok(Counted { count: signs.len() as u64, more: looked_at > COUNTED_LETTERS })
}

/// Conversations, and how many lanes or letters of each tell of an ailment; of so many of these at most.
async fn signs(conn: &mut PgConnection, of: Ailment<'_>, most: i64) -> Result<Vec<(ConversationId, i64)>, sqlx::Error> {
    plan_as_asked(conn).await?;
    match of.repair {
        Repair::Reinvite => uninvited(conn, of.errcode, most).await,
        Repair::Rejoin | Repair::AdoptAlias => held(conn, of.repair, most).await,
    }
}

async fn uninvited(
    conn: &mut PgConnection,
    errcode: Option<&str>,
    most: i64,
) -> Result<Vec<(ConversationId, i64)>, sqlx::Error> {
    let invitations = DeadFilter {
        kind: Some(Kind::Invite.as_str().to_owned()),
        errcode: errcode.map(str::to_owned),
        ..DeadFilter::default()
    };
    let mut keys = groups::keys(conn, &invitations, None).await?;
    keys.retain(|cause, errcode, kind| words::repair(cause, Some(errcode), kind, None) == Some(Repair::Reinvite));
    let rows = sqlx::query!(
        r#"
        select conversation_id as "conversation_id: ConversationId", count(*) as "signs!"
        from (
            select l.conversation_id
            from unnest($1::text[], $2::text[], $3::text[]) as g (cause, errcode, kind)
            join dead_letters l on l.cause = g.cause and coalesce(l.errcode, '') = g.errcode and l.kind = g.kind
            limit $4
        ) letters
        group by conversation_id
        order by conversation_id
        "#,
        &keys.causes,
        &keys.errcodes,
        &keys.kinds,
        most,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.conversation_id, row.signs)).collect())
}

async fn held(conn: &mut PgConnection, repair: Repair, most: i64) -> Result<Vec<(ConversationId, i64)>, sqlx::Error> {
    let (says, but_not) = words::holds_of(repair);
    let says: Vec<String> = says.iter().map(|&words| words.to_owned()).collect();
    let but_not: Vec<String> = but_not.iter().map(|&words| words.to_owned()).collect();
    let rows = sqlx::query!(
        r#"
        select conversation_id as "conversation_id: ConversationId", count(*) as "signs!"
        from (
            select l.conversation_id
            from lanes l
            where l.hold is not null
                and exists (select 1 from unnest($1::text[]) says (words) where strpos(l.hold, says.words) > 0)
                and not exists (select 1 from unnest($2::text[]) says (words) where strpos(l.hold, says.words) > 0)
            limit $3
        ) lanes
        group by conversation_id
        order by conversation_id
        "#,
        &says,
        &but_not,
        most,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.conversation_id, row.signs)).collect())
}
