//! Wake-ups: after a commit, workers that listen are told to look at once instead of at their next poll.
//!
//! A wake-up only shortens a wait. It is sent outside of every business transaction, since NOTIFY inside of one makes all
//! commits of the database queue up behind one lock; many commits share one, since one says as much as a hundred; and a
//! lost one costs a poll.

use std::{sync::Arc, time::Duration};

use sqlx::{PgPool, postgres::PgListener};
use tokio::{sync::Notify, time};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The channel of NOTIFY and LISTEN.
pub const CHANNEL: &str = "outbox";

/// Commits within this long after a wake-up share the next one: the first goes out at once, later ones wait this long.
const WINDOW: Duration = Duration::from_millis(5);

/// How long the listener's own test message may take before listening counts as broken.
const SELF_TEST: Duration = Duration::from_secs(5);

/// How long the listener waits before it connects again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Tells workers that something was committed.
#[derive(Debug, Clone)]
pub struct Wake {
    pending: Option<Arc<Notify>>,
}

impl Wake {
    /// Starts the task that sends; it ends with the token.
    pub fn start(pool: PgPool, stop: CancellationToken) -> Self {
        let pending = Arc::new(Notify::new());
        let notify = Arc::clone(&pending);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                notify.notified().await;
                match sqlx::query!("select pg_notify($1, '')", CHANNEL).execute(&pool).await {
                    Ok(_) => metrics::counter!("outbox_wakeups_sent_total").increment(1),
                    Err(error) => tracing::debug!(%error, "wake-up not sent; workers will poll"),
                }
                time::sleep(WINDOW).await;
            }
        }));
        Self { pending: Some(pending) }
    }

    /// Wakes nobody: workers poll.
    pub const fn silent() -> Self {
        Self { pending: None }
    }

    /// To be called after each commit that enqueued something. Never blocks, never fails.
    pub fn committed(&self) {
        if let Some(pending) = &self.pending {
            pending.notify_one();
        }
    }
}

/// Wakes workers at once, after a commit: for who is about to end. One that is lost costs a poll.
pub async fn wake_now(pool: &PgPool) {
    if let Err(error) = sqlx::query!("select pg_notify($1, '')", CHANNEL).execute(pool).await {
        tracing::debug!(%error, "wake-up not sent; workers will poll");
    }
}

/// Hears wake-ups.
#[derive(Debug)]
pub struct WakeListener;

impl WakeListener {
    /// Starts listening; `heard` is notified for each wake-up. Reconnects by itself; ends with the token.
    ///
    /// On each connection it sends itself a message first: behind some connection poolers LISTEN succeeds and nothing is
    /// ever heard. Then a warning and the gauge `outbox_listening` = 0 say so, and polling does all the work.
    pub fn start(pool: PgPool, heard: Arc<Notify>, stop: CancellationToken) {
        metrics::gauge!("outbox_listening").set(0.0);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                if let Err(error) = listen(&pool, &heard).await {
                    tracing::warn!(%error, "not listening for wake-ups; polling until connected again");
                }
                metrics::gauge!("outbox_listening").set(0.0);
                time::sleep(RECONNECT).await;
            }
        }));
    }
}

async fn listen(pool: &PgPool, heard: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.ignore_pool_close_event(true);
    listener.listen(CHANNEL).await?;
    let probe = Uuid::new_v4().to_string();
    sqlx::query!("select pg_notify($1, $2)", CHANNEL, probe).execute(pool).await?;
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
        Ok(Ok(true)) => metrics::gauge!("outbox_listening").set(1.0),
        Ok(Ok(false)) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Err(_) => tracing::warn!(
            "LISTEN succeeded but nothing is heard: is there a connection pooler in transaction mode? Polling instead"
        ),
    }
    // What was enqueued while nobody listened.
    heard.notify_one();
    while listener.try_recv().await?.is_some() {
        heard.notify_one();
    }
    Ok(())
}
