//! What an operation relates to: the message that is answered, the thread that it stands in, the message that is reacted
//! to. Read at a claim, for those operations only that relate to something, in a statement for each kind of relation.

use std::{collections::HashMap, time::Instant};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::signalling::{self, CallToSend};
use crate::ids::{CallId, ConversationId, EventId, MessageId, OutboxId, ReactionId, RoomId, UserId};

/// A message that another one answers, or whose thread it stands in.
#[derive(Debug, Clone)]
pub struct Related {
    /// The operation that sends it; none for what came from Matrix or was never meant for it.
    pub outbox_id: Option<OutboxId>,
    /// Its event, once known, and the room that has it.
    pub event: Option<(EventId, RoomId)>,
    /// True when it was deleted.
    pub deleted: bool,
}

/// A reaction to be sent.
#[derive(Debug, Clone)]
pub struct ReactionToSend {
    /// The reaction.
    pub reaction_id: ReactionId,
    /// Who reacts.
    pub reactor_id: UserId,
    /// With what, sealed; none once it was removed.
    pub key: Option<Vec<u8>>,
}

/// What an edit's message said before it.
#[derive(Debug, Clone)]
pub struct Previous {
    /// In which revision.
    pub revision: i32,
    /// Sealed.
    pub body: Vec<u8>,
    /// True for more than a text.
    pub rich: bool,
}

/// What the operations of a claim relate to.
#[derive(Debug, Default)]
pub(super) struct Relations {
    messages: HashMap<(ConversationId, MessageId), Related>,
    reactions: HashMap<(ConversationId, OutboxId), ReactionToSend>,
    previous: HashMap<(ConversationId, OutboxId), Previous>,
    calls: HashMap<(ConversationId, OutboxId), CallToSend>,
}

/// What is to be read.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    messages: (Vec<Uuid>, Vec<Uuid>),
    reactions: (Vec<Uuid>, Vec<Uuid>),
    edits: (Vec<Uuid>, Vec<Uuid>),
    calls: (Vec<Uuid>, Vec<Uuid>, Vec<Uuid>),
}

impl Wanted {
    /// A message that another one answers, or whose thread it stands in.
    pub(super) fn message(&mut self, conversation_id: ConversationId, message_id: Option<MessageId>) {
        if let Some(message_id) = message_id {
            self.messages.0.push(conversation_id.as_uuid());
            self.messages.1.push(message_id.as_uuid());
        }
    }

    /// The reaction that an operation sends.
    pub(super) fn reaction(&mut self, conversation_id: ConversationId, outbox_id: OutboxId) {
        self.reactions.0.push(conversation_id.as_uuid());
        self.reactions.1.push(outbox_id.as_uuid());
    }

    /// What was sent before an edit.
    pub(super) fn before(&mut self, conversation_id: ConversationId, edit: OutboxId) {
        self.edits.0.push(conversation_id.as_uuid());
        self.edits.1.push(edit.as_uuid());
    }

    /// What an operation says in a call.
    pub(super) fn call(&mut self, conversation_id: ConversationId, outbox_id: OutboxId, call_id: CallId) {
        self.calls.0.push(conversation_id.as_uuid());
        self.calls.1.push(outbox_id.as_uuid());
        self.calls.2.push(call_id.as_uuid());
    }

    pub(super) async fn read(
        &self,
        conn: &mut PgConnection,
        now: OffsetDateTime,
        read_at: Instant,
    ) -> Result<Relations, sqlx::Error> {
        let mut relations = Relations::default();
        if !self.messages.0.is_empty() {
            relations.messages = self.read_messages(conn).await?;
        }
        if !self.reactions.0.is_empty() {
            relations.reactions = self.read_reactions(conn).await?;
        }
        if !self.edits.0.is_empty() {
            relations.previous = self.read_previous(conn).await?;
        }
        relations.calls = signalling::read(conn, &self.calls, now, read_at).await?;
        Ok(relations)
    }

    async fn read_messages(
        &self,
        conn: &mut PgConnection,
    ) -> Result<HashMap<(ConversationId, MessageId), Related>, sqlx::Error> {
        let rows = sqlx::query!(
            r#"
            select m.conversation_id as "conversation_id: ConversationId", m.message_id as "message_id: MessageId",
                m.send_outbox_id as "send_outbox_id: OutboxId", m.deleted_at is not null as "deleted!",
                coalesce(s.event_id, case when m.origin = 'matrix' then m.matrix_event_id end) as "event_id: EventId",
                coalesce(s.room_id, case when m.origin = 'matrix' then m.matrix_room_id end) as "room_id: RoomId"
            from unnest($1::uuid[], $2::uuid[]) as c (conversation_id, message_id)
            join messages m on m.conversation_id = c.conversation_id and m.message_id = c.message_id
            left join sent_events s on s.conversation_id = m.conversation_id and s.outbox_id = m.send_outbox_id
            "#,
            &self.messages.0,
            &self.messages.1,
        )
        .fetch_all(conn)
        .await?;
        let related = rows.into_iter().map(|row| {
            let event = row.event_id.zip(row.room_id);
            let related = Related { outbox_id: row.send_outbox_id, event, deleted: row.deleted };
            ((row.conversation_id, row.message_id), related)
        });
        Ok(related.collect())
    }

    async fn read_reactions(
        &self,
        conn: &mut PgConnection,
    ) -> Result<HashMap<(ConversationId, OutboxId), ReactionToSend>, sqlx::Error> {
        let rows = sqlx::query!(
            r#"
            select r.conversation_id as "conversation_id: ConversationId", c.outbox_id as "outbox_id!: OutboxId",
                r.reaction_id as "reaction_id: ReactionId", r.reactor_id as "reactor_id: UserId", r.key
            from unnest($1::uuid[], $2::uuid[]) as c (conversation_id, outbox_id)
            join message_reactions r on r.conversation_id = c.conversation_id and r.send_outbox_id = c.outbox_id
            "#,
            &self.reactions.0,
            &self.reactions.1,
        )
        .fetch_all(conn)
        .await?;
        let reactions = rows.into_iter().map(|row| {
            let reaction = ReactionToSend { reaction_id: row.reaction_id, reactor_id: row.reactor_id, key: row.key };
            ((row.conversation_id, row.outbox_id), reaction)
        });
        Ok(reactions.collect())
    }

    /// The newest older revision that is in the room, or goes there before the edit.
    async fn read_previous(
        &self,
        conn: &mut PgConnection,
    ) -> Result<HashMap<(ConversationId, OutboxId), Previous>, sqlx::Error> {
        let rows = sqlx::query!(
            r#"
            select c.conversation_id as "conversation_id!: ConversationId", c.outbox_id as "outbox_id!: OutboxId",
                before.revision as "revision!", before.body as "body!", before.rich as "rich!"
            from unnest($1::uuid[], $2::uuid[]) as c (conversation_id, outbox_id)
            join outbox o on o.conversation_id = c.conversation_id and o.outbox_id = c.outbox_id
            cross join lateral (
                select r.revision, r.body, r.rich from message_revisions r
                where r.conversation_id = o.conversation_id and r.message_id = o.subject_id and r.revision < o.revision
                    and (
                        exists (
                            select 1 from sent_events s
                            where s.conversation_id = o.conversation_id and s.subject_id = o.subject_id
                                and s.revision = r.revision
                        ) or exists (
                            select 1 from outbox b
                            where b.conversation_id = o.conversation_id and b.subject_id = o.subject_id
                                and b.revision = r.revision and b.seq < o.seq
                        )
                    )
                order by r.revision desc
                limit 1
            ) before
            "#,
            &self.edits.0,
            &self.edits.1,
        )
        .fetch_all(conn)
        .await?;
        let previous = rows.into_iter().map(|row| {
            let previous = Previous { revision: row.revision, body: row.body, rich: row.rich };
            ((row.conversation_id, row.outbox_id), previous)
        });
        Ok(previous.collect())
    }
}

impl Relations {
    pub(super) fn message(&self, conversation_id: ConversationId, message_id: Option<MessageId>) -> Option<Related> {
        self.messages.get(&(conversation_id, message_id?)).cloned()
    }

    pub(super) fn reaction(&self, conversation_id: ConversationId, outbox_id: OutboxId) -> Option<ReactionToSend> {
        self.reactions.get(&(conversation_id, outbox_id)).cloned()
    }

    pub(super) fn call(&self, conversation_id: ConversationId, outbox_id: OutboxId) -> Option<CallToSend> {
        self.calls.get(&(conversation_id, outbox_id)).cloned()
    }

    pub(super) fn before(&self, conversation_id: ConversationId, edit: OutboxId) -> Option<Previous> {
        self.previous.get(&(conversation_id, edit)).cloned()
    }
}
