//! A homeserver for tests: real HTTP, Synapse's answers, and faults on demand.
//!
//! [`FakeHomeserver`] speaks the part of the Matrix client API (v1.15) that senders and receivers of room events use, and
//! answers as Synapse 1.163.2 was measured to answer, with its peculiarities:
//!
//! - two memories of transaction ids: one in RAM by request path, forgotten by a restart and for application services blind
//!   to the user; one durable by user, device, room and transaction id, blind to event type and endpoint, kept for 24 hours
//!   and dropped with the device;
//! - rooms of version 12: their ids name no server, creators stand above all levels and may not be listed in
//!   `power_levels`; creation is a series of events and not atomic;
//! - "already done" and "not allowed" share `M_FORBIDDEN`;
//! - redacting an original leaves the text of its edits in place.
//!
//! The same conformance tests run against it and against Synapse; where they differ, this one is wrong.
//!
//! Faults are ordinary inputs: `hs.on_send().room(&room).fail(429).retry_after(Duration::from_secs(2)).once()`. The clock
//! can be moved ([`FakeHomeserver::advance`]), memory lost ([`FakeHomeserver::restart`]), the port closed
//! ([`FakeHomeserver::set_down`]).
//!
//! Not here: federation, media, encryption, presence, receipts, rate limits (but as faults), pushes to application
//! services.
mod accounts;
mod auth_rules;
mod events;
mod faults;
mod handlers;
mod log;
mod reply;
mod rooms;
mod routes;
mod server;
mod state;
mod sync;
mod txn;
mod view;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub(crate) use accounts::registration_mac;
pub use events::SHOWN_AS;
pub use faults::{Fault, FaultBuilder};
pub use log::LoggedRequest;
pub use routes::Kind;

use super::matrix_client::MatrixEvent;
use faults::Faults;
use server::Port;
use state::{Requester, State, Turn};

/// The server name unless a test chooses another.
pub const SERVER_NAME: &str = "nova.test";

/// The shared secret of registration unless a test chooses another.
pub const REGISTRATION_SECRET: &str = "registration-secret";

/// An application service's registration.
#[derive(Debug, Clone)]
pub struct Appservice {
    /// The `id` of the registration file.
    pub id: String,
    /// The token with which the service asks.
    pub as_token: String,
    /// The local part of the service's own user, which is registered with it.
    pub sender_localpart: String,
    /// The service exclusively owns the users whose local part begins with this.
    pub user_prefix: String,
}

impl Appservice {
    fn owns(&self, user: &str) -> bool {
        user.strip_prefix('@').is_some_and(|rest| rest.starts_with(&self.user_prefix))
    }
}

/// How to start a [`FakeHomeserver`] that is not the usual one.
#[derive(Debug)]
#[must_use = "nothing runs before `start`"]
pub struct Builder {
    server_name: String,
    registration_secret: String,
    appservices: Vec<Appservice>,
}

impl Builder {
    /// The domain of its users and aliases; [`SERVER_NAME`] by default.
    pub fn server_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.server_name);
        self
    }

    /// The shared secret of registration; [`REGISTRATION_SECRET`] by default.
    pub fn registration_secret(mut self, secret: &str) -> Self {
        secret.clone_into(&mut self.registration_secret);
        self
    }

    /// Registers an application service.
    pub fn appservice(mut self, appservice: Appservice) -> Self {
        self.appservices.push(appservice);
        self
    }

    /// Starts it on a free port of 127.0.0.1. It listens when this returns.
    #[expect(clippy::unused_async, reason = "it needs a runtime to spawn on, and shows so")]
    pub async fn start(self) -> FakeHomeserver {
        let root = CancellationToken::new();
        let socket = server::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let addr = socket.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(&self.server_name, self.appservices)),
            registration_secret: self.registration_secret,
            faults: Faults::default(),
            log: log::Log::default(),
            generation: Mutex::new(root.child_token()),
            root,
            black_hole: AtomicBool::new(false),
            latency_us: AtomicU64::new(0),
        });
        let port = tokio::sync::Mutex::new(Port::listen(&shared, socket));
        FakeHomeserver { shared, server_name: self.server_name, addr, port }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    registration_secret: String,
    faults: Faults,
    log: log::Log,
    /// Ends with a restart: all connections and all requests in flight.
    generation: Mutex<CancellationToken>,
    root: CancellationToken,
    black_hole: AtomicBool,
    latency_us: AtomicU64,
}

/// A homeserver on 127.0.0.1, which stops when it is dropped. See the [module](self).
#[derive(Debug)]
pub struct FakeHomeserver {
    shared: Arc<Shared>,
    server_name: String,
    addr: SocketAddr,
    port: tokio::sync::Mutex<Port>,
}

impl Drop for FakeHomeserver {
    fn drop(&mut self) {
        self.shared.root.cancel();
    }
}

impl FakeHomeserver {
    /// Starts one with the usual server name and secret.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// For one with another name or with application services.
    pub fn builder() -> Builder {
        Builder {
            server_name: SERVER_NAME.to_owned(),
            registration_secret: REGISTRATION_SECRET.to_owned(),
            appservices: Vec::new(),
        }
    }

    /// `http://127.0.0.1:<port>`, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The domain of its users and aliases.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// The shared secret with which accounts are registered.
    pub fn registration_secret(&self) -> &str {
        &self.shared.registration_secret
    }

    // ---- Faults ----

    /// Any request.
    pub fn on_any(&self) -> FaultBuilder<'_> {
        FaultBuilder::new(&self.shared.faults, None)
    }

    /// Requests of this kind.
    pub fn on(&self, kind: Kind) -> FaultBuilder<'_> {
        FaultBuilder::new(&self.shared.faults, Some(kind))
    }

    /// `PUT /rooms/{id}/send/…`
    pub fn on_send(&self) -> FaultBuilder<'_> {
        self.on(Kind::Send)
    }

    /// `PUT /rooms/{id}/redact/…`
    pub fn on_redact(&self) -> FaultBuilder<'_> {
        self.on(Kind::Redact)
    }

    /// `POST /createRoom`
    pub fn on_create_room(&self) -> FaultBuilder<'_> {
        self.on(Kind::CreateRoom)
    }

    /// `POST /rooms/{id}/invite`
    pub fn on_invite(&self) -> FaultBuilder<'_> {
        self.on(Kind::Invite)
    }

    /// `POST /rooms/{id}/kick`
    pub fn on_kick(&self) -> FaultBuilder<'_> {
        self.on(Kind::Kick)
    }

    /// `PUT /rooms/{id}/state/…`
    pub fn on_state(&self) -> FaultBuilder<'_> {
        self.on(Kind::PutState)
    }

    /// `/directory/room/{alias}`
    pub fn on_alias(&self) -> FaultBuilder<'_> {
        self.on(Kind::Alias)
    }

    /// `GET /sync`
    pub fn on_sync(&self) -> FaultBuilder<'_> {
        self.on(Kind::Sync)
    }

    /// Removes all faults and lets go what they hold.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Every request waits this long before anything is done; zero to end it.
    pub fn latency(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.shared.latency_us.store(micros, Ordering::SeqCst);
    }

    /// With `true`, requests are accepted and never answered, and nothing that they ask is done. With `false`, new ones are
    /// answered again; those of before stay unanswered.
    pub fn set_black_hole(&self, on: bool) {
        self.shared.black_hole.store(on, Ordering::SeqCst);
    }

    /// With `true`, closes the port and all connections: new ones are refused. With `false`, listens again on the same port.
    /// What it forgets by it is what a [restart](Self::restart) forgets.
    pub async fn set_down(&self, down: bool) {
        let mut port = self.port.lock().await;
        if down {
            port.refuse(self.addr).await;
            self.restart();
        } else {
            port.reopen(&self.shared);
        }
    }

    /// Forgets what was only in RAM, ends the requests in flight (those not yet stored never will be), and closes all
    /// connections.
    pub fn restart(&self) {
        let next = self.shared.root.child_token();
        let before = std::mem::replace(&mut *self.shared.generation.lock().unwrap(), next);
        before.cancel();
        self.state(|state| state.txns.forget_ram());
    }

    /// Forgets every transaction id, as after 24 hours or with a database restored from a backup.
    pub fn forget_transactions(&self) {
        self.state(|state| state.txns.forget_everything());
    }

    /// Moves the homeserver's clock forward. Delays of faults and long-polls keep to real time.
    pub fn advance(&self, by: Duration) {
        self.state(|state| state.clock.advance(by));
    }

    /// The homeserver's clock, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.state(|state| state.clock.now_ms())
    }

    /// Names TURN servers from now on, with credentials for so long that are made from this secret. Without, it has none.
    pub fn set_turn_servers(&self, uris: &[&str], secret: &str, lifetime: Duration) {
        let uris = uris.iter().map(|&uri| uri.to_owned()).collect();
        self.state(|state| state.turn = Some(Turn { uris, secret: secret.to_owned(), lifetime }));
    }

    /// All access tokens of this user are invalid from now on. Its devices, and what they remember, stay: a login on the
    /// same device goes on where it was.
    pub fn revoke_token(&self, user: &str) {
        self.state(|state| state.sessions.retain(|_, (of_user, _)| of_user != user));
    }

    /// Deletes a device with its tokens and its memory of transaction ids.
    pub fn delete_device(&self, user: &str, device: &str) {
        self.state(|state| accounts::delete_device(state, user, device));
    }

    // ---- Inspection ----

    /// The requests so far, in the order of their arrival (the last 100,000).
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.log.requests()
    }

    /// How many requests of a kind arrived.
    pub fn count(&self, kind: Kind) -> u64 {
        self.shared.log.count(kind)
    }

    /// How many `PUT /send` arrived, answered or not.
    pub fn sends(&self) -> u64 {
        self.count(Kind::Send)
    }

    /// The ids of all rooms, in the order of their creation.
    pub fn rooms(&self) -> Vec<String> {
        self.state(|state| state.room_order.clone())
    }

    /// All events of a room in their order, as nobody in particular sees them: redacted ones without their content.
    pub fn timeline(&self, room: &str) -> Vec<MatrixEvent> {
        let nobody = Requester { user: String::new(), device: None, appservice: None, token: String::new() };
        self.state(|state| {
            let now = state.clock.now_ms();
            let found = state.room(room).unwrap_or_else(|| panic!("no room {room}"));
            (0..found.timeline.len())
                .map(|index| events::client_event(found, room, index, &nobody, now))
                .map(|event| serde_json::from_value(event).expect("our own events are well formed"))
                .collect()
        })
    }

    /// The content of a current state event.
    pub fn room_state(&self, room: &str, event_type: &str, state_key: &str) -> Option<Value> {
        self.state(|state| state.room(room)?.current(event_type, state_key).map(|event| event.content.clone()))
    }

    /// A user's membership of a room: `join`, `invite`, `leave` or `ban`.
    pub fn membership(&self, room: &str, user: &str) -> Option<String> {
        self.state(|state| state.room(room)?.membership(user).map(str::to_owned))
    }

    /// The room that an alias points to.
    pub fn alias(&self, alias: &str) -> Option<String> {
        self.state(|state| state.aliases.get(alias).map(|found| found.room.clone()))
    }

    fn state<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.shared.state.lock().unwrap())
    }
}
