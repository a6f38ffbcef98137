//! A database with conversations in it, and short words for what users, workers and operators do to them.
use std::{str::FromStr as _, sync::Arc, time::Duration};

use shared::{
    chat::{self, ChatError, Content, Edited, MessageKind, NewMessage, Turn},
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId, WorkerId},
    outbox::{
        self, Attempt, Blame, ClaimRequest, Claimed, ClaimedOperation, Deletion, Evidence, Kind, LaneClaim, LaneClass,
        Operation, OperationResult, Outcome, Requeued, Settled, Settlement,
    },
    seal::KeyRing,
    testing::{database::TestDatabase, eventually, nova::CONTENT_KEYS},
};
use sqlx::{
    PgConnection, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// How long a lease lasts in these tests.
pub(super) const LEASE: Duration = Duration::from_mins(1);

/// How long the homeserver's memory is trusted.
pub(super) const DEDUPE_WINDOW: Duration = Duration::from_hours(20);

/// A database with its clock, and an author.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) db: Arc<TestDatabase>,
    pub(super) pool: PgPool,
    pub(super) keys: KeyRing,
    pub(super) author: UserId,
}

/// A conversation and its chat lane.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub(super) world: World,
    pub(super) id: ConversationId,
}

/// A message that was posted, and the operation that sends it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Posted {
    pub(super) message_id: MessageId,
    pub(super) outbox_id: OutboxId,
    pub(super) seq: i64,
}

/// Who claims.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) device: &'static str,
}

/// How an attempt ended, for any operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Delivered,
    Done,
    Refused,
    RefusedFor(Duration),
    Ambiguous,
    Suspect,
    RoomFault,
    OwnFault,
    ParentDead,
    NotThere,
}

pub(super) const SENDER: &str = "@service:nova.test";

impl Worker {
    pub(super) fn new() -> Self {
        Self::with_device("DEVICE")
    }

    pub(super) fn with_device(device: &'static str) -> Self {
        Self { id: WorkerId::generate(), device }
    }

    pub(super) fn request(&self, lanes: u16, operations: u16) -> ClaimRequest {
        ClaimRequest {
            worker_id: self.id,
            sender: SENDER.to_owned(),
            device: self.device.to_owned(),
            class: LaneClass::Chat,
            lanes,
            operations,
            lease: LEASE,
            dedupe_window: DEDUPE_WINDOW,
            bookmark: None,
        }
    }
}

pub(super) fn room() -> RoomId {
    RoomId::from("!room".to_owned())
}

/// The event that an operation becomes.
pub(super) fn event_of(outbox_id: OutboxId) -> EventId {
    EventId::from(format!("${outbox_id}"))
}

impl End {
    pub(super) fn of(self, operation: &ClaimedOperation) -> Outcome {
        match self {
            Self::Delivered => Outcome::Delivered { event_id: event_of(operation.outbox_id), room_id: room() },
            Self::Done => Outcome::Done,
            Self::Refused => Outcome::Refused { retry_in: Duration::ZERO, blame: Blame::Passing },
            Self::RefusedFor(retry_in) => Outcome::Refused { retry_in, blame: Blame::Passing },
            Self::Ambiguous => Outcome::Ambiguous { retry_in: Duration::ZERO, blame: Blame::Passing },
            Self::Suspect => Outcome::Refused { retry_in: Duration::ZERO, blame: Blame::Suspect },
            Self::RoomFault => Outcome::RoomFault { reason: "forbidden".to_owned() },
            Self::OwnFault => Outcome::OwnFault { hint: "too large" },
            Self::ParentDead => Outcome::ParentDead,
            Self::NotThere => Outcome::NotThere,
        }
    }
}

/// What a sender reports of one operation.
pub(super) fn result(operation: &ClaimedOperation, end: End) -> OperationResult {
    OperationResult {
        operation: operation.clone(),
        outcome: end.of(operation),
        attempt: Some(Attempt::default()),
        found: Vec::new(),
        anew: false,
    }
}

/// That an operation of a message arrived, as an echo tells it.
pub(super) fn echo(kind: Kind, subject: MessageId, revision: i32, outbox_id: OutboxId) -> Evidence {
    Evidence {
        outbox_id,
        kind,
        subject_id: subject.as_uuid(),
        revision: Some(revision),
        target_outbox_id: None,
        event_id: event_of(outbox_id),
        room_id: room(),
        sender: SENDER.to_owned(),
    }
}

impl World {
    pub(super) async fn new() -> Self {
        let db = TestDatabase::create().await;
        let options = PgConnectOptions::from_str(&db.url).unwrap();
        let pool = PgPoolOptions::new().max_connections(10).test_before_acquire(false).connect_lazy_with(options);
        let keys = KeyRing::parse(CONTENT_KEYS).unwrap();
        Self { db: Arc::new(db), pool, keys, author: UserId::generate() }
    }

    /// A world with one conversation.
    pub(super) async fn with_lane() -> Lane {
        Self::new().await.lane().await
    }

    /// One more conversation.
    pub(super) async fn lane(&self) -> Lane {
        let id = ConversationId::generate();
        let mut tx = self.begin().await;
        chat::create_conversation(&mut tx, id, None, self.author, &[]).await.unwrap();
        tx.commit().await.unwrap();
        Lane { world: self.clone(), id }
    }

    pub(super) async fn begin(&self) -> Transaction<'static, Postgres> {
        self.pool.begin().await.unwrap()
    }

    /// Moves the clock on.
    pub(super) async fn advance(&self, by: Duration) {
        self.db.advance(by).await;
    }

    /// Lets every lease lapse.
    pub(super) async fn lapse(&self) {
        self.advance(LEASE + Duration::from_secs(1)).await;
    }

    pub(super) async fn claim_lanes(&self, worker: &Worker, lanes: u16, operations: u16) -> Vec<Claimed> {
        let mut tx = self.begin().await;
        let claim = outbox::claim(&mut tx, &worker.request(lanes, operations)).await.unwrap();
        tx.commit().await.unwrap();
        claim.batches
    }

    pub(super) async fn settle_all(&self, worker: &Worker, settlements: &[Settlement]) -> Settled {
        let mut tx = self.begin().await;
        let settled = outbox::settle(&mut tx, worker.id, settlements).await.unwrap();
        tx.commit().await.unwrap();
        settled
    }

    /// Waits until a backend waits for a lock.
    pub(super) async fn until_blocked(&self, pid: i32) {
        eventually("a backend waits for a lock", async || {
            let blocked: bool = sqlx::query_scalar(
                "select exists (select 1 from pg_stat_activity where pid = $1 and wait_event_type = 'Lock')",
            )
            .bind(pid)
            .fetch_one(&self.db.pool)
            .await
            .unwrap();
            blocked.then_some(())
        })
        .await;
    }
}

/// The server process behind a connection.
pub(super) async fn pid(conn: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(conn).await.unwrap()
}

/// A batch of which every operation ended in the same way.
pub(super) fn settlement(claimed: &Claimed, end: End) -> Settlement {
    let results = claimed.operations.iter().map(|operation| result(operation, end)).collect();
    Settlement { claim: claimed.claim, results }
}

impl Lane {
    pub(super) fn lane_id(&self) -> LaneId {
        LaneId::from(self.id)
    }

    pub(super) async fn turn(&self, conn: &mut PgConnection) -> Result<Turn, ChatError> {
        chat::take_turn(conn, self.id, self.world.author).await
    }

    pub(super) async fn post_in(&self, conn: &mut PgConnection, text: &str) -> Result<Posted, ChatError> {
        let turn = self.turn(conn).await?;
        let posted = Posted { message_id: MessageId::generate(), outbox_id: OutboxId::generate(), seq: turn.seq };
        self.insert(conn, &turn, text, posted.message_id, Some(posted.outbox_id)).await?;
        outbox::enqueue(conn, &turn, &self.send_of(&posted)).await?;
        Ok(posted)
    }

    fn send_of(&self, posted: &Posted) -> Operation {
        Operation {
            outbox_id: posted.outbox_id,
            lane_id: self.lane_id(),
            kind: Kind::Message,
            subject_id: posted.message_id.as_uuid(),
            revision: Some(1),
            target_outbox_id: None,
            not_before: None,
            expires_at: None,
        }
    }

    async fn insert(
        &self,
        conn: &mut PgConnection,
        turn: &Turn,
        text: &str,
        message_id: MessageId,
        send_outbox_id: Option<OutboxId>,
    ) -> Result<(), ChatError> {
        let content = Content::plain(text);
        let message = NewMessage {
            message_id,
            author_id: self.world.author,
            kind: MessageKind::Text,
            content: &content,
            reply_to: None,
            thread_of: None,
            send_outbox_id,
        };
        chat::insert_message(conn, turn, &self.world.keys, &message).await
    }

    pub(super) async fn post(&self, text: &str) -> Posted {
        let mut tx = self.world.begin().await;
        let posted = self.post_in(&mut tx, text).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        posted
    }

    /// Posts what is not worth sending any more after a while.
    pub(super) async fn post_for(&self, text: &str, lifetime: Duration) -> Posted {
        let mut tx = self.world.begin().await;
        let turn = self.turn(&mut tx).await.unwrap();
        let posted = Posted { message_id: MessageId::generate(), outbox_id: OutboxId::generate(), seq: turn.seq };
        self.insert(&mut tx, &turn, text, posted.message_id, Some(posted.outbox_id)).await.unwrap();
        let operation = Operation { expires_at: Some(turn.at + lifetime), ..self.send_of(&posted) };
        outbox::enqueue(&mut tx, &turn, &operation).await.unwrap();
        tx.commit().await.unwrap();
        posted
    }

    /// Posts while Matrix is disabled.
    pub(super) async fn post_here_only(&self, text: &str) -> Posted {
        let mut tx = self.world.begin().await;
        let turn = self.turn(&mut tx).await.unwrap();
        let posted = Posted { message_id: MessageId::generate(), outbox_id: OutboxId::generate(), seq: turn.seq };
        self.insert(&mut tx, &turn, text, posted.message_id, None).await.unwrap();
        tx.commit().await.unwrap();
        posted
    }

    pub(super) async fn edit_in(
        &self,
        conn: &mut PgConnection,
        posted: &Posted,
        text: &str,
    ) -> Result<Edited, ChatError> {
        let turn = self.turn(conn).await?;
        let (keys, author) = (&self.world.keys, self.world.author);
        chat::edit_message(conn, &turn, keys, posted.message_id, author, &Content::plain(text), None).await
    }

    pub(super) async fn edit(&self, posted: &Posted, text: &str) -> Edited {
        let mut tx = self.world.begin().await;
        let edited = self.edit_in(&mut tx, posted, text).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        edited
    }

    pub(super) async fn delete_in(
        &self,
        conn: &mut PgConnection,
        posted: &Posted,
    ) -> Result<Option<Deletion>, ChatError> {
        let mut turn = self.turn(conn).await?;
        chat::delete_message(conn, &mut turn, posted.message_id, self.world.author).await
    }

    pub(super) async fn delete(&self, posted: &Posted) -> Option<Deletion> {
        let mut tx = self.world.begin().await;
        let deletion = self.delete_in(&mut tx, posted).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        deletion
    }

    /// Claims up to `operations` of this lane, if it is due.
    pub(super) async fn try_claim(&self, worker: &Worker, operations: u16) -> Option<Claimed> {
        let claimed = self.world.claim_lanes(worker, 1, operations).await.pop();
        if let Some(claimed) = &claimed {
            assert_eq!(claimed.claim.conversation_id, self.id, "another lane is due too");
            self.frozen_covers(claimed).await;
        }
        self.sound().await;
        claimed
    }

    pub(super) async fn claim(&self, worker: &Worker, operations: u16) -> Claimed {
        self.try_claim(worker, operations).await.expect("the lane is due")
    }

    async fn frozen_covers(&self, claimed: &Claimed) {
        let last = claimed.operations.last().expect("a batch is never empty").seq;
        assert!(self.frozen_through().await >= last, "what is handed out is frozen");
    }

    pub(super) async fn frozen_through(&self) -> i64 {
        self.number("select frozen_through from lanes where conversation_id = $1").await
    }

    /// Settles a batch; operations beyond `ends` were not tried.
    pub(super) async fn settle(&self, worker: &Worker, claimed: &Claimed, ends: &[End]) -> Settled {
        let results = claimed.operations.iter().zip(ends).map(|(operation, end)| result(operation, *end)).collect();
        self.settle_results(worker, claimed.claim, results).await
    }

    pub(super) async fn settle_results(
        &self,
        worker: &Worker,
        claim: LaneClaim,
        results: Vec<OperationResult>,
    ) -> Settled {
        let settled = self.world.settle_all(worker, &[Settlement { claim, results }]).await;
        self.sound().await;
        settled
    }

    /// Claims one operation, and settles it.
    pub(super) async fn step(&self, worker: &Worker, end: End) -> ClaimedOperation {
        let mut claimed = self.claim(worker, 1).await;
        self.settle(worker, &claimed, &[end]).await;
        claimed.operations.remove(0)
    }

    /// Delivers all that is live, and returns it in the order in which it was handed out.
    pub(super) async fn drain(&self) -> Vec<ClaimedOperation> {
        let worker = Worker::new();
        let mut operations = Vec::new();
        while let Some(claimed) = self.try_claim(&worker, 3).await {
            let ends: Vec<End> = claimed
                .operations
                .iter()
                .map(|operation| if operation.kind.is_state() { End::Done } else { End::Delivered })
                .collect();
            self.settle(&worker, &claimed, &ends).await;
            operations.extend(claimed.operations);
        }
        operations
    }

    pub(super) async fn late_evidence(&self, evidence: &Evidence) -> bool {
        let mut tx = self.world.begin().await;
        let first = outbox::late_evidence(&mut tx, self.id, self.lane_id(), evidence).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        first
    }

    pub(super) async fn requeue(&self, outbox_id: OutboxId) -> Requeued {
        let mut tx = self.world.begin().await;
        let requeued = outbox::requeue(&mut tx, self.id, outbox_id).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        requeued
    }

    pub(super) async fn discard(&self, outbox_id: OutboxId) -> u64 {
        let mut tx = self.world.begin().await;
        let gone = outbox::discard(&mut tx, self.id, outbox_id).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        gone
    }

    pub(super) async fn hold(&self) {
        let mut tx = self.world.begin().await;
        assert!(outbox::hold(&mut tx, self.id, self.lane_id(), "an operator's wish").await.unwrap());
        tx.commit().await.unwrap();
        self.sound().await;
    }

    pub(super) async fn resume(&self) -> bool {
        let mut tx = self.world.begin().await;
        let resumed = outbox::resume(&mut tx, self.id, self.lane_id()).await.unwrap();
        tx.commit().await.unwrap();
        self.sound().await;
        resumed
    }

    /// A number, from a statement that is given the conversation.
    pub(super) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).bind(self.id.as_uuid()).fetch_one(&self.world.pool).await.unwrap()
    }

    /// The operations of a kind in a place, oldest first.
    pub(super) async fn ids(&self, place: &str, kind: Kind) -> Vec<OutboxId> {
        let sql = format!("select outbox_id from {place} where conversation_id = $1 and kind = $2 order by outbox_id");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(self.id.as_uuid())
            .bind(kind.as_str())
            .fetch_all(&self.world.pool)
            .await
            .unwrap()
    }

    pub(super) async fn only(&self, place: &str, kind: Kind) -> OutboxId {
        let ids = self.ids(place, kind).await;
        assert_eq!(ids.len(), 1, "one {kind:?} in {place}");
        ids[0]
    }

    /// Ends the conversation, so that the next one is alone.
    pub(super) async fn forget(self) {
        sqlx::query("delete from conversations where conversation_id = $1")
            .bind(self.id.as_uuid())
            .execute(&self.world.pool)
            .await
            .unwrap();
    }
}
