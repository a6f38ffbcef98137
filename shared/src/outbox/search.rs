//! Dead letters: found by any of their traits, newest first, and counted. References only, never a text.
//!
//! However many there are, a page is read from an index. No one statement is good for every wish, so there are four, and
//! what is asked for says which:
//!
//! | asked for | read from |
//! |---|---|
//! | nothing, or one trait, or a conversation or a user with whatever else | that trait's index, newest first |
//! | two or three of cause, code and kind | the groups that have them, each newest first: two traits that are common may be rare together |
//! | a part of the error's text | the newest few thousand; the text may be common |
//! | the same, if those were not enough | the index of all parts of texts, if few have it; else further back, step by step |
//!
//! Call them in a transaction: they have their statements planned for what is asked.

use std::fmt;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Cursor, Repair,
    groups::{self, Keys},
    words,
};
use crate::{
    database::plan_as_asked,
    ids::{ConversationId, LaneId, OutboxId, UserId},
};

/// What is listed for people is counted up to so many: enough to say that it is many.
pub const COUNTED_LETTERS: i64 = 10_000;

/// Parts of texts are indexed by three characters in a row: for less, everything would have to be read.
pub const SHORTEST_TEXT: usize = 3;

/// How many dead letters are looked at for a text, before its index is asked. A text that is common is found among them.
const FIRST_LOOK: i64 = 2_000;

/// Each further look is twice as long as the one before, up to this: some 0.1 s.
const LONGEST_LOOK: i64 = 64_000;

/// So many with a text are few: they are read all, and sorted.
const FEW: i64 = 2_000;

/// Which dead letters. Without anything, all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadFilter {
    /// Of this conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// That do this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// That died of this cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// That the homeserver refused with this code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errcode: Option<String>,
    /// Of this user: who wrote, reacted, is invited or removed, or spoke in the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Whose last error says this somewhere, in large or small letters. At least [`SHORTEST_TEXT`] characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// That died then or later.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// That died before then.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
}

/// The longest that a word of a filter may be, in characters.
const LONGEST_WORD: usize = 200;

/// Whether a filter may look for it.
pub(super) fn is_word(text: &str) -> bool {
    text.chars().count() <= LONGEST_WORD && !text.chars().any(char::is_control)
}

impl DeadFilter {
    /// Whether it leaves nothing out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it, for whoever asked; none when it makes sense.
    pub fn problem(&self) -> Option<&'static str> {
        for (word, problem) in [
            (&self.kind, "kind: must be at most 200 characters on one line"),
            (&self.cause, "cause: must be at most 200 characters on one line"),
            (&self.errcode, "errcode: must be at most 200 characters on one line"),
            (&self.text, "text: must be at most 200 characters on one line"),
        ] {
            if word.as_ref().is_some_and(|word| !is_word(word)) {
                return Some(problem);
            }
        }
        let short = |text: &String| text.trim().chars().count() < SHORTEST_TEXT;
        if self.text.as_ref().is_some_and(short) {
            return Some("text: must have at least three characters");
        }
        let ends_before = |(since, until)| since >= until;
        self.since.zip(self.until).is_some_and(ends_before).then_some("until: must be after since")
    }

    /// The pattern that finds its text: what has a meaning in patterns stands for itself.
    pub(super) fn pattern(&self) -> Option<String> {
        let text = self.text.as_deref()?;
        let mut pattern = String::with_capacity(text.len() + 2);
        pattern.push('%');
        for c in text.chars() {
            if matches!(c, '%' | '_' | '\\') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern.push('%');
        Some(pattern)
    }

    /// Whether the index of parts of texts leads to its text: that knows letters and digits, three in a row.
    fn is_indexed(&self) -> bool {
        let words = self.text.as_deref().unwrap_or_default().split(|c: char| !c.is_alphanumeric());
        words.into_iter().any(|word| word.chars().count() >= SHORTEST_TEXT)
    }

    /// Whether it names two or three of the traits that make a group, and nothing that is rare by itself.
    fn is_of_groups(&self) -> bool {
        let traits = [&self.cause, &self.errcode, &self.kind].into_iter().flatten().count();
        traits >= 2 && self.conversation_id.is_none() && self.user_id.is_none() && self.text.is_none()
    }
}

/// How many there are, up to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// So many, or the bound.
    pub count: u64,
    /// True when there are more than that.
    pub more: bool,
}

impl Counted {
    /// Of a count that went one beyond its bound, if there was one more.
    pub(super) fn up_to(bound: i64, counted: i64) -> Self {
        Self { count: u64::try_from(counted.min(bound)).unwrap_or(0), more: counted > bound }
    }
}

/// `10,000+`.
impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.count.to_string();
        for (n, digit) in digits.chars().enumerate() {
            if n > 0 && (digits.len() - n).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        f.write_str(if self.more { "+" } else { "" })
    }
}

/// A dead letter.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// The operation.
    pub outbox_id: OutboxId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// The lane that it left.
    pub lane_id: LaneId,
    /// Its place there.
    pub seq: i64,
    /// What it does.
    pub kind: String,
    /// The message, the member or the call.
    pub subject_id: Uuid,
    /// Whose it is.
    pub user_id: Option<UserId>,
    /// Which revision of the message it carries.
    pub revision: Option<i32>,
    /// How many attempts failed by its own fault.
    pub attempts: i32,
    /// True when it may stand in the room all the same.
    pub maybe_sent: bool,
    /// Why it died.
    pub cause: String,
    /// The same in words.
    #[serde(rename = "cause_in_words")]
    pub words: String,
    /// The Matrix error code of the last attempt.
    pub errcode: Option<String>,
    /// What went wrong at the last attempt, for people.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: String,
    /// What can be done about its cause on Matrix, by this program.
    pub repair: Option<Repair>,
    /// When it was enqueued.
    #[serde(with = "time::serde::rfc3339")]
    pub enqueued_at: OffsetDateTime,
    /// When it died.
    #[serde(with = "time::serde::rfc3339")]
    pub died_at: OffsetDateTime,
}

impl DeadLetter {
    /// Where the page after this one begins.
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.died_at, self.outbox_id.as_uuid())
    }
}

struct Row {
    outbox_id: OutboxId,
    conversation_id: ConversationId,
    lane_id: LaneId,
    seq: i64,
    kind: String,
    subject_id: Uuid,
    user_id: Option<UserId>,
    revision: Option<i32>,
    attempts: i32,
    maybe_sent: bool,
    cause: String,
    errcode: Option<String>,
    detail: Option<String>,
    hint: String,
    enqueued_at: OffsetDateTime,
    died_at: OffsetDateTime,
}

impl From<Row> for DeadLetter {
    fn from(row: Row) -> Self {
        Self {
            outbox_id: row.outbox_id,
            conversation_id: row.conversation_id,
            lane_id: row.lane_id,
            seq: row.seq,
            subject_id: row.subject_id,
            user_id: row.user_id,
            revision: row.revision,
            attempts: row.attempts,
            maybe_sent: row.maybe_sent,
            words: words::cause_in_words(&row.cause).to_owned(),
            hint: words::hint(&row.cause, row.errcode.as_deref(), &row.kind, &row.hint).to_owned(),
            repair: words::repair(&row.cause, row.errcode.as_deref(), &row.kind, None),
            kind: row.kind,
            cause: row.cause,
            errcode: row.errcode,
            detail: row.detail,
            enqueued_at: row.enqueued_at,
            died_at: row.died_at,
        }
    }
}

/// Dead letters, newest first.
pub async fn dead_letters(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<DeadLetter>, sqlx::Error> {
    plan_as_asked(conn).await?;
    let rows = match filter.pattern() {
        Some(pattern) => with_text(conn, filter, &pattern, before, limit).await?,
        None if filter.is_of_groups() => {
            let keys = groups::keys(conn, filter, None).await?;
            of_groups(conn, &keys, filter, before, limit).await?
        }
        None => by_traits(conn, filter, before, limit).await?,
    };
    Ok(rows.into_iter().map(DeadLetter::from).collect())
}

/// The wishes but the text: read in the order of an index that has one of them.
async fn by_traits(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        select outbox_id as "outbox_id: OutboxId", conversation_id as "conversation_id: ConversationId",
            lane_id as "lane_id: LaneId", seq, kind, subject_id, user_id as "user_id: UserId", revision, attempts,
            maybe_sent_at is not null as "maybe_sent!", cause, errcode, detail, hint, enqueued_at, died_at
        from dead_letters
        where ($1::uuid is null or conversation_id = $1)
            and ($2::text is null or kind = $2)
            and ($3::text is null or cause = $3)
            and ($4::text is null or errcode = $4)
            and ($5::uuid is null or user_id = $5)
            and ($6::timestamptz is null or died_at >= $6)
            and ($7::timestamptz is null or died_at < $7)
            and ($8::timestamptz is null or (died_at, outbox_id) < ($8, $9))
        order by died_at desc, outbox_id desc
        limit $10
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        filter.kind,
        filter.cause,
        filter.errcode,
        filter.user_id.map(UserId::as_uuid),
        filter.since,
        filter.until,
        before.map(Cursor::at),
        before.map(Cursor::id),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Those of some groups, each read in the order of the groups' index.
async fn of_groups(
    conn: &mut PgConnection,
    groups: &Keys,
    filter: &DeadFilter,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        select d.outbox_id as "outbox_id: OutboxId", d.conversation_id as "conversation_id: ConversationId",
            d.lane_id as "lane_id: LaneId", d.seq, d.kind, d.subject_id, d.user_id as "user_id: UserId", d.revision,
            d.attempts, d.maybe_sent_at is not null as "maybe_sent!", d.cause, d.errcode, d.detail, d.hint,
            d.enqueued_at, d.died_at
        from unnest($1::text[], $2::text[], $3::text[]) as g (cause, errcode, kind)
        cross join lateral (
            select * from dead_letters l
            where l.cause = g.cause and coalesce(l.errcode, '') = g.errcode and l.kind = g.kind
                and ($4::timestamptz is null or l.died_at >= $4)
                and ($5::timestamptz is null or l.died_at < $5)
                and ($6::timestamptz is null or (l.died_at, l.outbox_id) < ($6, $7))
            order by l.died_at desc, l.outbox_id desc
            limit $8
        ) d
        order by d.died_at desc, d.outbox_id desc
        limit $8
        "#,
        &groups.causes,
        &groups.errcodes,
        &groups.kinds,
        filter.since,
        filter.until,
        before.map(Cursor::at),
        before.map(Cursor::id),
        limit,
    )
    .fetch_all(conn)
    .await
}

async fn with_text(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    pattern: &str,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    let (mut found, mut before, mut look) = (Vec::new(), before, FIRST_LOOK);
    loop {
        let wanted = limit - i64::try_from(found.len()).unwrap_or(limit);
        let end = end_of_look(conn, filter, before, look).await?;
        found.extend(looked_at(conn, filter, pattern, (before, end), wanted).await?);
        let wanted = limit - i64::try_from(found.len()).unwrap_or(limit);
        if end.is_none() || wanted <= 0 {
            return Ok(found);
        }
        before = end;
        if look == FIRST_LOOK
            && filter.is_indexed()
            && let Some(few) = if_few(conn, filter, pattern, before, wanted).await?
        {
            found.extend(few);
            return Ok(found);
        }
        look = (look * 2).min(LONGEST_LOOK);
    }
}

/// The last of so many that are looked at for a text. None when there are not that many.
async fn end_of_look(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    before: Option<Cursor>,
    look: i64,
) -> Result<Option<Cursor>, sqlx::Error> {
    let end = sqlx::query!(
        r#"
        select died_at, outbox_id
        from dead_letters
        where ($1::uuid is null or conversation_id = $1)
            and ($2::text is null or kind = $2)
            and ($3::text is null or cause = $3)
            and ($4::text is null or errcode = $4)
            and ($5::uuid is null or user_id = $5)
            and ($6::timestamptz is null or died_at >= $6)
            and ($7::timestamptz is null or died_at < $7)
            and ($8::timestamptz is null or (died_at, outbox_id) < ($8, $9))
        order by died_at desc, outbox_id desc
        offset $10
        limit 1
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        filter.kind,
        filter.cause,
        filter.errcode,
        filter.user_id.map(UserId::as_uuid),
        filter.since,
        filter.until,
        before.map(Cursor::at),
        before.map(Cursor::id),
        look - 1,
    )
    .fetch_optional(conn)
    .await?;
    Ok(end.map(|end| Cursor::new(end.died_at, end.outbox_id)))
}

/// Those with a text after a cursor and up to another. The text is no way to them: it may be that of all.
async fn looked_at(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    pattern: &str,
    (before, end): (Option<Cursor>, Option<Cursor>),
    limit: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        select outbox_id as "outbox_id: OutboxId", conversation_id as "conversation_id: ConversationId",
            lane_id as "lane_id: LaneId", seq, kind, subject_id, user_id as "user_id: UserId", revision, attempts,
            maybe_sent_at is not null as "maybe_sent!", cause, errcode, detail, hint, enqueued_at, died_at
        from dead_letters
        where coalesce(detail, '') ilike $12
            and ($1::uuid is null or conversation_id = $1)
            and ($2::text is null or kind = $2)
            and ($3::text is null or cause = $3)
            and ($4::text is null or errcode = $4)
            and ($5::uuid is null or user_id = $5)
            and ($6::timestamptz is null or died_at >= $6)
            and ($7::timestamptz is null or died_at < $7)
            and ($8::timestamptz is null or (died_at, outbox_id) < ($8, $9))
            and ($10::timestamptz is null or (died_at, outbox_id) >= ($10, $11))
        order by died_at desc, outbox_id desc
        limit $13
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        filter.kind,
        filter.cause,
        filter.errcode,
        filter.user_id.map(UserId::as_uuid),
        filter.since,
        filter.until,
        before.map(Cursor::at),
        before.map(Cursor::id),
        end.map(Cursor::at),
        end.map(Cursor::id),
        pattern,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Those with a text, by the index of all parts of texts. None when they are not few.
async fn if_few(
    conn: &mut PgConnection,
    filter: &DeadFilter,
    pattern: &str,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Option<Vec<Row>>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        with found as materialized (
            select * from dead_letters
            where detail ilike $10
                and ($1::uuid is null or conversation_id = $1)
                and ($2::text is null or kind = $2)
                and ($3::text is null or cause = $3)
                and ($4::text is null or errcode = $4)
                and ($5::uuid is null or user_id = $5)
                and ($6::timestamptz is null or died_at >= $6)
                and ($7::timestamptz is null or died_at < $7)
                and ($8::timestamptz is null or (died_at, outbox_id) < ($8, $9))
            limit $11
        )
        select outbox_id as "outbox_id: OutboxId", conversation_id as "conversation_id: ConversationId",
            lane_id as "lane_id: LaneId", seq, kind, subject_id, user_id as "user_id: UserId", revision, attempts,
            maybe_sent_at is not null as "maybe_sent!", cause, errcode, detail, hint, enqueued_at, died_at,
            (select count(*) from found) as "found!"
        from found
        order by died_at desc, outbox_id desc
        limit $12
        "#,
        filter.conversation_id.map(ConversationId::as_uuid),
        filter.kind,
        filter.cause,
        filter.errcode,
        filter.user_id.map(UserId::as_uuid),
        filter.since,
        filter.until,
        before.map(Cursor::at),
        before.map(Cursor::id),
        pattern,
        FEW + 1,
        limit,
    )
    .fetch_all(conn)
    .await?;
    if rows.first().is_some_and(|row| row.found > FEW) {
        return Ok(None);
    }
    let rows = rows.into_iter().map(|row| Row {
        outbox_id: row.outbox_id,
        conversation_id: row.conversation_id,
        lane_id: row.lane_id,
        seq: row.seq,
        kind: row.kind,
        subject_id: row.subject_id,
        user_id: row.user_id,
        revision: row.revision,
        attempts: row.attempts,
        maybe_sent: row.maybe_sent,
        cause: row.cause,
        errcode: row.errcode,
        detail: row.detail,
        hint: row.hint,
        enqueued_at: row.enqueued_at,
        died_at: row.died_at,
    });
    Ok(Some(rows.collect()))
}

/// How many dead letters there are, up to [`COUNTED_LETTERS`].
pub async fn count_dead(conn: &mut PgConnection, filter: &DeadFilter) -> Result<Counted, sqlx::Error> {
    plan_as_asked(conn).await?;
    let counted = if filter.is_of_groups() {
        let keys = groups::keys(conn, filter, None).await?;
        groups::count(conn, &keys, filter).await?
    } else {
        sqlx::query_scalar!(
            r#"
            select count(*) as "count!"
            from (
                select 1 from dead_letters
                where ($1::uuid is null or conversation_id = $1)
                    and ($2::text is null or kind = $2)
                    and ($3::text is null or cause = $3)
                    and ($4::text is null or errcode = $4)
                    and ($5::uuid is null or user_id = $5)
                    and ($6::timestamptz is null or died_at >= $6)
                    and ($7::timestamptz is null or died_at < $7)
                    and ($8::text is null or detail ilike $8)
                limit $9
            ) counted
            "#,
            filter.conversation_id.map(ConversationId::as_uuid),
            filter.kind,
            filter.cause,
            filter.errcode,
            filter.user_id.map(UserId::as_uuid),
            filter.since,
            filter.until,
            filter.pattern(),
            COUNTED_LETTERS + 1,
        )
        .fetch_one(conn)
        .await?
    };
    Ok(Counted::up_to(COUNTED_LETTERS, counted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_says_when_there_is_more() {
        let words = |count, more| Counted { count, more }.to_string();
        assert_eq!(words(10_000, true), "10,000+");
        assert_eq!((words(7, false), words(1234, false), words(0, false)), ("7".into(), "1,234".into(), "0".into()));
        assert_eq!(Counted::up_to(10, 11), Counted { count: 10, more: true });
        assert_eq!(Counted::up_to(10, 10), Counted { count: 10, more: false });
    }

    #[test]
    fn what_has_a_meaning_in_patterns_is_searched_for_as_it_is() {
        let filter = DeadFilter { text: Some(r"50% of_a\b".to_owned()), ..DeadFilter::default() };
        assert_eq!(filter.pattern().as_deref(), Some(r"%50\% of\_a\\b%"));
    }

    #[test]
    fn a_filter_names_only_what_it_asks_for_and_nothing_unknown() -> Result<(), serde_json::Error> {
        let filter = DeadFilter { errcode: Some("M_TOO_LARGE".to_owned()), ..DeadFilter::default() };
        let text = serde_json::to_string(&filter)?;
        assert_eq!(text, r#"{"errcode":"M_TOO_LARGE"}"#);
        assert_eq!(serde_json::from_str::<DeadFilter>(&text)?, filter);
        assert!(serde_json::from_str::<DeadFilter>("{}")?.is_empty() && !filter.is_empty());
        assert!(serde_json::from_str::<DeadFilter>(r#"{"errkode":"M_TOO_LARGE"}"#).is_err());
        let timed: DeadFilter = serde_json::from_str(r#"{"since":"2026-01-31T06:00:00Z"}"#)?;
        assert!(timed.since.is_some() && timed.problem().is_none());
        Ok(())
    }
}
