//! Synapse's two memories of transaction ids.
//!
//! - **In RAM**, by request path: an entry lives 30 to 60 minutes and is gone after a restart. For an application service
//!   the key is the path and the service, so that two of its users who put the same transaction id to the same path share
//!   one entry, and the second one's event is swallowed.
//! - **Durable**, by (user, device, room, transaction id): 24 hours, and dropped with the device. Neither the event type
//!   nor the endpoint is part of it. A requester without a device has no such row.
//!
//! Only what succeeded is remembered; bodies are never compared.
use std::collections::HashMap;

use super::state::Requester;

const RAM_PERIOD_MS: u64 = 30 * 60 * 1000;
const DURABLE_MS: u64 = 24 * 60 * 60 * 1000;

#[derive(Debug, Default)]
pub(super) struct Transactions {
    ram: HashMap<RamKey, Remembered>,
    rows: HashMap<RowKey, Remembered>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct RamKey {
    path: String,
    scope: RamScope,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum RamScope {
    Appservice(String),
    Device(String, String),
    Token(String),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct RowKey {
    user: String,
    device: String,
    room: String,
    txn: String,
}

#[derive(Debug)]
struct Remembered {
    event_id: String,
    at_ms: u64,
}

impl RamKey {
    fn new(requester: &Requester, path: &str) -> Self {
        let scope = match (&requester.appservice, &requester.device) {
            (Some(id), _) => RamScope::Appservice(id.clone()),
            (None, Some(device)) => RamScope::Device(requester.user.clone(), device.clone()),
            (None, None) => RamScope::Token(requester.token.clone()),
        };
        Self { path: path.to_owned(), scope }
    }
}

impl RowKey {
    fn new(requester: &Requester, room: &str, txn: &str) -> Option<Self> {
        let device = requester.device.clone()?;
        Some(Self { user: requester.user.clone(), device, room: room.to_owned(), txn: txn.to_owned() })
    }
}

impl Transactions {
    /// What the RAM answers to this path, whatever the body says.
    pub(super) fn in_ram(&self, requester: &Requester, path: &str, now_ms: u64) -> Option<String> {
        let found = self.ram.get(&RamKey::new(requester, path))?;
        // A sweep every 30 minutes drops what is older than 30: an entry that saw two sweeps is gone.
        (now_ms / RAM_PERIOD_MS <= found.at_ms / RAM_PERIOD_MS + 1).then(|| found.event_id.clone())
    }

    /// The event that this device already made of this transaction id in this room.
    pub(super) fn in_rows(&self, requester: &Requester, room: &str, txn: &str, now_ms: u64) -> Option<String> {
        let found = self.rows.get(&RowKey::new(requester, room, txn)?)?;
        (now_ms < found.at_ms + DURABLE_MS).then(|| found.event_id.clone())
    }

    pub(super) fn remember_in_ram(&mut self, requester: &Requester, path: &str, event_id: &str, now_ms: u64) {
        self.ram.insert(RamKey::new(requester, path), Remembered { event_id: event_id.to_owned(), at_ms: now_ms });
    }

    pub(super) fn remember_row(&mut self, requester: &Requester, room: &str, txn: &str, event_id: &str, now_ms: u64) {
        if let Some(key) = RowKey::new(requester, room, txn) {
            self.rows.insert(key, Remembered { event_id: event_id.to_owned(), at_ms: now_ms });
        }
    }

    /// What a restart does.
    pub(super) fn forget_ram(&mut self) {
        self.ram.clear();
    }

    /// What happens to the rows of a device that is logged out or deleted: the RAM keeps answering.
    pub(super) fn forget_device(&mut self, user: &str, device: &str) {
        self.rows.retain(|key, _| key.user != user || key.device != device);
    }

    pub(super) fn forget_everything(&mut self) {
        self.ram.clear();
        self.rows.clear();
    }
}
