//! One connection, from its handshake to its close: it reads its user's part of the log and writes it to the socket.

use std::{
    future::{pending, ready},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Bytes,
    extract::ws::{CloseFrame, Message, WebSocket},
};
use shared::{
    database,
    events::{self, Page, Position, Span},
    ids::UserId,
    metric,
    token::Identity,
};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_tungstenite::tungstenite;
use uuid::Uuid;

use super::{
    frames::{Frame, Resync},
    hub::{Place, Unread},
    receive, render,
};
use crate::State;

/// How many events are read at once: with the longest texts they are some two megabytes.
const PAGE: i64 = 32;

/// How long a connection waits when the database does not answer.
const DATABASE_BACKOFF: Duration = Duration::from_millis(500);

/// So many heartbeats without a sign of life, and the client is taken for gone.
const SILENT_HEARTBEATS: u32 = 3;

/// How long the other side may take to agree to the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Why a connection ends, as its close frame says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client said goodbye, or is gone: nothing can be told it.
    Gone,
    /// The process stops.
    Stopping,
    /// The token is no longer good.
    Expired,
    /// The client does not read what it is sent.
    Slow,
    /// The client does not answer pings.
    Silent,
    /// The client broke the protocol.
    NotText,
    NotUtf8,
    TooLong,
    Broken,
}

impl End {
    /// Code and reason of the close frame.
    const fn told(self) -> (u16, &'static str) {
        match self {
            Self::Gone => (1000, ""),
            Self::Stopping => (1001, "the server stops: connect again and resume"),
            Self::Expired => (4401, "the token has expired: connect again with a new one and resume"),
            Self::Slow => (4408, "you read too slowly: connect again and resume"),
            Self::Silent => (4408, "you did not answer: connect again and resume"),
            Self::NotText => (1003, "only text is understood"),
            Self::NotUtf8 => (1007, "a text was not UTF-8"),
            Self::TooLong => (1009, "a message was too long"),
            Self::Broken => (1002, "the protocol was broken"),
        }
    }

    /// As in metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Stopping => "stopping",
            Self::Expired => "expired",
            Self::Slow => "slow",
            Self::Silent => "silent",
            Self::NotText => "not_text",
            Self::NotUtf8 => "not_utf8",
            Self::TooLong => "too_long",
            Self::Broken => "broken",
        }
    }
}

/// Serves a connection until it ends, and says why.
pub(crate) async fn serve(
    mut socket: WebSocket,
    state: Arc<State>,
    place: Place,
    identity: Identity,
    since: Option<String>,
) {
    let connection = Connection { socket: &mut socket, state: &state, user_id: identity.user_id };
    let end = match connection.run(&place, identity.good_until, since.as_deref()).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    drop(place);
    metric::WS_CLOSED.with([end.as_str()]).increment(1);
    if end == End::Slow {
        metric::WS_SLOW_CLIENTS.increment(1);
    }
    tracing::debug!(user.id = %identity.user_id, why = end.as_str(), "connection ends");
    say_goodbye(&mut socket, end, state.websocket.write_timeout).await;
}

/// Sends the close frame, and waits a little for the answer: a socket that is dropped while something is unread takes with
/// it what was sent.
async fn say_goodbye(socket: &mut WebSocket, end: End, patience: Duration) {
    let (code, reason) = end.told();
    if end != End::Gone {
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        // A slow client may yet read.
        if !matches!(timeout(patience, socket.send(close)).await, Ok(Ok(()))) {
            return;
        }
    }
    let _ = timeout(CLOSE_WITHIN, async { while let Some(Ok(_)) = socket.recv().await {} }).await;
}

/// Nothing: a connection only ends for a reason.
enum Never {}

/// What a connection is about to read.
struct Reading {
    conversations: Option<Vec<Uuid>>,
    through: Option<Position>,
}

enum Event {
    Stop,
    Expired,
    Incoming(Option<Result<Message, axum::Error>>),
    Tick,
    News,
    ReadOn,
}

struct Connection<'a> {
    socket: &'a mut WebSocket,
    state: &'a Arc<State>,
    user_id: UserId,
}

impl Connection<'_> {
    async fn run(mut self, place: &Place, good_until: i64, since: Option<&str>) -> Result<Never, End> {
        let heartbeat = self.state.websocket.heartbeat;
        let mut position = self.begin(since).await?;
        // All since then, of all conversations: nobody kept it apart for a client that was not here.
        let mut reading = Some(Reading { conversations: None, through: None });
        let mut ticks = interval_at(Instant::now() + heartbeat, heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut expiry = std::pin::pin!(sleep(remaining(good_until)));
        loop {
            let event = tokio::select! {
                biased;
                () = self.state.stop.cancelled() => Event::Stop,
                () = &mut expiry => Event::Expired,
                // Before what comes: whoever sends without pause must not keep them from coming.
                _ = ticks.tick() => Event::Tick,
                incoming = self.socket.recv() => Event::Incoming(incoming),
                () = async { if reading.is_some() { ready(()).await } else { pending().await } } => Event::ReadOn,
                () = place.news() => Event::News,
            };
            match event {
                Event::Stop => return Err(End::Stopping),
                Event::Expired => return Err(End::Expired),
                Event::Incoming(incoming) => {
                    heard = Instant::now();
                    self.take(incoming).await?;
                    // Whoever sends without pause is told the news all the same.
                    if reading.is_none() {
                        reading = catch_up(place, &mut position);
                    }
                    if let Some(span) = &reading
                        && self.read_on(&mut position, span).await?
                    {
                        reading = catch_up(place, &mut position);
                    }
                }
                Event::Tick => {
                    if heard.elapsed() > heartbeat * SILENT_HEARTBEATS {
                        return Err(End::Silent);
                    }
                    // A machine that slept has not slept for the token.
                    if remaining(good_until).is_zero() {
                        return Err(End::Expired);
                    }
                    if reading.is_none() {
                        reading = catch_up(place, &mut position);
                    }
                    self.send(&Frame::Heartbeat { cursor: position }).await?;
                    self.write(Message::Ping(Bytes::new())).await?;
                }
                Event::News => {
                    if reading.is_none() {
                        reading = catch_up(place, &mut position);
                    }
                }
                Event::ReadOn => {
                    if let Some(span) = &reading
                        && self.read_on(&mut position, span).await?
                    {
                        reading = catch_up(place, &mut position);
                    }
                }
            }
        }
    }

    /// Says from where on the client is told everything: from its cursor, or from now.
    async fn begin(&mut self, since: Option<&str>) -> Result<Position, End> {
        let newest = loop {
            match newest(self.state).await {
                Ok(newest) => break newest,
                Err(error) => self.database_failed(&error).await?,
            }
        };
        let Some(since) = since else {
            self.send(&Frame::Ready { cursor: newest }).await?;
            return Ok(newest);
        };
        metric::WS_RESUMES.increment(1);
        // Whether the log reaches back so far, the first page will tell.
        let readable = since.parse();
        let cursor = readable.unwrap_or(newest);
        self.send(&Frame::Ready { cursor }).await?;
        if readable.is_err() {
            self.resync(newest, Resync::Unknown).await?;
        }
        Ok(cursor)
    }

    /// Reads a page, writes it, and moves on. True when there is no more of it.
    async fn read_on(&mut self, position: &mut Position, reading: &Reading) -> Result<bool, End> {
        let span = Span { after: *position, through: reading.through, conversations: reading.conversations.as_deref() };
        let read = match read(self.state, self.user_id, span).await {
            Ok(read) => read,
            Err(error) => {
                self.database_failed(&error).await?;
                return Ok(false);
            }
        };
        match read {
            Read::Page { through, more, frames } => {
                for frame in &frames {
                    self.send(frame).await?;
                }
                *position = through;
                Ok(!more)
            }
            Read::Lost { newest, reason } => {
                self.resync(newest, reason).await?;
                *position = newest;
                Ok(true)
            }
        }
    }

    /// The connection outlives the database's absence: what it missed stands in the log.
    async fn database_failed(&mut self, error: &sqlx::Error) -> Result<(), End> {
        metric::EVENT_LOG_ERRORS.increment(1);
        if database::is_unavailable(error) {
            tracing::debug!(%error, "a connection cannot read the event log; trying again");
        } else {
            tracing::error!(%error, "a connection cannot read the event log; trying again");
        }
        match self.state.stop.run_until_cancelled(sleep(DATABASE_BACKOFF)).await {
            Some(()) => Ok(()),
            None => Err(End::Stopping),
        }
    }

    async fn resync(&mut self, cursor: Position, reason: Resync) -> Result<(), End> {
        metric::WS_RESYNCS.with([reason.as_str()]).increment(1);
        self.send(&Frame::Resync { cursor, reason }).await
    }

    async fn take(&mut self, incoming: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        match incoming {
            Some(Ok(Message::Text(text))) => {
                let answer = receive::answer(self.state, self.user_id, &text).await;
                self.send(&answer).await
            }
            // Pings are answered below us.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Binary(_))) => Err(End::NotText),
            Some(Ok(Message::Close(_))) | None => Err(End::Gone),
            Some(Err(error)) => Err(broken(error)),
        }
    }

    async fn send(&mut self, frame: &Frame) -> Result<(), End> {
        let text = serde_json::to_string(frame).map_err(|error| {
            tracing::error!(%error, frame = frame.name(), "a frame cannot be written");
            End::Broken
        })?;
        self.write(Message::Text(text.into())).await?;
        metric::WS_FRAMES.with([frame.name()]).increment(1);
        Ok(())
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        match timeout(self.state.websocket.write_timeout, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Slow),
        }
    }
}

enum Read {
    Page { through: Position, more: bool, frames: Vec<Frame> },
    Lost { newest: Position, reason: Resync },
}

async fn newest(state: &State) -> Result<Position, sqlx::Error> {
    let mut conn = state.pool.acquire().await?;
    events::newest(&mut conn).await
}

/// Reads a page and what it refers to, in one snapshot: what a client may see and what it is shown are of one moment.
async fn read(state: &State, user_id: UserId, span: Span<'_>) -> Result<Read, sqlx::Error> {
    let _permit = state.reading.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
    let mut tx = state.pool.begin_with("begin isolation level repeatable read, read only").await?;
    let read = match events::page(&mut tx, user_id, span, PAGE).await? {
        Ok(Page { entries, through, more }) => {
            let frames = render::render(&mut tx, &state.keys, user_id, &entries).await?;
            Read::Page { through, more, frames }
        }
        Err(lost) => Read::Lost { newest: events::newest(&mut tx).await?, reason: lost.into() },
    };
    tx.commit().await?;
    Ok(read)
}

/// Takes what there is to read from the hub. When there is nothing, all that everyone has read counts as read here too.
fn catch_up(place: &Place, position: &mut Position) -> Option<Reading> {
    let (unread, through) = place.take();
    match unread {
        Some(Unread { from, conversations: Some(conversations) }) => {
            *position = from.max(*position);
            let conversations = Some(conversations.into_iter().collect());
            Some(Reading { conversations, through })
        }
        Some(Unread { conversations: None, .. }) => Some(Reading { conversations: None, through: None }),
        None => {
            if let Some(through) = through {
                *position = through.max(*position);
            }
            None
        }
    }
}

/// How long a token is still good.
fn remaining(good_until: i64) -> Duration {
    Duration::from_secs(u64::try_from(good_until.saturating_sub(database::unix_time())).unwrap_or(0))
}

fn broken(error: axum::Error) -> End {
    let Ok(error) = error.into_inner().downcast::<tungstenite::Error>() else { return End::Gone };
    match *error {
        tungstenite::Error::Capacity(_) => End::TooLong,
        tungstenite::Error::Utf8(_) => End::NotUtf8,
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
        tungstenite::Error::Protocol(_) => End::Broken,
        _ => End::Gone,
    }
}
