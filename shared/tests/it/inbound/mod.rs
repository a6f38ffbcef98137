//! What comes from Matrix, applied to a real database: whatever the order, the end is the same, and nothing counts twice.

use shared::{
    calls::{self, CallSignal, SignalKind},
    chat::{self, Content, MessageKind, NewMessage},
    ids::{ConversationId, EventId, LaneId, MatrixUserId, MessageId, OutboxId, RoomId, UserId},
    inbound::{self, Applied, Inbox, Incoming, What},
    outbox::{self, Evidence, Kind, Operation},
    seal::KeyRing,
    testing::{database::TestDatabase, nova::CONTENT_KEYS},
};
use sqlx::Row as _;

mod leader;
mod people;
mod threads;

const SERVER: &str = "nova.test";

/// A conversation of Ada and Grace with a room.
struct Scene {
    database: TestDatabase,
    keys: KeyRing,
    service: MatrixUserId,
    conversation_id: ConversationId,
    ada: UserId,
    grace: UserId,
}

/// What a conversation's first message looks like to its members, and what is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    /// What it says; none once it is deleted.
    text: Option<String>,
    deleted: bool,
    reactions: Vec<String>,
    /// Texts that are kept of it.
    revisions: i64,
    parked: i64,
}

impl Scene {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        let (ada, grace) = (UserId::generate(), UserId::generate());
        let conversation_id = Self::conversation(&database, ada, grace).await;
        let keys = KeyRing::parse(CONTENT_KEYS).unwrap();
        let service = format!("@service:{SERVER}").parse().unwrap();
        Self { database, keys, service, conversation_id, ada, grace }
    }

    async fn conversation(database: &TestDatabase, ada: UserId, grace: UserId) -> ConversationId {
        let conversation_id = ConversationId::generate();
        let mut tx = database.pool.begin().await.unwrap();
        chat::create_conversation(&mut tx, conversation_id, None, ada, &[grace]).await.unwrap();
        chat::save_room_mapping(&mut tx, conversation_id, &room(conversation_id), true).await.unwrap();
        tx.commit().await.unwrap();
        conversation_id
    }

    /// The same people in another conversation.
    async fn another(&mut self) {
        self.conversation_id = Self::conversation(&self.database, self.ada, self.grace).await;
    }

    fn event(&self, id: &str, sent_at_ms: i64, what: What) -> Incoming {
        Incoming {
            event_id: EventId::from(format!("${id}-{}", self.conversation_id)),
            room_id: room(self.conversation_id),
            sender: MatrixUserId::of(self.grace, SERVER),
            sent_at_ms,
            marker: None,
            transaction_id: None,
            what,
        }
    }

    fn said(&self, id: &str, text: &str) -> Incoming {
        let what = What::Message {
            kind: MessageKind::Text,
            content: Content::plain(text),
            reply_to: None,
            thread_of: None,
            mentioned: Vec::new(),
        };
        self.event(id, 1000, what)
    }

    fn edited(&self, id: &str, sent_at_ms: i64, of: &Incoming, text: &str) -> Incoming {
        let what = What::Edit { target: of.event_id.clone(), content: Content::plain(text), mentioned: Vec::new() };
        self.event(id, sent_at_ms, what)
    }

    fn redacted(&self, id: &str, of: &Incoming) -> Incoming {
        self.event(id, 5000, What::Redaction { target: of.event_id.clone() })
    }

    fn reacted(&self, id: &str, to: &Incoming, key: &str) -> Incoming {
        self.event(id, 3000, What::Reaction { target: to.event_id.clone(), key: key.to_owned() })
    }

    async fn apply(&self, event: &Incoming) -> Applied {
        let mut tx = self.database.pool.begin().await.unwrap();
        let mut turn = chat::lock_conversation(&mut tx, self.conversation_id).await.unwrap().unwrap();
        let inbox = Inbox { keys: &self.keys, service_user: &self.service, calls: true };
        let applied = inbound::apply(&mut tx, &mut turn, inbox, event).await.unwrap();
        tx.commit().await.unwrap();
        applied
    }

    async fn messages(&self) -> Vec<chat::Message> {
        let mut conn = self.database.pool.acquire().await.unwrap();
        let page = chat::PageRequest { before: None, limit: 100 };
        let mut found = chat::messages(&mut conn, &self.keys, self.conversation_id, self.ada, page).await.unwrap();
        found.reverse();
        found
    }

    async fn count(&self, from: &str) -> i64 {
        let sql = format!("select count(*) from {from} where conversation_id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(self.conversation_id.as_uuid())
            .fetch_one(&self.database.pool)
            .await
            .unwrap()
            .get(0)
    }

    async fn state(&self) -> Option<State> {
        let messages = self.messages().await;
        assert!(messages.len() <= 1, "{messages:?}");
        let message = messages.into_iter().next()?;
        Some(State {
            text: message.content.map(|content| content.text),
            deleted: message.deleted_at.is_some(),
            reactions: message.reactions.into_iter().map(|tally| tally.key).collect(),
            revisions: self.count("message_revisions").await,
            parked: self.count("sync_parked").await,
        })
    }

    /// Ada posts, and a worker delivers it. Returns the message and the operation's event.
    async fn delivered(&self, text: &str) -> (MessageId, OutboxId, EventId) {
        let (message_id, outbox_id) = self.posted(text).await;
        let event_id = EventId::from(format!("${outbox_id}"));
        self.arrived(Kind::Message, message_id, 1, outbox_id, &event_id).await;
        (message_id, outbox_id, event_id)
    }

    async fn posted(&self, text: &str) -> (MessageId, OutboxId) {
        let (message_id, outbox_id) = (MessageId::generate(), OutboxId::generate());
        let mut tx = self.database.pool.begin().await.unwrap();
        let turn = chat::take_turn(&mut tx, self.conversation_id, self.ada).await.unwrap();
        let content = Content::plain(text);
        let message = NewMessage {
            message_id,
            author_id: self.ada,
            kind: MessageKind::Text,
            content: &content,
            reply_to: None,
            thread_of: None,
            send_outbox_id: Some(outbox_id),
        };
        chat::insert_message(&mut tx, &turn, &self.keys, &message).await.unwrap();
        let operation = Operation {
            outbox_id,
            lane_id: LaneId::from(self.conversation_id),
            kind: Kind::Message,
            subject_id: message_id.as_uuid(),
            revision: Some(1),
            target_outbox_id: None,
            not_before: None,
            expires_at: None,
        };
        outbox::enqueue(&mut tx, &turn, &operation).await.unwrap();
        tx.commit().await.unwrap();
        (message_id, outbox_id)
    }

    async fn arrived(&self, kind: Kind, subject: MessageId, revision: i32, outbox_id: OutboxId, event_id: &EventId) {
        let evidence = Evidence {
            outbox_id,
            kind,
            subject_id: subject.as_uuid(),
            revision: Some(revision),
            target_outbox_id: None,
            event_id: event_id.clone(),
            room_id: room(self.conversation_id),
            sender: self.service.as_str().to_owned(),
        };
        let mut tx = self.database.pool.begin().await.unwrap();
        let lane_id = LaneId::from(self.conversation_id);
        assert!(outbox::late_evidence(&mut tx, self.conversation_id, lane_id, &evidence).await.unwrap());
        tx.commit().await.unwrap();
    }

    /// What waits in the lane: kind and target.
    async fn waiting(&self) -> Vec<(String, Option<uuid::Uuid>)> {
        sqlx::query_as("select kind, target_outbox_id from outbox where conversation_id = $1 order by seq")
            .bind(self.conversation_id.as_uuid())
            .fetch_all(&self.database.pool)
            .await
            .unwrap()
    }

    fn echo(&self, id: &EventId, marker: Option<OutboxId>, transaction_id: Option<OutboxId>) -> Incoming {
        Incoming {
            event_id: id.clone(),
            sender: self.service.clone(),
            marker,
            transaction_id: transaction_id.map(|id| id.to_string()),
            ..self.said("echo", "echoed")
        }
    }
}

fn room(conversation_id: ConversationId) -> RoomId {
    RoomId::from(format!("!{conversation_id}"))
}

/// Every order of so many things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    let Some(rest) = n.checked_sub(1) else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for order in orders(rest) {
        for place in 0..=rest {
            let mut order = order.clone();
            order.insert(place, rest);
            all.push(order);
        }
    }
    all
}

/// Applies the events in every order, each in a conversation of its own and once more at the end.
async fn in_every_order(events: impl Fn(&Scene) -> Vec<Incoming>, expected: &State) {
    let mut scene = Scene::new().await;
    for order in orders(events(&scene).len()) {
        let all = events(&scene);
        for &n in &order {
            scene.apply(&all[n]).await;
        }
        assert_eq!(scene.state().await.as_ref(), Some(expected), "in the order {order:?}");
        let told = scene.count("events").await;
        for &n in &order {
            assert_eq!(scene.apply(&all[n]).await, Applied::Duplicate, "{n} in the order {order:?}");
        }
        assert_eq!(scene.state().await.as_ref(), Some(expected), "after a repetition, in the order {order:?}");
        assert_eq!(scene.count("events").await, told, "a repetition was told again");
        assert_eq!(scene.waiting().await, [], "what came in goes out");
        scene.another().await;
    }
}

fn says(text: &str, revisions: i64) -> State {
    State { text: Some(text.to_owned()), deleted: false, reactions: Vec::new(), revisions, parked: 0 }
}

fn gone() -> State {
    State { text: None, deleted: true, reactions: Vec::new(), revisions: 0, parked: 0 }
}

#[tokio::test]
async fn a_message_two_edits_and_its_redaction_end_the_same_in_every_order() {
    let events = |scene: &Scene| {
        let message = scene.said("message", "first");
        let edits = [scene.edited("a", 2000, &message, "second"), scene.edited("b", 3000, &message, "third")];
        let redaction = scene.redacted("redaction", &message);
        let [one, two] = edits;
        vec![message, one, two, redaction]
    };
    in_every_order(events, &gone()).await;
}

#[tokio::test]
async fn the_newest_edit_counts_whichever_comes_last_and_a_redacted_one_does_not() {
    let events = |scene: &Scene| {
        let message = scene.said("message", "first");
        // Of the same time: the greater id counts.
        let (a, b) = (scene.edited("a", 2000, &message, "second"), scene.edited("b", 2000, &message, "third"));
        let newest = scene.edited("c", 9000, &message, "never mind");
        let redaction = scene.redacted("redaction", &newest);
        vec![message, a, b, newest, redaction]
    };
    in_every_order(events, &says("third", 3)).await;
}

#[tokio::test]
async fn edits_that_are_redacted_do_not_count_when_a_newer_one_is_redacted_too() {
    let events = |scene: &Scene| {
        let message = scene.said("message", "first");
        let (older, newer) = (scene.edited("a", 2000, &message, "second"), scene.edited("b", 9000, &message, "third"));
        let redactions = [scene.redacted("redaction of a", &older), scene.redacted("redaction of b", &newer)];
        let [one, two] = redactions;
        vec![message, older, newer, one, two]
    };
    in_every_order(events, &says("first", 1)).await;
}

#[tokio::test]
async fn an_edit_from_another_room_than_its_messages_changes_nothing_in_either_order() {
    let events = |scene: &Scene| {
        let message = scene.said("message", "first");
        let elsewhere = RoomId::from(format!("!before-{}", scene.conversation_id));
        let edit = Incoming { room_id: elsewhere, ..scene.edited("edit", 2000, &message, "second") };
        vec![message, edit]
    };
    in_every_order(events, &says("first", 1)).await;
}

#[tokio::test]
async fn what_waits_and_cannot_be_opened_keeps_nothing_from_being_applied() {
    let mut scene = Scene::new().await;
    let message = scene.said("message", "first");
    scene.apply(&scene.edited("a", 2000, &message, "second")).await;
    scene.keys = KeyRing::parse("other:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=").unwrap();
    assert_eq!(scene.apply(&message).await, Applied::Changed);
    assert_eq!(scene.state().await, Some(State { parked: 1, ..says("first", 1) }));
}

#[tokio::test]
async fn a_reaction_that_is_taken_back_is_gone_in_every_order() {
    let events = |scene: &Scene| {
        let message = scene.said("message", "first");
        let (kept, taken) = (scene.reacted("kept", &message, "👍"), scene.reacted("taken", &message, "👎"));
        let redaction = scene.redacted("redaction", &taken);
        vec![message, kept, taken, redaction]
    };
    let expected = State { reactions: vec!["👍".to_owned()], ..says("first", 1) };
    in_every_order(events, &expected).await;
}

#[tokio::test]
async fn what_edits_an_edit_or_is_by_another_sender_or_relates_to_nonsense_is_refused() {
    let scene = Scene::new().await;
    let message = scene.said("message", "first");
    let edit = scene.edited("edit", 2000, &message, "second");
    scene.apply(&message).await;
    scene.apply(&edit).await;
    let of_edit = scene.edited("of edit", 3000, &edit, "third");
    assert_eq!(scene.apply(&of_edit).await, Applied::Refused("edit_of_no_message"));
    let by_other =
        Incoming { sender: MatrixUserId::of(scene.ada, SERVER), ..scene.edited("other", 3000, &message, "hers") };
    assert_eq!(scene.apply(&by_other).await, Applied::Refused("edit_by_another"));
    // What was refused is nobody's target either.
    assert_eq!(
        scene.apply(&scene.edited("of refused", 4000, &of_edit, "x")).await,
        Applied::Refused("edit_of_no_message")
    );
    assert_eq!(
        scene.apply(&scene.reacted("to refused", &of_edit, "x")).await,
        Applied::Refused("reaction_to_no_message")
    );
    let odd = Incoming { sender: "@nova-nobody:nova.test".parse().unwrap(), ..scene.said("odd", "who") };
    assert_eq!(scene.apply(&odd).await, Applied::Refused("user_format"));
    assert_eq!(scene.state().await, Some(says("second", 2)));
}

#[tokio::test]
async fn an_echo_settles_by_its_marker_or_by_its_transaction_id_and_only_once() {
    let scene = Scene::new().await;
    for by_marker in [true, false] {
        let (message_id, outbox_id) = scene.posted("words").await;
        let event_id = EventId::from(format!("${outbox_id}"));
        let (marker, transaction) = if by_marker { (Some(outbox_id), None) } else { (None, Some(outbox_id)) };
        let echo = scene.echo(&event_id, marker, transaction);
        assert_eq!(scene.apply(&echo).await, Applied::Echo(true));
        assert_eq!(scene.apply(&echo).await, Applied::Echo(false));
        assert_eq!(scene.waiting().await, []);
        let message = scene.messages().await.into_iter().find(|message| message.message_id == message_id).unwrap();
        assert_eq!(message.event_id, Some(event_id));
    }
    assert_eq!(scene.messages().await.len(), 2);
    let open: i32 = sqlx::query_scalar("select open from lanes").fetch_one(&scene.database.pool).await.unwrap();
    assert_eq!(open, 0);
}

#[tokio::test]
async fn an_echo_without_its_content_is_known_by_its_event() {
    let scene = Scene::new().await;
    let (_, _, event_id) = scene.delivered("words").await;
    // Somebody has redacted it, and we ask with another device than the one that sent it.
    assert_eq!(scene.apply(&scene.echo(&event_id, None, None)).await, Applied::Echo(false));
}

#[tokio::test]
async fn what_our_account_sent_for_no_operation_is_never_stored_and_a_marker_of_somebody_else_means_nothing() {
    let scene = Scene::new().await;
    let (_, outbox_id) = scene.posted("words").await;
    let unknown = scene.echo(&EventId::from("$other".to_owned()), Some(OutboxId::generate()), None);
    assert_eq!(scene.apply(&unknown).await, Applied::Unmatched);
    assert_eq!(scene.apply(&scene.echo(&EventId::from("$bare".to_owned()), None, None)).await, Applied::Unmatched);
    let forged = Incoming { marker: Some(outbox_id), ..scene.said("forged", "forged") };
    assert_eq!(scene.apply(&forged).await, Applied::Changed);
    assert_eq!(scene.messages().await.len(), 2, "the one that waits, and the forged one");
    assert_eq!(scene.waiting().await.len(), 1);
}

#[tokio::test]
async fn what_a_rooms_ruler_redacts_of_ours_is_deleted_and_only_its_edits_are_redacted_by_us() {
    let scene = Scene::new().await;
    let (message_id, send, event_id) = scene.delivered("words").await;
    let edit_event = EventId::from("$edit".to_owned());
    let edit = {
        let mut tx = scene.database.pool.begin().await.unwrap();
        let turn = chat::take_turn(&mut tx, scene.conversation_id, scene.ada).await.unwrap();
        let better = Content::plain("better");
        chat::edit_message(&mut tx, &turn, &scene.keys, message_id, scene.ada, &better, None).await.unwrap();
        let edit: uuid::Uuid = sqlx::query_scalar("select outbox_id from outbox").fetch_one(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        OutboxId::from(edit)
    };
    scene.arrived(Kind::Edit, message_id, 2, edit, &edit_event).await;
    let redaction = scene.event("redaction", 5000, What::Redaction { target: event_id });
    assert_eq!(scene.apply(&redaction).await, Applied::Changed);
    let message = scene.messages().await.remove(0);
    assert!(message.deleted_at.is_some() && message.content.is_none());
    assert_eq!(scene.waiting().await, [("redact".to_owned(), Some(edit.as_uuid()))]);
    assert_ne!(send, edit);
    assert_eq!(scene.apply(&redaction).await, Applied::Duplicate);
}

#[tokio::test]
async fn a_calls_signals_are_kept_in_order_and_nobody_rings_for_one_that_is_over() {
    let scene = Scene::new().await;
    let now_ms: i64 = sqlx::query_scalar("select (extract(epoch from outbox_now()) * 1000)::bigint")
        .fetch_one(&scene.database.pool)
        .await
        .unwrap();
    let signal = |id: &str, call_id: &str, kind: SignalKind, at: i64| {
        let content = serde_json::json!({"call_id": call_id, "version": "1"}).to_string();
        let call = CallSignal { kind, call_id: call_id.into(), party_id: None, lifetime_ms: Some(60_000), content };
        scene.event(id, at, What::Call(call))
    };
    let scene = &scene;
    let is_over = |event: Incoming| async move {
        let id: uuid::Uuid = sqlx::query_scalar("select signal_id from call_signals where matrix_event_id = $1")
            .bind(event.event_id.as_str().to_owned())
            .fetch_one(&scene.database.pool)
            .await
            .unwrap();
        let mut conn = scene.database.pool.acquire().await.unwrap();
        calls::signal(&mut conn, &scene.keys, scene.conversation_id, id.into()).await.unwrap().unwrap().is_over
    };
    let old = signal("old", "c0", SignalKind::Invite, now_ms - 61_000);
    scene.apply(&old).await;
    assert!(is_over(old).await, "its time was over when it came");
    let invite = signal("invite", "c1", SignalKind::Invite, now_ms);
    scene.apply(&invite).await;
    assert!(!is_over(invite.clone()).await);
    scene.apply(&signal("hangup", "c1", SignalKind::Hangup, now_ms)).await;
    assert!(is_over(invite).await);
    let kinds: Vec<String> =
        sqlx::query_scalar("select kind from call_signals order by seq").fetch_all(&scene.database.pool).await.unwrap();
    assert_eq!(kinds, ["invite", "invite", "hangup"]);
}

#[tokio::test]
async fn what_is_known_need_not_be_applied_again_unless_something_waits_for_it() {
    let scene = Scene::new().await;
    let (_, _, sent) = scene.delivered("ours").await;
    let (said, unknown) = (scene.said("said", "theirs"), scene.said("unknown", "not here yet"));
    scene.apply(&said).await;
    let known = || async {
        let mut conn = scene.database.pool.acquire().await.unwrap();
        let events = [sent.clone(), said.event_id.clone(), unknown.event_id.clone()];
        let known = inbound::known_events(&mut conn, scene.conversation_id, &events).await.unwrap();
        events.into_iter().filter(|event_id| known.contains(event_id)).collect::<Vec<_>>()
    };
    assert_eq!(known().await, [sent.clone(), said.event_id.clone()]);
    // As if it had come before the event that it is about was known.
    sqlx::query(
        "insert into sync_parked select $1, '$w', gen_random_uuid(), 'awaits_target', $2, '', null, '!r', 0, now()",
    )
    .bind(scene.conversation_id.as_uuid())
    .bind(sent.as_str())
    .execute(&scene.database.pool)
    .await
    .unwrap();
    assert_eq!(known().await, std::slice::from_ref(&said.event_id));
}
