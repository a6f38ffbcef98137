//! Calls on a real database: what clients and Matrix say, in whatever order, and what goes to the room.

use std::{collections::HashSet, sync::Mutex, time::Duration};

use serde_json::{Value, json};
use shared::{
    calls::{self, Call, CallError, CallSignal, EndReason, NewCall, Saying, SignalKind},
    chat::{self, Turn},
    ids::{CallId, ConversationId, EventId, MatrixUserId, OutboxId, RoomId, UserId, WorkerId},
    inbound::{self, Applied, Inbox, Incoming, What},
    outbox::{
        self, Attempt, Blame, ClaimRequest, Claimed, ClaimedOperation, Evidence, Kind, LaneClass, Mode,
        OperationResult, Outcome, Settlement,
    },
    seal::KeyRing,
    testing::{database::TestDatabase, nova::CONTENT_KEYS},
};
use sqlx::{Postgres, Transaction};

mod carrying;
mod closing;
mod devices;
mod heard;
mod histories;
mod ringing;

const SERVER: &str = "nova.test";
const RING: Duration = Duration::from_secs(90);

/// A conversation of Ada and Grace, and whoever else is in it.
struct Scene {
    database: TestDatabase,
    keys: KeyRing,
    service: MatrixUserId,
    conversation_id: ConversationId,
    ada: UserId,
    grace: UserId,
    worker_id: WorkerId,
    said: std::sync::atomic::AtomicU64,
    /// What stands in the room: a repetition makes no second event.
    stands: Mutex<HashSet<OutboxId>>,
}

impl Scene {
    async fn new() -> Self {
        Self::of(&[]).await
    }

    /// With more members.
    async fn of(others: &[UserId]) -> Self {
        let database = TestDatabase::create().await;
        let (ada, grace) = (UserId::generate(), UserId::generate());
        let conversation_id = ConversationId::generate();
        let mut tx = database.pool.begin().await.unwrap();
        let members: Vec<UserId> = [grace].into_iter().chain(others.iter().copied()).collect();
        chat::create_conversation(&mut tx, conversation_id, None, ada, &members).await.unwrap();
        chat::save_room_mapping(&mut tx, conversation_id, &room(), true).await.unwrap();
        tx.commit().await.unwrap();
        Self {
            database,
            keys: KeyRing::parse(CONTENT_KEYS).unwrap(),
            service: format!("@service:{SERVER}").parse().unwrap(),
            conversation_id,
            ada,
            grace,
            worker_id: WorkerId::generate(),
            said: std::sync::atomic::AtomicU64::new(0),
            stands: Mutex::default(),
        }
    }

    async fn begin(&self) -> (Transaction<'static, Postgres>, Turn) {
        let mut tx = self.database.pool.begin().await.unwrap();
        let turn = chat::lock_conversation(&mut tx, self.conversation_id).await.unwrap().unwrap();
        (tx, turn)
    }

    fn new_call(&self, party: &str) -> NewCall {
        NewCall {
            call_id: CallId::generate(),
            initiator_id: self.ada,
            party_id: Some(party.to_owned()),
            invitee_id: None,
            lifetime: RING,
            sdp: "v=0 offer".to_owned(),
            sdp_stream_metadata: None,
            on_matrix: true,
        }
    }

    async fn try_place(&self, new: &NewCall) -> Result<CallId, CallError> {
        let (mut tx, mut turn) = self.begin().await;
        calls::initiate(&mut tx, &mut turn, &self.keys, new).await?;
        tx.commit().await.unwrap();
        Ok(new.call_id)
    }

    /// Ada calls.
    async fn place(&self) -> CallId {
        self.try_place(&self.new_call("PHONE")).await.unwrap()
    }

    async fn say(&self, call_id: CallId, user: UserId, party: Option<&str>, saying: Saying) -> Result<(), CallError> {
        let (mut tx, mut turn) = self.begin().await;
        calls::say(&mut tx, &mut turn, &self.keys, call_id, user, party, saying).await?;
        tx.commit().await.unwrap();
        Ok(())
    }

    async fn call_as(&self, call_id: CallId, reader: UserId) -> Call {
        let mut conn = self.database.pool.acquire().await.unwrap();
        calls::call(&mut conn, self.conversation_id, call_id, reader).await.unwrap()
    }

    async fn call(&self, call_id: CallId) -> Call {
        self.call_as(call_id, self.ada).await
    }

    /// Status and reason, as words.
    async fn state(&self, call_id: CallId) -> String {
        let call = self.call(call_id).await;
        match call.reason {
            Some(reason) => format!("{} {}", call.status.as_str(), reason.as_str()),
            None => call.status.as_str().to_owned(),
        }
    }

    async fn now_ms(&self) -> i64 {
        self.database.count("select (extract(epoch from outbox_now()) * 1000)::bigint").await
    }

    /// An event of a call, as Matrix has it.
    async fn event(&self, user: &MatrixUserId, call_id: &str, kind: SignalKind, fields: Value) -> Incoming {
        let n = self.said.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let party_id = fields.get("party_id").and_then(Value::as_str).map(str::to_owned);
        let lifetime_ms = fields.get("lifetime").and_then(Value::as_u64);
        let mut content = json!({"call_id": call_id, "version": "1"});
        content.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let content = content.to_string();
        let call = CallSignal { kind, call_id: call_id.to_owned(), party_id, lifetime_ms, content };
        Incoming {
            event_id: EventId::from(format!("$said-{n}")),
            room_id: room(),
            sender: user.clone(),
            sent_at_ms: self.now_ms().await,
            marker: None,
            transaction_id: None,
            what: What::Call(call),
        }
    }

    async fn apply(&self, event: &Incoming) -> Applied {
        let (mut tx, mut turn) = self.begin().await;
        let inbox = Inbox { keys: &self.keys, service_user: &self.service, calls: true };
        let applied = inbound::apply(&mut tx, &mut turn, inbox, event).await.unwrap();
        tx.commit().await.unwrap();
        applied
    }

    /// Somebody says something on Matrix, in a batch of its own.
    async fn hear(&self, user: &MatrixUserId, call_id: &str, kind: SignalKind, fields: Value) -> Incoming {
        let event = self.event(user, call_id, kind, fields).await;
        self.apply(&event).await;
        self.announce().await;
        event
    }

    async fn announce(&self) -> u64 {
        let mut tx = self.database.pool.begin().await.unwrap();
        let told = calls::announce(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        told
    }

    fn matrix(user: UserId) -> MatrixUserId {
        MatrixUserId::of(user, SERVER)
    }

    /// Grace's own account invites everybody to a call.
    async fn is_called(&self, call_id: &str) -> CallId {
        let fields = json!({"party_id": "DESK", "lifetime": 90_000, "offer": {"type": "offer", "sdp": "v=0 theirs"}});
        self.hear(&Self::matrix(self.grace), call_id, SignalKind::Invite, fields).await;
        CallId::of_matrix(self.conversation_id, call_id)
    }

    async fn claim(&self) -> Vec<Claimed> {
        let request = ClaimRequest {
            worker_id: self.worker_id,
            sender: self.service.to_string(),
            device: "DEVICE".to_owned(),
            class: LaneClass::Call,
            lanes: 16,
            operations: 16,
            lease: Duration::from_mins(1),
            dedupe_window: Duration::from_hours(20),
            bookmark: None,
        };
        let mut tx = self.database.pool.begin().await.unwrap();
        let claim = outbox::claim(&mut tx, &request).await.unwrap();
        tx.commit().await.unwrap();
        claim.batches
    }

    async fn settle(&self, claimed: Claimed, answer: &mut impl FnMut(&ClaimedOperation) -> Answer) -> Vec<Kind> {
        let mut sent = HashSet::new();
        let (mut results, mut put) = (Vec::new(), Vec::new());
        for operation in claimed.operations {
            let (outcome, taken) = outcome(&operation, &mut sent, answer);
            if taken && self.stands.lock().unwrap().insert(operation.outbox_id) && !closes(&operation) {
                put.push(operation.kind);
            }
            let goes_on = outcome.lets_the_next_go();
            let attempt = Some(Attempt::default());
            results.push(OperationResult { operation, outcome, attempt, found: Vec::new(), anew: false });
            if !goes_on {
                break;
            }
        }
        let mut tx = self.database.pool.begin().await.unwrap();
        let settlement = Settlement { claim: claimed.claim, results };
        outbox::settle(&mut tx, self.worker_id, &[settlement]).await.unwrap();
        tx.commit().await.unwrap();
        put
    }

    /// A worker sends what is due, as long as there is something. What reached the room, in order.
    async fn drain_with(&self, mut answer: impl FnMut(&ClaimedOperation) -> Answer) -> Vec<Kind> {
        let mut sent = Vec::new();
        loop {
            let batches = self.claim().await;
            if batches.is_empty() {
                return sent;
            }
            for claimed in batches {
                sent.extend(self.settle(claimed, &mut answer).await);
            }
        }
    }

    async fn drain(&self) -> Vec<Kind> {
        self.drain_with(|_| Answer::Taken).await
    }

    /// The parties in whose names things reach the room, with what they say besides; until nothing is due.
    async fn drain_spoken(&self) -> Vec<(String, Option<String>, Option<String>)> {
        let mut spoken = Vec::new();
        self.drain_with(|operation| {
            let signal = &operation.call.as_ref().unwrap().signals[0];
            spoken.push((operation.kind.as_str().to_owned(), signal.party_id.clone(), signal.detail.clone()));
            Answer::Taken
        })
        .await;
        spoken
    }

    /// What a worker learns late of an invite that was given up: it stands in the room.
    async fn invite_turns_up(&self, call_id: CallId) {
        let invite: uuid::Uuid = sqlx::query_scalar("select send_outbox_id from calls where call_id = $1")
            .bind(call_id.as_uuid())
            .fetch_one(&self.database.pool)
            .await
            .unwrap();
        let evidence = Evidence {
            outbox_id: OutboxId::from(invite),
            kind: Kind::Call(SignalKind::Invite),
            subject_id: call_id.as_uuid(),
            revision: None,
            target_outbox_id: None,
            event_id: "$late".to_owned().into(),
            room_id: room(),
            sender: self.service.to_string(),
        };
        let mut tx = self.database.pool.begin().await.unwrap();
        let new = outbox::late_evidence(&mut tx, self.conversation_id, call_id.into(), &evidence).await.unwrap();
        tx.commit().await.unwrap();
        assert!(new);
    }

    async fn remove(&self, user: UserId) {
        let (mut tx, mut turn) = self.begin().await;
        chat::remove_member(&mut tx, &mut turn, user).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn waiting(&self) -> Vec<String> {
        sqlx::query_scalar("select kind from outbox order by seq").fetch_all(&self.database.pool).await.unwrap()
    }

    async fn time_out(&self) -> u64 {
        let expired = outbox::expire(&self.database.pool, 100).await.unwrap();
        expired.invites + calls::time_out(&self.database.pool, 100).await.unwrap()
    }

    /// What clients are told, in order.
    async fn events(&self) -> Vec<String> {
        let sql = r"
            select case e.kind when 'call_signal' then s.kind else e.kind end
            from events e left join call_signals s on s.signal_id = e.subject_id
            where e.kind in ('call_signal', 'call_updated') order by e.xid, e.event_id";
        sqlx::query_scalar(sql).fetch_all(&self.database.pool).await.unwrap()
    }
}

/// What the homeserver makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It takes it, and says so.
    Taken,
    /// It refuses.
    Refused,
    /// It takes it, and the answer is lost.
    TakenSilently,
    /// It does not, and nobody knows.
    Lost,
    /// It never takes it.
    Never,
    /// It was asked, and has it not.
    NotThere,
}

fn closes(operation: &ClaimedOperation) -> bool {
    matches!(operation.mode, Mode::Close { .. })
}

/// What a worker makes of an operation, and whether the homeserver took something.
fn outcome(
    operation: &ClaimedOperation,
    sent: &mut HashSet<OutboxId>,
    answer: &mut impl FnMut(&ClaimedOperation) -> Answer,
) -> (Outcome, bool) {
    let Kind::Call(kind) = operation.kind else { panic!("{operation:?}") };
    let call = operation.call.as_ref().unwrap();
    let event_id = || EventId::from(format!("${}", operation.outbox_id));
    match operation.mode {
        Mode::Drop => return (Outcome::Expired, false),
        Mode::Known(_) => return (Outcome::Delivered { event_id: event_id(), room_id: room() }, false),
        _ => {}
    }
    if !call.is_heard(kind, |invite| sent.contains(&invite)) {
        return (Outcome::NotThere, false);
    }
    let (retry_in, blame) = (Duration::from_secs(1), Blame::Passing);
    match answer(operation) {
        Answer::Taken => {
            sent.insert(operation.outbox_id);
            (Outcome::Delivered { event_id: event_id(), room_id: room() }, true)
        }
        Answer::Refused => (Outcome::Refused { retry_in, blame }, false),
        Answer::TakenSilently => (Outcome::Ambiguous { retry_in, blame }, true),
        Answer::Lost => (Outcome::Ambiguous { retry_in, blame }, false),
        Answer::Never => (Outcome::GaveUp { hint: "nothing to be done" }, false),
        Answer::NotThere => (Outcome::NotThere, false),
    }
}

fn room() -> RoomId {
    RoomId::from("!room".to_owned())
}

fn answer() -> Saying {
    Saying::Answer { sdp: "v=0 answer".to_owned(), sdp_stream_metadata: None }
}

const fn hangup() -> Saying {
    Saying::Hangup { reason: EndReason::UserHangup }
}

fn candidates(numbers: std::ops::Range<usize>) -> Saying {
    Saying::Candidates(numbers.map(|n| json!({"candidate": format!("candidate:{n}"), "sdpMid": "0"})).collect())
}

fn kinds(kinds: &[SignalKind]) -> Vec<Kind> {
    kinds.iter().copied().map(Kind::Call).collect()
}
