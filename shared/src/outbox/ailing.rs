//! Which conversations suffer from what a repair mends: by what their lanes are held for, or what their invitations died of.

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::{COUNTED_LETTERS, Counted, DeadFilter, Kind, Repair, groups, search::is_word, words};
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
        match self.errcode {
            Some(_) if self.repair != Repair::Reinvite => {
                Some("errcode: goes with reinvite only: other repairs are for lanes that are held")
            }
            Some(errcode) if !is_word(errcode) => Some("errcode: must be at most 200 characters on one line"),
            _ => None,
        }
    }

    /// As a task and the trail keep it.
    pub fn arguments(&self) -> Value {
        json!(self)
    }
}

/// The conversations that suffer from it, in the order of their ids. In a transaction.
pub async fn ailing(conn: &mut PgConnection, of: Ailment<'_>) -> Result<Vec<ConversationId>, sqlx::Error> {
    let signs = signs(conn, of, i64::MAX).await?;
    Ok(signs.into_iter().filter(|sign| sign.ails).map(|sign| sign.conversation_id).collect())
}

/// How many conversations suffer from it: at least those of the first [`COUNTED_LETTERS`] lanes or letters that tell of
/// it, and exactly those if that is all there is. In a transaction.
pub async fn count_ailing(conn: &mut PgConnection, of: Ailment<'_>) -> Result<Counted, sqlx::Error> {
    let signs = signs(conn, of, COUNTED_LETTERS + 1).await?;
    let looked_at: i64 = signs.iter().map(|sign| sign.seen).sum();
    let count = signs.iter().filter(|sign| sign.ails).count() as u64;
    Ok(Counted { count, more: looked_at > COUNTED_LETTERS })
}

/// What tells of an ailment.
struct Sign {
    conversation_id: ConversationId,
    /// How many of its lanes or letters were looked at.
    seen: i64,
    /// Whether a repair has something to mend.
    ails: bool,
}

/// By conversations, of so many lanes or letters at most.
async fn signs(conn: &mut PgConnection, of: Ailment<'_>, most: i64) -> Result<Vec<Sign>, sqlx::Error> {
    plan_as_asked(conn).await?;
    match of.repair {
        Repair::Reinvite => uninvited(conn, of.errcode, most).await,
        Repair::Rejoin | Repair::AdoptAlias => held(conn, of.repair, most).await,
    }
}

/// The invitation of somebody who was removed meanwhile is not repeated.
async fn uninvited(conn: &mut PgConnection, errcode: Option<&str>, most: i64) -> Result<Vec<Sign>, sqlx::Error> {
    let invitations = DeadFilter {
        kind: Some(Kind::Invite.as_str().to_owned()),
        errcode: errcode.map(str::to_owned),
        ..DeadFilter::default()
    };
    let mut keys = groups::keys(conn, &invitations, None).await?;
    keys.retain(|cause, errcode, kind| words::repair(cause, Some(errcode), kind, None) == Some(Repair::Reinvite));
    sqlx::query_as!(
        Sign,
        r#"
        select l.conversation_id as "conversation_id: ConversationId", count(*) as "seen!", bool_or(exists (
                select 1 from conversation_members m
                where m.conversation_id = l.conversation_id and m.user_id = l.subject_id and m.removed_seq is null
            )) as "ails!"
        from (
            select l.conversation_id, l.subject_id
            from unnest($1::text[], $2::text[], $3::text[]) as g (cause, errcode, kind)
            cross join lateral (
                select l.conversation_id, l.subject_id from dead_letters l
                where l.cause = g.cause and coalesce(l.errcode, '') = g.errcode and l.kind = g.kind
                limit $4
            ) l
            limit $4
        ) l
        group by l.conversation_id
        order by l.conversation_id
        "#,
        &keys.causes,
        &keys.errcodes,
        &keys.kinds,
        most,
    )
    .fetch_all(conn)
    .await
}

async fn held(conn: &mut PgConnection, repair: Repair, most: i64) -> Result<Vec<Sign>, sqlx::Error> {
    let (says, but_not) = words::said_in_holds(repair);
    let says: Vec<String> = says.iter().map(|&words| words.to_owned()).collect();
    let but_not: Vec<String> = but_not.iter().map(|&words| words.to_owned()).collect();
    sqlx::query_as!(
        Sign,
        r#"
        select conversation_id as "conversation_id: ConversationId", count(*) as "seen!", true as "ails!"
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
    .await
}
