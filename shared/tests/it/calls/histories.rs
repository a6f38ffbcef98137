//! Random histories of calls: clients, Matrix, time and a homeserver that loses answers, in every order. Whatever happens,
//! each call is in a legal state, nothing follows its end, and whatever may ring is hung up.

use std::time::Duration;

use serde_json::json;
use shared::{
    calls::{EndReason, Saying, SignalKind},
    ids::CallId,
    outbox::Kind,
    testing::traffic::Chance,
};

use super::{Answer, Scene, answer, candidates, hangup};

const STEPS: usize = 24;

/// What happened to a call's events in the room.
#[derive(Debug, Default, Clone)]
struct Heard {
    kinds: Vec<SignalKind>,
}

struct History {
    scene: Scene,
    chance: Chance,
    calls: Vec<CallId>,
    heard: std::collections::HashMap<CallId, Heard>,
}

impl History {
    fn pick(&mut self) -> Option<CallId> {
        (!self.calls.is_empty()).then(|| self.calls[self.chance.below(self.calls.len())])
    }

    async fn step(&mut self) {
        let scene = &self.scene;
        match self.chance.below(12) {
            0 if self.calls.len() < 4 => {
                let call_id = scene.place().await;
                self.calls.push(call_id);
            }
            1 if self.calls.len() < 4 => {
                let name = ["!theirs", "~theirs"][self.chance.below(2)].to_owned() + &self.calls.len().to_string();
                let call_id = scene.is_called(&name).await;
                self.calls.push(call_id);
            }
            2..=5 => {
                let user = [self.scene.ada, self.scene.grace][self.chance.below(2)];
                let party = [Some("A"), Some("B"), None][self.chance.below(3)];
                let saying = match self.chance.below(5) {
                    0 | 1 => answer(),
                    2 => hangup(),
                    3 => Saying::Reject,
                    _ => {
                        let n = self.chance.below(20);
                        candidates(n..n + 2)
                    }
                };
                if let Some(call_id) = self.pick() {
                    let _ = self.scene.say(call_id, user, party, saying).await;
                }
            }
            6 | 7 => {
                let kinds = [SignalKind::Answer, SignalKind::Hangup, SignalKind::Reject, SignalKind::SelectAnswer];
                let kind = kinds[self.chance.below(4)];
                let party = ["DESK", "SOFA"][self.chance.below(2)];
                if let Some(call_id) = self.pick() {
                    let name: String = sqlx::query_scalar("select matrix_call_id from calls where call_id = $1")
                        .bind(call_id.as_uuid())
                        .fetch_one(&self.scene.database.pool)
                        .await
                        .unwrap();
                    let fields = json!({"party_id": party, "selected_party_id": "A", "reason": "user_hangup"});
                    self.scene.hear(&Scene::matrix(self.scene.grace), &name, kind, fields).await;
                }
            }
            8 => {
                let seconds = [1, 5, 40, 85, 91][self.chance.below(5)];
                self.scene.database.advance(Duration::from_secs(seconds)).await;
                if self.chance.below(2) == 0 {
                    self.scene.time_out().await;
                }
            }
            _ => self.send(false).await,
        }
    }

    /// A worker takes one round, or all there is, at a homeserver that is well.
    async fn send(&mut self, all: bool) {
        loop {
            let batches = self.scene.claim().await;
            if batches.is_empty() {
                return;
            }
            for claimed in batches {
                let call_id = CallId::from(claimed.claim.lane_id.as_uuid());
                let chance = &mut self.chance;
                let mut answer = |_: &shared::outbox::ClaimedOperation| {
                    let answers = [Answer::Taken, Answer::Taken, Answer::Refused, Answer::TakenSilently, Answer::Lost];
                    if all { Answer::Taken } else { answers[chance.below(answers.len())] }
                };
                let sent = self.scene.settle(claimed, &mut answer).await;
                let heard = self.heard.entry(call_id).or_default();
                heard.kinds.extend(sent.into_iter().map(|kind| match kind {
                    Kind::Call(kind) => kind,
                    other => panic!("{other:?}"),
                }));
            }
            if !all {
                return;
            }
        }
    }

    /// Everything comes to its end, and then it must be right.
    async fn end(mut self, seed: u64) {
        for _ in 0..4 {
            self.scene.database.advance(Duration::from_mins(6)).await;
            self.scene.time_out().await;
            self.send(true).await;
        }
        assert_eq!(self.scene.waiting().await, [""; 0], "seed {seed}: something is never sent");
        for call_id in &self.calls {
            let call = self.scene.call(*call_id).await;
            let heard = self.heard.get(call_id).cloned().unwrap_or_default().kinds;
            let said = format!("seed {seed}: {call:?}\nheard: {heard:?}");
            assert_ne!(call.status.as_str(), "ringing", "{said}");
            let is_over = call.status.as_str() == "ended";
            let at = |kind| heard.iter().position(|heard| *heard == kind);
            if let Some(invite) = at(SignalKind::Invite) {
                let invites = heard.iter().filter(|kind| **kind == SignalKind::Invite).count();
                assert_eq!((invite, invites), (0, 1), "{said}");
                let by_matrix = matches!(call.reason, Some(EndReason::Rejected | EndReason::UserHangup))
                    && call.ended_by == Some(self.scene.grace);
                let ended = at(SignalKind::Hangup).is_some() || at(SignalKind::SelectAnswer).is_some();
                assert!(ended || by_matrix || !is_over, "a ring without its end\n{said}");
            } else if call.origin.as_str() == "nova" {
                let only_ends =
                    heard.iter().all(|kind| *kind == SignalKind::Hangup || *kind == SignalKind::SelectAnswer);
                assert!(only_ends, "something follows an invite that was never heard\n{said}");
            }
            if let Some(end) = at(SignalKind::Hangup).or_else(|| at(SignalKind::Reject)) {
                let after = &heard[end..];
                assert!(after.iter().all(|kind| *kind == heard[end]), "something follows the end\n{said}");
            }
        }
    }
}

#[tokio::test]
async fn whatever_happens_every_call_is_legal_ends_once_and_rings_no_longer_than_it_may() {
    let histories = std::env::var("CALL_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7_u64);
    for seed in first..first + histories {
        let scene = Scene::new().await;
        let mut history =
            History { scene, chance: Chance::of(seed), calls: Vec::new(), heard: std::collections::HashMap::new() };
        for _ in 0..STEPS {
            history.step().await;
        }
        history.end(seed).await;
    }
}
