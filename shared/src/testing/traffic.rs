//! Clients at work: they write, answer, react, edit, delete, add and remove as a seed says, and ask until they are answered. Everything that they ask
//! is entered into the ledger's record.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{
    database::TestDatabase,
    eventually_within,
    ledger::{Asked, Deletion},
    nova::{Front, NovaUser},
};
use crate::ids::UserId;

/// How long anything may take on a busy machine.
const WITHIN: Duration = Duration::from_mins(10);

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    pub const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 up to the bound, which is not reached.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

/// What is to be done: of a hundred requests five delete, ten edit, eight react or take a reaction back, two add or remove a
/// guest, the others post; one post in eight answers a message.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Everything follows from it, but how the clients' requests interleave.
    pub seed: u64,
    /// How many clients write at once.
    pub clients: usize,
    /// Requests of all clients together.
    pub operations: usize,
    /// Half of all work is in the first of them; at least two.
    pub conversations: usize,
    /// After so many requests a client waits until its last message is delivered.
    pub ahead: usize,
    /// Whether guests come and go. Without them, who would add or remove one posts.
    pub guests: bool,
}

impl Traffic {
    /// Makes the conversations, and lets the clients begin.
    pub async fn begin(self, front: &Front, asked: &Asked) -> Work {
        let users: Vec<NovaUser> =
            (0..self.clients).map(|_| NovaUser::behind(front.clone(), UserId::generate())).collect();
        let ids: Vec<UserId> = users.iter().map(|user| user.user_id).collect();
        let members: Vec<Uuid> = ids.iter().map(|user| user.as_uuid()).collect();
        let mut conversations = Vec::new();
        for _ in 0..self.conversations {
            let conversation = users[0].create_conversation(&ids).await;
            asked.conversation(uuid(&conversation), &members);
            conversations.push(conversation);
        }
        let all = Arc::new(Mutex::new(Vec::new()));
        let start = |(number, user)| {
            let chance = Chance::of(self.seed.wrapping_mul(1000).wrapping_add(number as u64));
            let (asked, conversations) = (asked.clone(), conversations.clone());
            let client = Client {
                number,
                user,
                guest: self.guests.then(UserId::generate),
                asked,
                conversations,
                all: all.clone(),
                own: Vec::new(),
                reacted: Vec::new(),
                chance,
            };
            tokio::spawn(client.run(self.operations / self.clients, self.ahead))
        };
        Work { clients: users.into_iter().enumerate().map(start).collect() }
    }
}

/// Clients that are at work.
#[derive(Debug)]
pub struct Work {
    clients: Vec<JoinHandle<()>>,
}

impl Work {
    /// True when every client has done all that it had to do.
    pub fn is_done(&self) -> bool {
        self.clients.iter().all(JoinHandle::is_finished)
    }

    /// Waits for all clients.
    pub async fn done(self) {
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// One client: it knows its own messages.
struct Client {
    number: usize,
    user: NovaUser,
    /// Whom this client brings along and sends away again, if anybody.
    guest: Option<UserId>,
    asked: Asked,
    conversations: Vec<String>,
    /// The messages of all clients.
    all: Arc<Mutex<Vec<String>>>,
    /// Each with its conversation.
    own: Vec<(String, String)>,
    /// Messages that it reacted to, each with the key.
    reacted: Vec<(String, &'static str)>,
    chance: Chance,
}

/// What clients react with.
const KEYS: [&str; 3] = ["\u{1f44d}", "\u{2764}\u{fe0f}", "a/b?c"];

/// A key as a part of a path.
fn in_path(key: &str) -> String {
    percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl Client {
    async fn run(mut self, operations: usize, ahead: usize) {
        for n in 0..operations {
            // Not too far ahead of Matrix, or all edits and deletes would find their message waiting.
            if let Some(message) = n.checked_sub(1).filter(|n| n % ahead == 0).and(self.own.last()) {
                self.delivered(&message.1).await;
            }
            let text = format!("client {} says number {n:05}", self.number);
            match (self.chance.below(100), self.guest) {
                (0..5, _) if !self.own.is_empty() => self.delete().await,
                (5..15, _) if !self.own.is_empty() => self.edit(&text).await,
                (15..21, _) if !self.own.is_empty() => self.react().await,
                (21..23, _) if !self.reacted.is_empty() => self.unreact().await,
                (23..25, Some(guest)) => self.change_guest(guest).await,
                _ => self.post(&text).await,
            }
        }
    }

    async fn delivered(&self, message: &str) {
        eventually_within(WITHIN, "a client's last message is delivered", || async {
            let answer = self.user.try_call("GET", &format!("/messages/{message}"), None).await.ok()?;
            (answer.body["matrix"]["delivery"] == "delivered").then_some(())
        })
        .await;
    }

    async fn post(&mut self, text: &str) {
        let others = self.conversations.len() - 1;
        let place = if self.chance.below(2) == 0 { 0 } else { 1 + self.chance.below(others) };
        let conversation = self.conversations[place].clone();
        let mut entry = self.asked.post(uuid(&conversation), self.user.user_id.as_uuid(), text);
        let mut body = json!({"conversation_id": conversation, "plaintext": text});
        let answered = self.own.iter().rev().find(|(of, _)| *of == conversation).map(|(_, message)| message);
        if let Some(message) = answered.filter(|_| self.chance.below(8) == 0) {
            body["reply_to"] = json!(message);
            entry = entry.replying_to(uuid(message));
        }
        let posted = self.user.insist("POST", "/messages", &[("Idempotency-Key", text)], Some(&body)).await.expect(201);
        entry.answered(uuid(&id(&posted)), posted["seq"].as_i64().unwrap());
        self.own.push((conversation, id(&posted)));
        self.all.lock().unwrap().push(id(&posted));
    }

    async fn edit(&mut self, text: &str) {
        let (_, message) = self.own[self.chance.below(self.own.len())].clone();
        let entry = self.asked.edit(uuid(&message), text);
        let body = json!({"plaintext": text});
        let edited = self.user.insist("PATCH", &format!("/messages/{message}"), &[], Some(&body)).await.expect(200);
        entry.answered(edited["revision"].as_i64().unwrap());
    }

    async fn delete(&mut self) {
        let place = self.chance.below(self.own.len());
        let (_, message) = self.own.swap_remove(place);
        self.reacted.retain(|(to, _)| *to != message);
        let entry = self.asked.delete(uuid(&message));
        let deleted = self.user.insist("DELETE", &format!("/messages/{message}"), &[], None).await.expect(200);
        match deleted["deletion"].as_str() {
            Some("cancelled") => entry.answered(Deletion::Cancelled),
            Some("redacting") => entry.answered(Deletion::Redacting),
            // Done by an earlier try, whose answer did not arrive.
            _ => {}
        }
    }

    /// Reacts to somebody's message, one of the last few, so that several react to one.
    async fn react(&mut self) {
        let message = {
            let all = self.all.lock().unwrap();
            all[all.len() - 1 - self.chance.below(all.len().min(10))].clone()
        };
        let key = KEYS[self.chance.below(KEYS.len())];
        let entry = self.asked.react(uuid(&message), self.user.user_id.as_uuid(), key);
        let path = format!("/messages/{message}/reactions/{}", in_path(key));
        let answer = self.user.insist("PUT", &path, &[], None).await;
        if answer.code() == "message_deleted" {
            return entry.refused();
        }
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        entry.answered();
        self.reacted.push((message, key));
    }

    async fn unreact(&mut self) {
        let place = self.chance.below(self.reacted.len());
        let (message, key) = self.reacted.swap_remove(place);
        let entry = self.asked.unreact(uuid(&message), self.user.user_id.as_uuid(), key);
        let path = format!("/messages/{message}/reactions/{}", in_path(key));
        self.user.insist("DELETE", &path, &[], None).await.expect(204);
        entry.answered();
        self.reacted.retain(|reacted| *reacted != (message.clone(), key));
    }

    /// Brings the guest into the first conversation, or sends them away.
    async fn change_guest(&mut self, guest: UserId) {
        let path = format!("/conversations/{}/members/{guest}", self.conversations[0]);
        let (conversation, guest) = (uuid(&self.conversations[0]), guest.as_uuid());
        if self.chance.below(2) == 0 {
            let entry = self.asked.add_member(conversation, guest);
            self.user.insist("PUT", &path, &[], None).await.expect(200);
            entry.answered();
        } else {
            let entry = self.asked.remove_member(conversation, guest);
            let answer = self.user.insist("DELETE", &path, &[], None).await;
            // Was no member, or was removed by an earlier try.
            assert!(matches!(answer.status, 204 | 404), "{answer:?}");
            entry.answered();
        }
    }
}

fn id(body: &Value) -> String {
    body["id"].as_str().unwrap().to_owned()
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

/// Waits until no lane has work left.
pub async fn drained(database: &TestDatabase) {
    eventually_within(WITHIN, "everything is delivered", || async {
        (database.count("select coalesce(sum(open), 0)::bigint from lanes").await == 0).then_some(())
    })
    .await;
}

/// How many messages that stand are not delivered, for all that the API says.
pub async fn undelivered(database: &TestDatabase) -> i64 {
    let sql = "select count(*) from message_details where deleted_at is null and delivery <> 'delivered'";
    database.count(sql).await
}

/// Enters into the record which events the API says that messages became.
pub async fn note_event_ids(database: &TestDatabase, asked: &Asked) {
    let told: Vec<(Uuid, String)> = sqlx::query_as(
        "select message_id, matrix_event_id from messages where deleted_at is null and matrix_event_id is not null",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    asked.event_ids(told);
}
