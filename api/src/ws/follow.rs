//! Follows the event log, once for the whole process, and wakes those whom its rows concern.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use shared::{
    events::{self, EventKind, Position, Tail},
    ids::{ConversationId, UserId},
    metric,
};
use sqlx::PgPool;
use tokio::{sync::Notify, time};

use super::hub::Hub;

/// How many rows are read at once.
const BATCH: i64 = 500;

/// How soon to look again when a row is committed that an older, open transaction keeps from being read; twice as late each
/// time, up to the second.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(2);
const LOOK_AGAIN_AT_LEAST_EVERY: Duration = Duration::from_millis(50);

/// Runs for ever. While the database is away nobody is told anything; afterwards nothing is missing.
pub(crate) async fn run(pool: PgPool, hub: Arc<Hub>, look: Arc<Notify>, every: Duration) {
    let mut at = None;
    let mut pause = Duration::ZERO;
    loop {
        let _ = time::timeout(pause, look.notified()).await;
        pause = match read(&pool, &hub, &mut at).await {
            Ok(Read::More) => Duration::ZERO,
            Ok(Read::HeldBack) => (pause * 2).clamp(LOOK_AGAIN_AFTER, LOOK_AGAIN_AT_LEAST_EVERY).min(every),
            Ok(Read::All) => every,
            Err(error) => {
                tracing::warn!(%error, "the event log cannot be read; trying again");
                metric::EVENT_LOG_ERRORS.increment(1);
                every
            }
        };
    }
}

enum Read {
    /// There is more to read at once.
    More,
    /// There is more that cannot be read yet.
    HeldBack,
    /// That was all.
    All,
}

async fn read(pool: &PgPool, hub: &Hub, at: &mut Option<Position>) -> Result<Read, sqlx::Error> {
    let mut conn = pool.acquire().await?;
    let from = match *at {
        Some(from) => from,
        None => *at.insert(events::newest(&mut conn).await?),
    };
    let Tail { entries, through, more, lost, lag } = events::tail(&mut conn, from, BATCH).await?;
    metric::EVENT_LOG_LAG.set(lag.unwrap_or_default().as_secs_f64());
    // While nobody is here, nobody needs to be found.
    if !hub.skip_if_empty(through) {
        let mut concerned: HashMap<UserId, BTreeSet<ConversationId>> = HashMap::new();
        let conversations: BTreeSet<ConversationId> = entries.iter().map(|entry| entry.conversation_id).collect();
        if !conversations.is_empty() {
            let conversations: Vec<ConversationId> = conversations.into_iter().collect();
            for (conversation_id, user_id) in events::members_of(&mut conn, &conversations).await? {
                concerned.entry(user_id).or_default().insert(conversation_id);
            }
        }
        for entry in entries.iter().filter(|entry| entry.kind == Some(EventKind::MemberRemoved)) {
            concerned.entry(UserId::from(entry.subject_id)).or_default().insert(entry.conversation_id);
        }
        hub.news(from, through, &concerned);
        if lost {
            hub.lost(from);
        }
    }
    *at = Some(through);
    Ok(match () {
        () if more => Read::More,
        () if lag.is_some() => Read::HeldBack,
        () => Read::All,
    })
}
