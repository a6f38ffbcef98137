//! Ordinary Matrix users in twenty rooms of a real Synapse, while our worker dies and Synapse restarts: what they did is in
//! the database, in their order, once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use shared::testing::{
    eventually, eventually_within,
    matrix_client::{MatrixClient, MatrixEvent},
    nova::{NovaUser, Program},
    private::{PrivateSynapse, RateLimits},
    traffic::Chance,
    websocket,
};
use tokio_util::sync::CancellationToken;

use crate::scene::{Home, Scene, id, room_of};

/// Synapse takes some thirty events a second here, and is away twice.
const WITHIN: Duration = Duration::from_mins(15);

/// A worker that listens, and waits for a busy Synapse.
const LISTENING: [(&str, &str); 4] = [
    ("MATRIX_SYNC_ENABLED", "true"),
    ("MATRIX_SYNC_LIMIT", "20"),
    ("OUTBOX_LEASE", "10s"),
    ("OUTBOX_HTTP_TIMEOUT", "5s"),
];

/// How often the worker is killed.
const KILLS: usize = 6;

/// One who writes on Matrix, and what they wrote in each room.
struct Person {
    client: MatrixClient,
    chance: Chance,
    messages: BTreeMap<String, Vec<String>>,
    others: BTreeMap<String, Vec<String>>,
    calls: usize,
}

impl Person {
    /// Sends, under one transaction id, until the homeserver has it.
    async fn send(&self, room: &str, event_type: &str, txn: &str, content: &Value) -> String {
        eventually_within(WITHIN, "Synapse takes an event", || async {
            self.client.send(room, event_type, txn, content).await.ok()
        })
        .await
    }

    async fn redact(&self, room: &str, event: &str, txn: &str) {
        eventually_within(WITHIN, "Synapse takes a redaction", || async {
            self.client.redact(room, event, txn, &json!({})).await.ok()
        })
        .await;
    }

    fn one_of(chance: &mut Chance, ids: &BTreeMap<String, Vec<String>>, room: &str) -> Option<String> {
        let ids = ids.get(room).filter(|ids| !ids.is_empty())?;
        Some(ids[chance.below(ids.len())].clone())
    }

    /// Does one thing in a room. Of a hundred, some edit what may be redacted, or redact what may be edited.
    async fn act(&mut self, room: &str, n: usize) {
        let txn = format!("{}-{n}", self.client.user_id());
        let mine = Self::one_of(&mut self.chance, &self.messages, room);
        let other = Self::one_of(&mut self.chance, &self.others, room);
        let edit = |target: &str, text: &str| {
            json!({
                "msgtype": "m.text",
                "body": format!("* {text}"),
                "m.new_content": {"msgtype": "m.text", "body": text},
                "m.relates_to": {"rel_type": "m.replace", "event_id": target},
            })
        };
        match (self.chance.below(100), mine, other) {
            (0..=19, Some(mine), _) => {
                let edited = self.send(room, "m.room.message", &txn, &edit(&mine, &format!("edited {txn}"))).await;
                self.others.entry(room.to_owned()).or_default().push(edited);
            }
            (20..=24, _, Some(other)) => {
                self.send(room, "m.room.message", &txn, &edit(&other, "an edit of an edit")).await;
            }
            (25..=34, Some(mine), _) => self.redact(room, &mine, &txn).await,
            (35..=39, _, Some(other)) => self.redact(room, &other, &txn).await,
            (40..=44, Some(mine), _) => {
                let content = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": mine, "key": txn}});
                let reaction = self.send(room, "m.reaction", &txn, &content).await;
                self.others.entry(room.to_owned()).or_default().push(reaction);
            }
            (45..=49, _, _) => {
                let content = json!({"msgtype": "m.image", "body": txn, "url": "mxc://nova.test/picture"});
                self.send(room, "m.room.message", &txn, &content).await;
            }
            (50..=57, _, _) => {
                let (event_type, content) = self.call();
                self.send(room, event_type, &txn, &content).await;
            }
            _ => {
                let said = self.send(room, "m.room.message", &txn, &json!({"msgtype": "m.text", "body": txn})).await;
                self.messages.entry(room.to_owned()).or_default().push(said);
            }
        }
    }

    fn call(&mut self) -> (&'static str, Value) {
        self.calls += 1;
        let call_id = format!("{}-{}", self.client.user_id(), self.calls / 3);
        let base = json!({"call_id": call_id, "party_id": "device", "version": "1"});
        let with = |more: Value| {
            let mut all = base.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        match self.calls % 3 {
            0 => ("m.call.invite", with(json!({"lifetime": 60000, "offer": {"type": "offer", "sdp": "v=0"}}))),
            1 => ("m.call.candidates", with(json!({"candidates": [{"candidate": ""}]}))),
            _ => ("m.call.hangup", with(json!({"reason": "user_hangup"}))),
        }
    }
}

/// What a room's events come to, read as a Matrix client would: each message's newest text, or that it is gone.
fn read_room(events: &[MatrixEvent]) -> Vec<(String, String)> {
    let is_message = |event: &&MatrixEvent| event.event_type == "m.room.message" && event.state_key.is_none();
    let newest = |original: &MatrixEvent| {
        let edits = events.iter().filter(is_message).filter(|edit| {
            edit.replaces() == Some(&original.event_id) && edit.sender == original.sender && !edit.is_redacted()
        });
        edits.max_by_key(|edit| (edit.origin_server_ts, &edit.event_id))
    };
    let originals = events.iter().filter(is_message).filter(|event| !event.is_redacted() && event.replaces().is_none());
    originals
        .map(|original| {
            let text = match newest(original) {
                Some(edit) => edit.content["m.new_content"]["body"].as_str(),
                None => original.body(),
            };
            (original.event_id.clone(), text.unwrap_or_default().to_owned())
        })
        .collect()
}

async fn all_messages(user: &NovaUser, conversation: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/conversations/{conversation}/messages?limit=100{cursor}");
        let page = user.call("GET", &path, None).await.expect(200);
        found.extend(page["messages"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    found.reverse();
    found
}

/// The conversation, as far as it is shown: event and text.
fn read_conversation(messages: &[Value]) -> Vec<(String, String)> {
    let shown = messages.iter().filter(|message| message["deleted_at"].is_null());
    shown
        .map(|message| {
            let event_id = message["matrix"]["event_id"].as_str().unwrap_or_default();
            (event_id.to_owned(), message["plaintext"].as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

/// What a client is shown of the log whenever it comes: all but the rings.
const SHOWN_SINCE: &str = "select count(*) from events e
    where (e.xid, e.event_id) > ($1::text::xid8, $2) and not exists (
        select 1 from call_signals s where s.signal_id = e.subject_id and s.kind = 'invite'
    )";

/// What a client heard over many connections: how often each cursor, from which on, and up to which.
struct Heard {
    cursors: BTreeMap<String, u32>,
    /// Of calls that rang, which nobody is told who comes when they are over.
    rings: BTreeMap<String, u32>,
    began: String,
    since: String,
}

impl Heard {
    fn take(&mut self, frame: &Value) {
        let cursor = frame["cursor"].as_str().unwrap().to_owned();
        if !matches!(frame["type"].as_str(), Some("ready" | "heartbeat")) {
            assert_ne!(frame["type"], "resync", "nothing is too old");
            let rings = frame["type"] == "CallInviteViaMatrix";
            let heard = if rings { &mut self.rings } else { &mut self.cursors };
            *heard.entry(cursor.clone()).or_default() += 1;
        }
        self.since = cursor;
    }

    /// Takes what comes until nothing does for a moment, so many frames at most.
    async fn listen(&mut self, user: &NovaUser, frames: usize) {
        let mut socket = user.try_listen(Some(&self.since)).await.unwrap();
        for _ in 0..=frames {
            match socket.hear_within(Duration::from_millis(500)).await {
                Some(websocket::Heard::Frame(frame)) => self.take(&frame),
                Some(other) => panic!("the connection ended: {other:?}"),
                None => return,
            }
        }
    }
}

/// Listens over one short connection after another, each cut in the middle of anything.
async fn keep_listening(user: NovaUser, stop: CancellationToken, mut chance: Chance, cuts: Arc<AtomicUsize>) -> Heard {
    let since = user.listen(None).await.cursor().to_owned();
    let mut heard = Heard { cursors: BTreeMap::new(), rings: BTreeMap::new(), began: since.clone(), since };
    while !stop.is_cancelled() {
        let frames = chance.below(15);
        heard.listen(&user, frames).await;
        cuts.fetch_add(1, Ordering::SeqCst);
    }
    heard
}

/// Twenty rooms with three people in each, two of them ours.
struct Stage {
    synapse: PrivateSynapse,
    home: Home,
    scene: Scene,
    people: Vec<MatrixClient>,
    /// Each conversation and its room.
    rooms: Vec<(String, String)>,
}

impl Stage {
    async fn set(rooms: usize) -> (Self, Program) {
        let synapse = tokio::task::spawn_blocking(|| PrivateSynapse::start(RateLimits::Lifted)).await.unwrap();
        let home = Home::at(synapse.address.clone()).await;
        let scene = Scene::new(&home).await;
        let worker = scene.worker_with(&LISTENING).await;
        let stranger = MatrixClient::register(&home.address, "stranger", "password").await.unwrap();
        let people = vec![home.member(&scene.ada).await, home.member(&scene.grace).await, stranger];
        let mut stage = Self { synapse, home, scene, people, rooms: Vec::new() };
        let mut begun = Vec::new();
        for _ in 0..rooms {
            let conversation = stage.scene.ada.create_conversation(&[stage.scene.grace.user_id]).await;
            let first = id(&stage.scene.ada.post(&conversation, "begun").await.expect(201));
            begun.push((conversation, first));
        }
        for (conversation, first) in begun {
            let room = eventually_within(WITHIN, "the rooms are made", || async {
                let message = stage.scene.ada.get(&format!("/messages/{first}")).await;
                (message["matrix"]["delivery"] == "delivered").then(|| room_of(&message).to_owned())
            })
            .await;
            stage.home.account.invite(&room, stage.people[2].user_id()).await.unwrap();
            for person in &stage.people {
                person.join(&room).await.unwrap();
            }
            stage.rooms.push((conversation, room));
        }
        (stage, worker)
    }

    /// Lets everybody act, each in one room after another.
    fn act(&self, events: usize, seed: usize, acted: &Arc<AtomicUsize>) -> tokio::task::JoinSet<()> {
        let mut acting = tokio::task::JoinSet::new();
        for (n, client) in self.people.iter().enumerate() {
            let mut person = Person {
                client: client.clone(),
                chance: Chance::of((seed * 10 + n) as u64),
                messages: BTreeMap::new(),
                others: BTreeMap::new(),
                calls: 0,
            };
            let rooms: Vec<String> = self.rooms.iter().map(|(_, room)| room.clone()).collect();
            let (acted, share) = (Arc::clone(acted), events / self.people.len());
            acting.spawn(async move {
                for n in 0..share {
                    let room = &rooms[person.chance.below(rooms.len())];
                    person.act(room, n).await;
                    acted.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        acting
    }

    /// Kills the worker, and now and then restarts Synapse, at moments that the work decides.
    async fn disturb(&self, mut worker: Program, events: usize, seed: usize, acted: &AtomicUsize) -> Program {
        let mut chance = Chance::of(seed as u64);
        for n in 1..=KILLS {
            let moment = (events * n / (KILLS + 2) + chance.below(20)).min(events - events % self.people.len());
            eventually_within(WITHIN, "people come that far", || async {
                (acted.load(Ordering::SeqCst) >= moment).then_some(())
            })
            .await;
            worker.kill();
            if n % 3 == 0 {
                let synapse = &self.synapse;
                tokio::task::block_in_place(|| {
                    synapse.stop();
                    synapse.start_again();
                });
            }
            worker = self.scene.worker_with(&LISTENING).await;
        }
        worker
    }

    /// Waits until a conversation says what its room does, and no event is two messages.
    async fn assert_equal(&self, conversation: &str, room: &str) {
        let expected = read_room(&self.home.account.timeline(room).await.unwrap());
        let equal = eventually("a conversation has all of its room", || async {
            let messages = all_messages(&self.scene.ada, conversation).await;
            (read_conversation(&messages) == expected).then_some(messages)
        });
        let Ok(messages) = tokio::time::timeout(Duration::from_secs(50), equal).await else {
            assert_eq!(read_conversation(&all_messages(&self.scene.ada, conversation).await), expected, "in {room}");
            return;
        };
        let mut events: Vec<&str> =
            messages.iter().filter_map(|message| message["matrix"]["event_id"].as_str()).collect();
        let all = events.len();
        events.sort_unstable();
        events.dedup();
        assert_eq!(events.len(), all, "an event is two messages");
    }

    /// What is not shown as a message is there as well, once, and nothing of it went out again.
    async fn assert_nothing_else(&self) {
        let mut calls = 0;
        for (_, room) in &self.rooms {
            let events = self.home.account.timeline(room).await.unwrap();
            calls += events.iter().filter(|event| event.event_type.starts_with("m.call.")).count();
        }
        let database = &self.scene.database;
        assert_eq!(database.count("select count(*) from call_signals").await, i64::try_from(calls).unwrap());
        assert_eq!(database.count("select count(*) from sync_parked where cause = 'poison'").await, 0);
        let begun = i64::try_from(self.rooms.len()).unwrap();
        assert_eq!(database.count("select count(*) from sent_events").await, begun);
    }

    /// A client has heard all that the log has since it began, each once.
    async fn assert_heard_all(&self, user: &NovaUser, mut heard: Heard) {
        let (xid, event_id) = heard.began.split_once('.').unwrap();
        let expected: i64 = sqlx::query_scalar(SHOWN_SINCE)
            .bind(u64::from_str_radix(xid, 16).unwrap().to_string())
            .bind(i64::from_str_radix(event_id, 16).unwrap())
            .fetch_one(&self.scene.database.pool)
            .await
            .unwrap();
        let expected = usize::try_from(expected).unwrap();
        for _ in 0..100 {
            if heard.cursors.len() >= expected {
                break;
            }
            heard.listen(user, expected).await;
        }
        assert_eq!(heard.cursors.len(), expected, "some were not heard");
        let times = heard.cursors.values().chain(heard.rings.values());
        assert!(times.copied().all(|times| times == 1), "some were heard twice");
    }
}

/// `EVENTS=`, `ROOMS=` and `SEED=` make it longer and another.
#[tokio::test(flavor = "multi_thread")]
async fn what_people_do_on_synapse_while_everything_restarts_is_in_the_database_and_told_in_their_order_and_once() {
    let number = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(default)
    };
    let (events, rooms, seed) = (number("EVENTS", 1000), number("ROOMS", 20), number("SEED", 7));
    println!("EVENTS={events} ROOMS={rooms} SEED={seed}");
    let (stage, worker) = Stage::set(rooms).await;
    let scene = &stage.scene;
    scene.drained().await;

    let (stop, cuts) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let listening: Vec<_> = [&scene.ada, &scene.grace]
        .into_iter()
        .enumerate()
        .map(|(n, user)| {
            let chance = Chance::of((seed * 100 + n) as u64);
            (user, tokio::spawn(keep_listening(user.clone(), stop.clone(), chance, Arc::clone(&cuts))))
        })
        .collect();
    let acted = Arc::new(AtomicUsize::new(0));
    let acting = stage.act(events, seed, &acted);
    let _worker = stage.disturb(worker, events, seed, &acted).await;
    acting.join_all().await;
    for (conversation, room) in &stage.rooms {
        stage.assert_equal(conversation, room).await;
    }
    stage.assert_nothing_else().await;
    eventually_within(WITHIN, "a hundred connections are cut", || async {
        (cuts.load(Ordering::SeqCst) >= 100).then_some(())
    })
    .await;
    stop.cancel();
    for (user, heard) in listening {
        stage.assert_heard_all(user, heard.await.unwrap()).await;
    }
}
