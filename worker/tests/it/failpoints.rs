//! A worker dies at each point between a claim and the release of its lane, once; another goes on. In the end the rooms
//! are as the clients were told, and nothing else.

use std::{os::unix::process::ExitStatusExt as _, sync::Arc};

use serde_json::json;
use shared::{
    failpoint::Point,
    testing::{
        eventually,
        homeserver::FakeHomeserver,
        ledger::{Asked, Deletion, Ledger, Senders},
        nova::{NovaUser, Program},
        proxy::PgProxy,
    },
};
use tokio::{sync::Semaphore, task::JoinSet};
use uuid::Uuid;

use crate::scene::{Home, Scene, id, room_of, sends, shape};

/// How many points are tried at once: two cores are busy with these.
const AT_ONCE: usize = 6;

/// Short enough that the successor need not wait long, long enough for a busy machine.
const WORKER: [(&str, &str); 2] = [("OUTBOX_LEASE", "1s"), ("OUTBOX_HTTP_TIMEOUT", "400ms")];

/// What brings a worker to a point.
enum Way {
    /// All that clients do, and requests that fail.
    Life,
    /// The same, with a homeserver that is never trusted to remember.
    Forgetful,
    /// The lane of a worker that died.
    TakeOver,
    /// An answer that comes when the lane is another's.
    TooLate,
    /// A creation that left an alias, and a room that nobody can enter.
    Stillborn,
    /// A room that we left, and are invited to again.
    Left,
    /// A room with a tombstone.
    Replaced,
    /// The same as life, heard from the homeserver.
    Listening,
}

const fn way(point: Point) -> Way {
    match point {
        Point::LookUpBegins | Point::LookUpEnded => Way::Forgetful,
        Point::ClaimMarked => Way::TakeOver,
        Point::EvidenceBegins | Point::EvidenceWritten | Point::EvidenceCommitted => Way::TooLate,
        Point::RoomAbandoned => Way::Stillborn,
        Point::RoomRejoined => Way::Left,
        Point::RoomReplaced => Way::Replaced,
        Point::EventApplies | Point::EventsWritten | Point::EventsCommitted => Way::Listening,
        _ => Way::Life,
    }
}

/// Where it all happens, and the record of it.
struct Trial {
    fake: FakeHomeserver,
    home: Home,
    scene: Scene,
    asked: Asked,
    point: Point,
}

impl Trial {
    async fn at(point: Point) -> Self {
        let fake = FakeHomeserver::start().await;
        let home = Home::of(&fake).await;
        let scene = Scene::new(&home).await;
        Self { fake, home, scene, asked: Asked::new(), point }
    }

    /// The worker that will die.
    async fn victim(&self, options: &[(&str, &str)]) -> Program {
        let dies = format!("{}=1*return", self.point.as_str());
        let mut all = vec![("FAILPOINTS", dies.as_str())];
        all.extend(options);
        self.scene.worker_with(&[&WORKER[..], &all].concat()).await
    }

    async fn worker(&self) -> Program {
        self.scene.worker_with(&WORKER).await
    }

    /// Waits until it has died where it was to die, and nowhere else.
    async fn died(&self, victim: &mut Program) {
        let ended = victim.ended().await;
        assert_eq!(ended.signal(), Some(9), "{ended}");
        let words = format!("dies at {}", self.point.as_str());
        eventually("its last words are read", || async { victim.log().contains(&words).then_some(()) }).await;
    }

    async fn conversation(&self) -> String {
        let conversation = self.scene.ada.create_conversation(&[self.scene.grace.user_id]).await;
        let members = [self.scene.ada.user_id.as_uuid(), self.scene.grace.user_id.as_uuid()];
        self.asked.conversation(uuid(&conversation), &members);
        conversation
    }

    async fn post(&self, conversation: &str, text: &str) -> String {
        let entry = self.asked.post(uuid(conversation), self.scene.ada.user_id.as_uuid(), text);
        let posted = self.scene.ada.post(conversation, text).await.expect(201);
        entry.answered(uuid(&id(&posted)), posted["seq"].as_i64().unwrap());
        id(&posted)
    }

    async fn edit(&self, message: &str, text: &str) {
        let entry = self.asked.edit(uuid(message), text);
        let edited = self.scene.ada.edit(message, text).await.expect(200);
        entry.answered(edited["revision"].as_i64().unwrap());
    }

    async fn delete(&self, message: &str) {
        let entry = self.asked.delete(uuid(message));
        let deleted = self.scene.ada.delete(message).await.expect(200);
        entry.answered(match deleted["deletion"].as_str() {
            Some("cancelled") => Deletion::Cancelled,
            _ => Deletion::Redacting,
        });
    }

    async fn member(&self, method: &str, conversation: &str, user: &NovaUser) {
        let (conversation_id, user_id) = (uuid(conversation), user.user_id.as_uuid());
        let (change, status) = if method == "PUT" {
            (self.asked.add_member(conversation_id, user_id), 200)
        } else {
            (self.asked.remove_member(conversation_id, user_id), 204)
        };
        let path = format!("/conversations/{conversation}/members/{}", user.user_id);
        self.scene.ada.call(method, &path, None).await.expect(status);
        change.answered();
    }

    async fn react(&self, method: &str, message: &str) {
        let (message_id, user_id) = (uuid(message), self.scene.grace.user_id.as_uuid());
        let (change, status) = if method == "PUT" {
            (self.asked.react(message_id, user_id, "+1"), 201)
        } else {
            (self.asked.unreact(message_id, user_id, "+1"), 204)
        };
        let path = format!("/messages/{message}/reactions/+1");
        self.scene.grace.call(method, &path, None).await.expect(status);
        change.answered();
    }

    /// All that clients do, in two conversations, while requests fail in the ways that matter.
    async fn life(&self) {
        // The second room is left half-made.
        self.fake.on_create_room().nth(2).stop_after(3).fail(500).always();
        self.fake.on_send().body_contains("never answered").drop_after_accept().once();
        self.fake.on_redact().drop_after_accept().once();
        let caught = self.fake.on_send().body_contains("caught on its way").hold().once();

        let first = self.conversation().await;
        let begun = self.post(&first, "the first of all").await;
        self.scene.ada.delivered(&begun).await;
        let unanswered = self.post(&first, "what is never answered").await;
        self.edit(&begun, "the first of all, edited").await;
        self.react("PUT", &begun).await;
        self.react("PUT", &unanswered).await;
        self.scene.ada.delivered(&unanswered).await;

        // Deleted while its request travels, which arrives after the worker gave it up.
        let deleted = self.post(&first, "caught on its way").await;
        caught.arrived().await;
        self.delete(&deleted).await;
        let alan = NovaUser::new(&self.scene.api);
        self.member("PUT", &first, &alan).await;
        let heard = self.post(&first, "what a guest reads").await;
        self.scene.ada.delivered(&heard).await;
        self.member("DELETE", &first, &alan).await;
        self.react("DELETE", &begun).await;
        self.delete(&unanswered).await;

        let second = self.conversation().await;
        let last = self.post(&second, "the first of the other room").await;
        self.edit(&last, "edited before it left, or after").await;
        self.scene.ada.delivered(&last).await;
        self.scene.drained().await;
        caught.release();
        eventually("what travelled arrives", || async {
            let sends = sends(&self.fake);
            let void = sends.iter().find(|send| send.event_type.as_deref() == Some("com.nova.outbox.void"))?;
            sends.iter().find(|send| send.txn == void.txn && send.event_type != void.event_type)?.status
        })
        .await;
    }

    async fn assert_exact(&self) {
        self.scene.drained().await;
        let senders = Senders::ServiceAccount(self.home.account.user_id().to_owned());
        Ledger::new(&self.asked, &self.home.account, senders).exclusive().assert_settled().await;
        let database = &self.scene.database;
        assert_eq!(database.count("select count(*) from dead_letters").await, 0);
        assert_eq!(database.count("select count(*) from lanes where open <> 0 or hold is not null").await, 0);
    }
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

/// It dies in the middle of it all; another goes on.
async fn dies_in_life(point: Point, options: &[(&str, &str)]) {
    let trial = Trial::at(point).await;
    let mut victim = trial.victim(options).await;
    let succession = async {
        trial.died(&mut victim).await;
        trial.worker().await
    };
    let ((), _successor) = tokio::join!(trial.life(), succession);
    trial.assert_exact().await;
}

/// It dies while it takes over from one that died before it.
async fn dies_taking_over(point: Point) {
    let trial = Trial::at(point).await;
    let caught = trial.fake.on_send().hold_answer().once();
    let mut first = trial.worker().await;
    let conversation = trial.conversation().await;
    let message = trial.post(&conversation, "in flight").await;
    caught.arrived().await;
    let mut victim = trial.victim(&[]).await;
    first.kill();
    trial.died(&mut victim).await;
    // Nothing of the take-over is committed, so the next one has to know as well that it may have been sent.
    trial.delete(&message).await;
    let _successor = trial.worker().await;
    let last = trial.post(&conversation, "behind it").await;
    trial.scene.ada.delivered(&last).await;
    trial.assert_exact().await;
}

/// It dies with an answer that it could not write down in time.
async fn dies_too_late(point: Point) {
    let trial = Trial::at(point).await;
    let link = PgProxy::start(&trial.scene.database.url).await;
    let answered = trial.fake.on_send().hold_answer().once();
    let mut victim = trial.victim(&[("DATABASE_URL", link.url())]).await;
    let conversation = trial.conversation().await;
    let message = trial.post(&conversation, "answered too late").await;
    answered.arrived().await;
    link.cut();
    answered.release();
    let repeated = trial.fake.on_send().hold().once();
    let other = trial.scene.patient_worker().await;
    repeated.arrived().await;
    link.restore();
    trial.died(&mut victim).await;
    repeated.release();
    trial.edit(&message, "and edited").await;
    trial.scene.ada.delivered(&message).await;
    trial.assert_exact().await;
    drop(other);
}

/// It dies when it has taken the alias from a room that nobody is in.
async fn dies_at_a_stillborn_room(point: Point) {
    let trial = Trial::at(point).await;
    trial.fake.on_create_room().stop_after(1).fail(500).once();
    let mut victim = trial.victim(&[("OUTBOX_BACKOFF", "1ms")]).await;
    let conversation = trial.conversation().await;
    let message = trial.post(&conversation, "the first of all").await;
    trial.died(&mut victim).await;
    let _successor = trial.worker().await;
    trial.scene.ada.delivered(&message).await;
    trial.assert_exact().await;
}

/// It dies when it has mended a room that did not take its events, before it sends what it could not.
async fn dies_mending_a_room(point: Point) {
    let trial = Trial::at(point).await;
    let mut first = trial.worker().await;
    let conversation = trial.conversation().await;
    let begun = trial.post(&conversation, "the first of all").await;
    let old = room_of(&trial.scene.ada.delivered(&begun).await).to_owned();
    trial.scene.drained().await;
    first.kill();
    let (account, grace) = (&trial.home.account, trial.home.member(&trial.scene.grace).await);
    let is_replaced = point == Point::RoomReplaced;
    let room = if is_replaced {
        let creation = json!({"creation_content": {"predecessor": {"room_id": old}}, "preset": "private_chat"});
        let new = account.create_room(&creation).await.unwrap();
        account.put_state(&old, "m.room.tombstone", "", &json!({"replacement_room": new})).await.unwrap();
        account.leave(&old).await.unwrap();
        new
    } else {
        grace.join(&old).await.unwrap();
        let power = json!({"users": {grace.user_id(): 100}});
        account.put_state(&old, "m.room.power_levels", "", &power).await.unwrap();
        account.leave(&old).await.unwrap();
        grace.invite(&old, account.user_id()).await.unwrap();
        old
    };
    let mut victim = trial.victim(&[]).await;
    let message = trial.post(&conversation, "the second").await;
    trial.died(&mut victim).await;
    let _successor = trial.worker().await;
    trial.scene.ada.delivered(&message).await;
    if is_replaced {
        // The ledger knows one room of a conversation.
        assert_eq!(shape(&trial.fake.timeline(&room)), ["the second"]);
    } else {
        trial.assert_exact().await;
    }
}

async fn dies_at(point: Point) {
    match way(point) {
        Way::Life => dies_in_life(point, &[]).await,
        Way::Forgetful => dies_in_life(point, &[("OUTBOX_DEDUPE_WINDOW", "0s")]).await,
        Way::Listening => dies_in_life(point, &[("MATRIX_SYNC_ENABLED", "true")]).await,
        Way::TakeOver => dies_taking_over(point).await,
        Way::TooLate => dies_too_late(point).await,
        Way::Stillborn => dies_at_a_stillborn_room(point).await,
        Way::Left | Way::Replaced => dies_mending_a_room(point).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_worker_dies_another_goes_on_and_nothing_is_lost_doubled_reordered_or_leaked() {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut trials = JoinSet::new();
    let only = std::env::var("FAILPOINT").ok();
    for &point in Point::ALL.iter().filter(|point| only.as_deref().is_none_or(|only| only == point.as_str())) {
        let turns = Arc::clone(&turns);
        trials.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            // In a task of its own, so that one failure does not hide the others.
            (point, tokio::spawn(dies_at(point)).await.is_ok())
        });
    }
    let mut failed: Vec<&str> =
        trials.join_all().await.into_iter().filter(|(_, well)| !well).map(|(point, _)| point.as_str()).collect();
    failed.sort_unstable();
    assert!(failed.is_empty(), "a worker that died there was not replaced, or did not die: {failed:?}");
}

#[test]
fn every_point_has_a_name_of_its_own() {
    let mut names: Vec<&str> = Point::ALL.iter().map(|point| point.as_str()).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}
