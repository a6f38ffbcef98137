//! Wake-ups: after a commit, those who listen are told to look at once instead of at their next poll.
//!
//! A wake-up only shortens a wait. It is sent outside of every business transaction, since NOTIFY inside of one makes all
//! commits of the database queue up behind one lock; many commits share one, since one says as much as a hundred; and a
//! lost one costs a poll.

use std::{sync::Arc, time::Duration};

use sqlx::{PgPool, postgres::PgListener};
use tokio::{sync::Notify, time};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metric;

/// Commits within this long after a wake-up share the next one: the first goes out at once, later ones wait this long.
const WINDOW: Duration = Duration::from_millis(5);

/// How long the listener's own test message may take before listening counts as broken.
const SELF_TEST: Duration = Duration::from_secs(5);

/// How long the listener waits before it connects again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Who is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Workers: something was enqueued.
    Outbox,
    /// API processes: something happened that clients are told of.
    Events,
}

impl Channel {
    /// The channel of NOTIFY and LISTEN.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Events => "outbox_events",
        }
    }

    fn count_sent(self) {
        match self {
            Self::Outbox => metric::OUTBOX_WAKEUPS_SENT.increment(1),
            Self::Events => metric::EVENT_LOG_WAKEUPS_SENT.increment(1),
        }
    }

    fn report_listening(self, listening: bool) {
        match self {
            Self::Outbox => metric::OUTBOX_LISTENING.set_bool(listening),
            Self::Events => metric::EVENT_LOG_LISTENING.set_bool(listening),
        }
    }

    async fn notify(self, pool: &PgPool, payload: &str) -> Result<(), sqlx::Error> {
        sqlx::query!("select pg_notify($1, $2)", self.as_str(), payload).execute(pool).await?;
        Ok(())
    }
}

/// Tells others that something was committed.
#[derive(Debug, Clone)]
pub struct Wake {
    pending: Option<Arc<Notify>>,
}

impl Wake {
    /// Starts the task that sends; it ends with the token.
    pub fn start(channel: Channel, pool: PgPool, stop: CancellationToken) -> Self {
        let pending = Arc::new(Notify::new());
        let notify = Arc::clone(&pending);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                notify.notified().await;
                match channel.notify(&pool, "").await {
                    Ok(()) => channel.count_sent(),
                    Err(error) => {
                        tracing::debug!(%error, channel = channel.as_str(), "wake-up not sent; others will poll");
                    }
                }
                time::sleep(WINDOW).await;
            }
        }));
        Self { pending: Some(pending) }
    }

    /// Wakes nobody: they poll.
    pub const fn silent() -> Self {
        Self { pending: None }
    }

    /// To be called after each commit that the channel is about. Never blocks, never fails.
    pub fn committed(&self) {
        if let Some(pending) = &self.pending {
            pending.notify_one();
        }
    }
}

/// Wakes workers and API processes at once, after a commit: for who is about to end. One that is lost costs a poll.
pub async fn wake_now(pool: &PgPool) {
    for channel in [Channel::Outbox, Channel::Events] {
        if let Err(error) = channel.notify(pool, "").await {
            tracing::debug!(%error, channel = channel.as_str(), "wake-up not sent; others will poll");
        }
    }
}

/// Hears wake-ups.
#[derive(Debug)]
pub struct WakeListener;

impl WakeListener {
    /// Starts listening; `heard` is notified for each wake-up. Reconnects by itself; ends with the token.
    ///
    /// On each connection it sends itself a message first: behind some connection poolers LISTEN succeeds and nothing is
    /// ever heard. Then a warning and a gauge (`outbox_listening`, `event_log_listening`) say so, and polling does all the
    /// work.
    pub fn start(channel: Channel, pool: PgPool, heard: Arc<Notify>, stop: CancellationToken) {
        channel.report_listening(false);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                if let Err(error) = listen(channel, &pool, &heard).await {
                    let channel = channel.as_str();
                    tracing::warn!(%error, channel, "not listening for wake-ups; polling until connected again");
                }
                channel.report_listening(false);
                time::sleep(RECONNECT).await;
            }
        }));
    }
}

async fn listen(channel: Channel, pool: &PgPool, heard: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.ignore_pool_close_event(true);
    listener.listen(channel.as_str()).await?;
    let probe = Uuid::new_v4().to_string();
    channel.notify(pool, &probe).await?;
    let own_message = async {
        loop {
            match listener.try_recv().await? {
                Some(message) if message.payload() == probe => return Ok::<_, sqlx::Error>(true),
                Some(_) => heard.notify_one(),
                None => return Ok(false),
            }
        }
    };
    match time::timeout(SELF_TEST, own_message).await {
        Ok(Ok(true)) => channel.report_listening(true),
        Ok(Ok(false)) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Err(_) => tracing::warn!(
            channel = channel.as_str(),
            "LISTEN succeeded but nothing is heard: is there a connection pooler in transaction mode? Polling instead"
        ),
    }
    // What was committed while nobody listened.
    heard.notify_one();
    while listener.try_recv().await?.is_some() {
        heard.notify_one();
    }
    Ok(())
}
