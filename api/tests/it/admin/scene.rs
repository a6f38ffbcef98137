//! An API with people who talk and an operator, and letters that are dead.

use serde_json::{Value, json};
use shared::{
    ids::UserId,
    testing::{
        database::TestDatabase,
        nova::{NovaUser, Program, api_environment},
    },
};
use uuid::Uuid;

/// What is shown nowhere.
pub(crate) const CANARY: &str = "canary-7f3a";

/// Such a scene. No worker runs: what is enqueued waits.
pub(crate) struct Scene {
    pub(crate) database: TestDatabase,
    pub(crate) api: Program,
    pub(crate) ada: NovaUser,
    pub(crate) grace: NovaUser,
    /// May look.
    pub(crate) reader: NovaUser,
    /// May act.
    pub(crate) operator: NovaUser,
    pub(crate) conversation: String,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::create().await;
        let api = Program::start("api", &api_environment(&database.url)).await;
        let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
        let reader = NovaUser::new(&api).with_scope("outbox:read");
        let operator = NovaUser::new(&api).with_scope("outbox:operate");
        let conversation = ada.create_conversation(&[grace.user_id]).await;
        Self { database, api, ada, grace, reader, operator, conversation }
    }

    /// Ada writes; returns the message's id and its operation's.
    pub(crate) async fn write(&self) -> (String, Uuid) {
        let message = self.ada.post(&self.conversation, &format!("{CANARY} in a text")).await.expect(201);
        let id = message["id"].as_str().unwrap().to_owned();
        let outbox_id = sqlx::query_scalar("select send_outbox_id from messages where message_id = $1")
            .bind(id.parse::<Uuid>().unwrap())
            .fetch_one(&self.database.pool)
            .await
            .unwrap();
        (id, outbox_id)
    }

    /// All that people say and nobody else may see: texts, a reaction, what a call's devices tell each other.
    /// Returns whose pages there are: of what is dead, and of what waits.
    pub(crate) async fn said(&self) -> Vec<String> {
        let (message, operation) = self.dead("M_TOO_LARGE").await;
        let (live, live_operation) = self.write().await;
        self.ada.edit(&live, &format!("{CANARY} edited")).await.expect(200);
        self.grace.call("PUT", &format!("/messages/{live}/reactions/{CANARY}"), None).await.expect(201);
        let offer = json!({
            "conversation_id": self.conversation,
            "sdp_offer": format!("v=0 {CANARY}"),
            "party_id": "PHONE",
            "invitee": self.grace.user_id,
        });
        let call = self.ada.call("POST", "/calls/initiate", Some(&offer)).await.expect(201);
        let call = call["id"].as_str().unwrap().to_owned();
        let candidates = json!({"party_id": "PHONE", "candidates": [{"candidate": CANARY, "sdpMid": "0"}]});
        self.ada.call("POST", &format!("/calls/{call}/candidates"), Some(&candidates)).await.expect(200);
        let lane: Vec<Uuid> =
            sqlx::query_scalar("select outbox_id from outbox where kind not in ('message', 'invite')")
                .fetch_all(&self.database.pool)
                .await
                .unwrap();
        assert_eq!(lane.len(), 3, "a reaction, an invite and candidates of a call: {lane:?}");
        let mut ids = vec![message, operation.to_string(), live, live_operation.to_string(), call];
        ids.extend(lane.iter().map(Uuid::to_string));
        ids.push(self.conversation.clone());
        ids
    }

    /// An operation dies, as when the homeserver refuses it for its own fault.
    pub(crate) async fn dies(&self, outbox_id: Uuid, errcode: &str) {
        let mut tx = self.database.pool.begin().await.unwrap();
        let lane_id: Uuid = sqlx::query_scalar(
            "with gone as (delete from outbox where outbox_id = $1 returning *)
             insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision,
                 target_outbox_id, enqueued_at, attempts, cause, errcode, hint, died_at, user_id)
             select conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, target_outbox_id, enqueued_at,
                 1, 'own_fault', $2, 'ask somebody who knows', outbox_now(),
                 outbox_user(conversation_id, kind, subject_id, outbox_id)
             from gone
             returning lane_id",
        )
        .bind(outbox_id)
        .bind(errcode)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        // A statement sees what the one before it left.
        sqlx::query(
            "update lanes set open = open - 1,
                 due_at = outbox_due(conversation_id, lane_id, outbox_now(), hold, paused_until)
             where lane_id = $1",
        )
        .bind(lane_id)
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }

    /// Writes, and that dies.
    pub(crate) async fn dead(&self, errcode: &str) -> (String, Uuid) {
        let (message, outbox_id) = self.write().await;
        self.dies(outbox_id, errcode).await;
        (message, outbox_id)
    }

    /// A dead letter was handed to a sender before it died, so that it may have become an event.
    pub(crate) async fn was_handed(&self, outbox_id: &str) {
        let handed =
            "update dead_letters set sender = '@nova-service:nova.test', device = 'NOVAOUTBOX' where outbox_id = $1";
        let id: Uuid = outbox_id.parse().unwrap();
        sqlx::query(handed).bind(id).execute(&self.database.pool).await.unwrap();
        sqlx::query(
            "insert into matrix_room_mappings (conversation_id, matrix_room_id, created_at, ready_at)
             values ($1, '!room', outbox_now(), outbox_now())",
        )
        .bind(self.conversation.parse::<Uuid>().unwrap())
        .execute(&self.database.pool)
        .await
        .unwrap();
    }

    /// An invitation of Grace that died of a code.
    pub(crate) async fn dead_invitation(&self, errcode: &str) {
        let (_, outbox_id) = self.dead(errcode).await;
        let invites = "update dead_letters set kind = 'invite', subject_id = $2 where outbox_id = $1";
        sqlx::query(invites).bind(outbox_id).bind(self.grace.user_id).execute(&self.database.pool).await.unwrap();
    }

    /// Holds the conversation's chat, as a worker does whose room does not take our messages.
    pub(crate) async fn held(&self, reason: &str) {
        self.held_in(&self.conversation, reason).await;
    }

    /// The same of another conversation.
    pub(crate) async fn another_held(&self, reason: &str) {
        let other = self.ada.create_conversation(&[self.grace.user_id]).await;
        self.ada.post(&other, CANARY).await.expect(201);
        self.held_in(&other, reason).await;
    }

    async fn held_in(&self, conversation: &str, reason: &str) {
        let held = "update lanes set hold = $2, due_at = null where conversation_id = $1";
        let id: Uuid = conversation.parse().unwrap();
        sqlx::query(held).bind(id).bind(reason).execute(&self.database.pool).await.unwrap();
    }

    /// What the trail says, newest first.
    pub(crate) async fn trail(&self) -> Vec<Value> {
        self.reader.get("/admin/audit").await["items"].as_array().unwrap().clone()
    }

    /// The newest act of the trail: who, what, how many and why.
    pub(crate) async fn last_act(&self) -> Value {
        let act = &self.trail().await[0];
        json!([act["acted_by"], act["verb"], act["scope"], act["affected"], act["reason"]])
    }

    /// As the trail has it.
    pub(crate) fn act(by: UserId, verb: &str, scope: &str, affected: i64, reason: Option<&str>) -> Value {
        json!([by, verb, scope, affected, reason])
    }
}
