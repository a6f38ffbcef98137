//! Errands: tasks that ask the homeserver, done by one worker at a time under a lease. Comparing conversations with
//! their rooms, and repairs by cause.
//!
//! What a worker leaves that ends in between, the next one takes up: a conversation that was compared is a part less.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use shared::{
    ids::{ConversationId, TaskId, WorkerId},
    tasks::{self, Progress, Task, TaskKind},
    verify as compared,
    wake::wake_now,
};
use sqlx::PgPool;
use tokio::time::sleep;

use crate::{
    homeserver::{Failure, Homeserver},
    repair::{RepairError, Repairer},
    room::Rooms,
    verify::{Verifier, VerifyError},
};

/// How often a worker looks for an errand: one look at an index that is mostly empty.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long an errand is a worker's: several of the longest requests.
const LEASE: Duration = Duration::from_mins(2);

/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How often a conversation is tried that cannot be compared now.
const TRIES: u32 = 4;

/// When an errand is tried again that could not be done now.
const AGAIN_IN: Duration = Duration::from_secs(15);

/// The right to do an errand.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: PgPool,
    owner: WorkerId,
    task_id: TaskId,
    renewed: Mutex<Instant>,
}

impl Lease {
    /// Whether the errand is still ours; renews the lease now and then. Asked before each request.
    pub(crate) async fn go_on(&self) -> Result<bool, sqlx::Error> {
        let renewed = *self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.elapsed() < RENEW_EVERY {
            return Ok(true);
        }
        let is_ours = {
            let mut conn = self.pool.acquire().await?;
            tasks::renew(&mut conn, self.owner, self.task_id, LEASE).await?
        };
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(is_ours)
    }
}

/// Does errands.
#[derive(Debug)]
pub(crate) struct Errands {
    worker_id: WorkerId,
    pool: PgPool,
    verifier: Verifier,
    repairer: Repairer,
    /// Which conversation of which task could not be compared, and how often in a row.
    tries: Mutex<Option<((TaskId, ConversationId), u32)>>,
}

/// How a conversation's part of an errand ended.
enum Ended {
    /// It is through: with what was found, and whether it could be done.
    Through(Progress),
    /// It has to be tried again.
    Again(String),
    /// It cannot be done.
    Refused(String),
    /// It is no longer ours.
    Lost,
}

impl Errands {
    pub(crate) fn new(worker_id: WorkerId, pool: PgPool, homeserver: Homeserver, rooms: Arc<Rooms>) -> Self {
        let verifier = Verifier { pool: pool.clone(), homeserver };
        let repairer = Repairer { pool: pool.clone(), rooms, verifier: verifier.clone() };
        Self { worker_id, pool, verifier, repairer, tries: Mutex::default() }
    }

    /// Looks for errands and does them, one at a time.
    pub(crate) async fn run(self) {
        loop {
            match self.one().await {
                Ok(true) => {}
                Ok(false) => sleep(LOOK_EVERY).await,
                Err(error) => {
                    tracing::warn!(%error, "an errand failed; looking again");
                    sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    /// Does an errand, as far as it goes. False when there is none.
    async fn one(&self) -> Result<bool, sqlx::Error> {
        let kinds = [TaskKind::Verify, TaskKind::Repair];
        let leased = {
            let mut conn = self.pool.acquire().await?;
            tasks::lease(&mut conn, self.worker_id, &kinds, LEASE).await?
        };
        let Some(task) = leased else { return Ok(false) };
        let task_id = task.task_id;
        tracing::info!(task.id = %task_id, task.kind = task.kind.as_str(), "an errand is under way");
        let renewed = Mutex::new(Instant::now());
        let lease = Lease { pool: self.pool.clone(), owner: self.worker_id, task_id, renewed };
        loop {
            let part = {
                let mut conn = self.pool.acquire().await?;
                tasks::parts(&mut conn, task_id, 1).await?.pop()
            };
            let Some(conversation_id) = part else {
                let mut tx = self.pool.begin().await?;
                tasks::finish(&mut tx, self.worker_id, task_id).await?;
                tx.commit().await?;
                return Ok(true);
            };
            let ended = match task.kind {
                TaskKind::Verify => self.verify(&task, conversation_id, &lease).await?,
                _ => self.repair(&task, conversation_id, &lease).await,
            };
            if !self.note(&task, conversation_id, ended).await? {
                return Ok(true);
            }
        }
    }

    /// Compares a conversation. What was found is noted with the numbers of it, in one transaction with the part's end.
    async fn verify(&self, task: &Task, conversation_id: ConversationId, lease: &Lease) -> Result<Ended, sqlx::Error> {
        let mend = task.arguments["repair"] == true;
        match self.verifier.verify(task, conversation_id, mend, lease).await {
            Ok(found) => {
                let findings = found.findings.iter().map(|finding| json!(finding)).collect();
                if !found.counts.is_empty() {
                    tracing::info!(
                        conversation.id = %conversation_id,
                        found = ?found.counts,
                        "the conversation differs from its room"
                    );
                    let mut conn = self.pool.acquire().await?;
                    compared::add_counts(&mut conn, task.task_id, &found.counts).await?;
                }
                Ok(Ended::Through(Progress { done: 1, refused: 0, findings }))
            }
            Err(VerifyError::Lost) => Ok(Ended::Lost),
            Err(VerifyError::Homeserver(failure @ (Failure::Refused(_) | Failure::NotBuilt(_))))
                if !is_passing(&failure) =>
            {
                let finding = json!({
                    "kind": "unreadable",
                    "conversation_id": conversation_id,
                    "words": format!("it could not be compared: {failure}"),
                    "repairable": false,
                    "repaired": false,
                });
                Ok(Ended::Through(Progress { done: 0, refused: 1, findings: vec![finding] }))
            }
            Err(error) => Ok(self.again(task, conversation_id, &error.to_string())),
        }
    }

    /// A conversation that cannot be compared now is tried again, and after some tries left: those behind it want to be
    /// compared too.
    fn again(&self, task: &Task, conversation_id: ConversationId, why: &str) -> Ended {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, n) = tries.unwrap_or(((task.task_id, conversation_id), 0));
        let n = if of == (task.task_id, conversation_id) { n + 1 } else { 1 };
        if n < TRIES {
            *tries = Some(((task.task_id, conversation_id), n));
            return Ended::Again(why.to_owned());
        }
        *tries = None;
        let finding = json!({
            "kind": "unreadable",
            "conversation_id": conversation_id,
            "words": format!("it could not be compared, tried {n} times: {why}"),
            "repairable": false,
            "repaired": false,
        });
        Ended::Through(Progress { done: 0, refused: 1, findings: vec![finding] })
    }

    async fn repair(&self, task: &Task, conversation_id: ConversationId, lease: &Lease) -> Ended {
        match self.repairer.repair(task, conversation_id, lease).await {
            Ok(words) => {
                let findings: Vec<Value> = vec![json!({"conversation_id": conversation_id, "words": words})];
                Ended::Through(Progress { done: 1, refused: 0, findings })
            }
            Err(RepairError::Lost) => Ended::Lost,
            Err(RepairError::NotNow(why)) => Ended::Again(why),
            Err(RepairError::Refused(why)) => Ended::Refused(why),
        }
    }

    /// Notes how a part ended. False when the errand does not go on.
    async fn note(&self, task: &Task, conversation_id: ConversationId, ended: Ended) -> Result<bool, sqlx::Error> {
        let (owner, task_id) = (self.worker_id, task.task_id);
        let mut tx = self.pool.begin().await?;
        let goes_on = match ended {
            Ended::Through(progress) => tasks::note(&mut tx, owner, task_id, Some(conversation_id), &progress).await?,
            Ended::Again(why) => {
                tracing::warn!(task.id = %task_id, conversation.id = %conversation_id, error = why, "an errand is tried again");
                tasks::hand_back(&mut tx, owner, task_id, AGAIN_IN).await?;
                false
            }
            Ended::Refused(why) => {
                tasks::fail(&mut tx, owner, task_id, &why).await?;
                false
            }
            Ended::Lost => false,
        };
        tx.commit().await?;
        // What was enqueued, or resumed.
        wake_now(&self.pool).await;
        Ok(goes_on)
    }
}

/// Whether a refusal passes by itself.
fn is_passing(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(refusal) if refusal.status == 429 || refusal.status >= 500)
}
