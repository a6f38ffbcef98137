//! Errands: tasks that ask the homeserver, done by one worker at a time under a lease. Comparing conversations with
//! their rooms, and repairs by cause.
//!
//! What a worker leaves that ends in between, the next one takes up: a conversation that was compared is a part less.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use shared::{
    ids::{ConversationId, TaskId, WorkerId},
    tasks::{self, Progress, Task, TaskKind},
    verify::FindingKind,
    wake::wake_now,
};
use sqlx::PgPool;
use tokio::time::sleep;

use crate::{
    homeserver::{Failure, Homeserver},
    repair::{RepairError, Repairer},
    room::Rooms,
    verdict::{Verdict, judge},
    verify::{Verifier, VerifyError},
};

/// How many conversations of a task a worker goes through before another task that is due has its turn.
const TURN: u32 = 20;

/// How often a worker looks for an errand: one look at an index that is mostly empty.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long an errand is a worker's: several of the longest requests.
const LEASE: Duration = Duration::from_mins(2);

/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How often a conversation is tried that cannot be compared now, or mended as one of many.
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
    homeserver: Homeserver,
    verifier: Verifier,
    repairer: Repairer,
    tries: Tries,
}

/// Which conversation of a task could not be compared or mended, and how often in a row. Tasks in trouble take turns.
#[derive(Debug, Default)]
struct Tries(Mutex<HashMap<TaskId, (ConversationId, u32)>>);

impl Tries {
    /// Counts one more. With a number, that was the last: it is left, for those behind it.
    fn failed(&self, task_id: TaskId, conversation_id: ConversationId) -> Option<u32> {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = tries.remove(&task_id).filter(|(of, _)| *of == conversation_id).map_or(0, |(_, n)| n) + 1;
        if n < TRIES {
            tries.insert(task_id, (conversation_id, n));
        }
        (n >= TRIES).then_some(n)
    }

    /// It got on, or is over.
    fn forget(&self, task_id: TaskId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&task_id);
    }
}

/// Why a conversation's part of an errand cannot be done now.
#[derive(Debug)]
pub(crate) struct Setback {
    why: String,
    /// After how long it is worth another try.
    again_in: Duration,
    /// Whether it may be this conversation's alone. What is everybody's passes, or is mended: it is waited for.
    is_its_own: bool,
}

impl Setback {
    pub(crate) const fn its_own(why: String) -> Self {
        Self { why, again_in: AGAIN_IN, is_its_own: true }
    }

    /// None for a refusal, which another try does not change.
    pub(crate) fn of(failure: &Failure) -> Option<Self> {
        let (again_in, is_its_own) = match judge(failure) {
            Verdict::RateLimited(wait) => (wait.max(AGAIN_IN), false),
            Verdict::Account => (AGAIN_IN, false),
            Verdict::Down | Verdict::Ambiguous | Verdict::ServerError | Verdict::NotMatrix => (AGAIN_IN, true),
            Verdict::Room | Verdict::Own(_) | Verdict::Unknown => return None,
        };
        Some(Self { why: format!("homeserver: {failure}"), again_in, is_its_own })
    }
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<sqlx::Error> for Setback {
    fn from(error: sqlx::Error) -> Self {
        Self::its_own(format!("database: {error}"))
    }
}

/// How a conversation's part of an errand ended.
enum Ended {
    /// It is through: with what was found, and whether it could be done.
    Through(Progress),
    /// It has to be tried again.
    Again(Setback),
    /// It cannot be done.
    Refused(String),
    /// It is no longer ours.
    Lost,
}

impl Errands {
    pub(crate) fn new(worker_id: WorkerId, pool: PgPool, homeserver: Homeserver, rooms: Arc<Rooms>) -> Self {
        let verifier = Verifier { pool: pool.clone(), homeserver: homeserver.clone() };
        let repairer = Repairer { pool: pool.clone(), rooms, verifier: verifier.clone() };
        Self { worker_id, pool, homeserver, verifier, repairer, tries: Tries::default() }
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
        for _ in 0..TURN {
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
        let mut conn = self.pool.acquire().await?;
        tasks::give_way(&mut conn, self.worker_id, task_id).await?;
        Ok(true)
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
                }
                Ok(Ended::Through(Progress { done: 1, refused: 0, findings, counts: found.counts }))
            }
            Err(VerifyError::Lost) => Ok(Ended::Lost),
            Err(VerifyError::Homeserver(failure)) => Ok(match Setback::of(&failure) {
                Some(setback) => self.again(task, conversation_id, setback, unreadable).await,
                None => self.unless_away(|| unreadable(conversation_id, &failure.to_string())).await,
            }),
            Err(VerifyError::Database(error)) => Ok(self.again(task, conversation_id, error.into(), unreadable).await),
        }
    }

    /// What cannot be done now is tried again, and after some tries left: those behind it want their turn.
    async fn again(
        &self,
        task: &Task,
        conversation_id: ConversationId,
        setback: Setback,
        leave: impl FnOnce(ConversationId, &str) -> Ended,
    ) -> Ended {
        if !setback.is_its_own {
            return Ended::Again(setback);
        }
        if let Some(away) = self.away().await {
            return Ended::Again(away);
        }
        match self.tries.failed(task.task_id, conversation_id) {
            None => Ended::Again(setback),
            Some(n) => leave(conversation_id, &format!("tried {n} times: {setback}")),
        }
    }

    /// A refusal counts when it is the homeserver's, and ours to be refused: a proxy, and a token that has been revoked,
    /// refuse everything.
    async fn unless_away(&self, ended: impl FnOnce() -> Ended) -> Ended {
        self.away().await.map_or_else(ended, Ended::Again)
    }

    /// Why nobody's part can be done now, if that is so.
    async fn away(&self) -> Option<Setback> {
        let failure = self.homeserver.whoami().await.err()?;
        Some(Setback { why: format!("homeserver: {failure}"), again_in: AGAIN_IN, is_its_own: false })
    }

    /// Mends a conversation. Of a task that was asked for one, all is told, and it is tried until it is done or refused; of
    /// one for many, what could not be mended is: the others want to be mended too.
    async fn repair(&self, task: &Task, conversation_id: ConversationId, lease: &Lease) -> Ended {
        let of_many = task.conversation_id.is_none();
        match self.repairer.repair(task, conversation_id, lease).await {
            Ok(mended) if of_many && mended.is_held => unmended(conversation_id, "held", &mended.words),
            Ok(_) if of_many => Ended::Through(Progress { done: 1, ..Progress::default() }),
            Ok(mended) => {
                let findings: Vec<Value> = vec![json!({"conversation_id": conversation_id, "words": mended.words})];
                Ended::Through(Progress { done: 1, findings, ..Progress::default() })
            }
            Err(RepairError::Lost) => Ended::Lost,
            Err(RepairError::Refused(why)) if of_many => {
                self.unless_away(|| unmended(conversation_id, "refused", &why)).await
            }
            Err(RepairError::Refused(why)) => self.unless_away(|| Ended::Refused(why)).await,
            Err(RepairError::NotNow(setback)) if of_many => {
                self.again(task, conversation_id, setback, |id, words| unmended(id, "not_now", words)).await
            }
            Err(RepairError::NotNow(setback)) => Ended::Again(setback),
        }
    }

    /// Notes how a part ended. False when the errand does not go on.
    async fn note(&self, task: &Task, conversation_id: ConversationId, ended: Ended) -> Result<bool, sqlx::Error> {
        let (owner, task_id) = (self.worker_id, task.task_id);
        if !matches!(ended, Ended::Again(_)) {
            self.tries.forget(task_id);
        }
        let mut tx = self.pool.begin().await?;
        let goes_on = match ended {
            Ended::Through(progress) => tasks::note(&mut tx, owner, task_id, Some(conversation_id), &progress).await?,
            Ended::Again(Setback { why, again_in, .. }) => {
                tracing::warn!(task.id = %task_id, conversation.id = %conversation_id, error = why, "an errand is tried again");
                let trouble = format!("conversation {conversation_id}: {why}; it is tried again");
                tasks::hand_back(&mut tx, owner, task_id, again_in, &trouble).await?;
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

/// A conversation that is left without having been compared.
fn unreadable(conversation_id: ConversationId, why: &str) -> Ended {
    let finding = json!({
        "kind": FindingKind::Unreadable,
        "conversation_id": conversation_id,
        "words": format!("it could not be compared: {why}"),
        "repairable": false,
        "repaired": false,
    });
    let counts = [(FindingKind::Unreadable, 1)].into();
    Ended::Through(Progress { done: 0, refused: 1, findings: vec![finding], counts })
}

/// A conversation that is left without having been mended.
fn unmended(conversation_id: ConversationId, reason: &str, words: &str) -> Ended {
    let finding = json!({"reason": reason, "conversation_id": conversation_id, "words": words});
    Ended::Through(Progress { refused: 1, findings: vec![finding], ..Progress::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_that_cannot_be_compared_is_left_at_the_fourth_try_in_a_row() {
        let (tries, task_id) = (Tries::default(), TaskId::generate());
        let (one, other) = (ConversationId::generate(), ConversationId::generate());
        for _ in 1..TRIES {
            assert_eq!(tries.failed(task_id, one), None);
        }
        assert_eq!(tries.failed(task_id, one), Some(TRIES));
        assert_eq!(tries.failed(task_id, one), None, "asked again, it is tried anew");
        assert_eq!(tries.failed(task_id, other), None);
        for _ in 1..TRIES {
            assert_eq!(tries.failed(task_id, one), None, "not in a row");
        }
        assert_eq!(tries.failed(task_id, one), Some(TRIES));
        for _ in 1..TRIES {
            assert_eq!(tries.failed(task_id, one), None);
        }
        tries.forget(task_id);
        assert_eq!(tries.failed(task_id, one), None, "it got on in between");
    }

    #[test]
    fn tasks_that_take_turns_each_leave_what_cannot_be_done() {
        let tries = Tries::default();
        let tasks = [TaskId::generate(), TaskId::generate()];
        let conversation_id = ConversationId::generate();
        for _ in 1..TRIES {
            assert_eq!(tasks.map(|task_id| tries.failed(task_id, conversation_id)), [None; 2]);
        }
        assert_eq!(tasks.map(|task_id| tries.failed(task_id, conversation_id)), [Some(TRIES); 2]);
    }
}
