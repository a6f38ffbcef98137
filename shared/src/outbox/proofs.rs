//! The evidence that settling brings: of many operations at once, and onto the messages and reactions that they sent.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Evidence, Kind};
use crate::{
    calls::SignalKind,
    failpoint::{Point, reach},
    ids::{ConversationId, OutboxId},
};

/// Evidence of many operations, column by column.
#[derive(Default)]
pub(super) struct SentColumns {
    conversations: Vec<Uuid>,
    ids: Vec<Uuid>,
    events: Vec<String>,
    kinds: Vec<String>,
    subjects: Vec<Uuid>,
    revisions: Vec<Option<i32>>,
    targets: Vec<Option<Uuid>>,
    rooms: Vec<String>,
    senders: Vec<String>,
}

impl SentColumns {
    pub(super) fn push(&mut self, conversation_id: ConversationId, evidence: Evidence) {
        self.conversations.push(conversation_id.as_uuid());
        self.ids.push(evidence.outbox_id.as_uuid());
        self.events.push(evidence.event_id.as_str().to_owned());
        self.kinds.push(evidence.kind.as_str().to_owned());
        self.subjects.push(evidence.subject_id);
        self.revisions.push(evidence.revision);
        self.targets.push(evidence.target_outbox_id.map(OutboxId::as_uuid));
        self.rooms.push(evidence.room_id.as_str().to_owned());
        self.senders.push(evidence.sender);
    }

    pub(super) async fn insert(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.ids.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            r#"
            insert into sent_events (conversation_id, outbox_id, event_id, kind, subject_id, revision,
                target_outbox_id, room_id, sender, sent_at)
            select c.*, outbox_now()
            from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::integer[], $7::uuid[],
                $8::text[], $9::text[]) c
            on conflict do nothing
            "#,
            &self.conversations,
            &self.ids,
            &self.events,
            &self.kinds,
            &self.subjects,
            &self.revisions as &[Option<i32>],
            &self.targets as &[Option<Uuid>],
            &self.rooms,
            &self.senders,
        )
        .execute(&mut *conn)
        .await?;
        reach(Point::SettleProved);
        sqlx::query!(
            r#"
            with told as (
                update messages m
                set matrix_event_id = s.event_id
                from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as c (conversation_id, outbox_id, subject_id)
                join sent_events s on s.conversation_id = c.conversation_id and s.outbox_id = c.outbox_id
                where m.conversation_id = c.conversation_id
                    and m.message_id = c.subject_id
                    and m.send_outbox_id = c.outbox_id
                    and m.matrix_event_id is null
                returning m.conversation_id, m.message_id
            )
            insert into events (conversation_id, kind, subject_id)
            select conversation_id, 'message_delivery', message_id from told
            "#,
            &self.conversations,
            &self.ids,
            &self.subjects,
        )
        .execute(&mut *conn)
        .await?;
        if self.kinds.iter().any(|kind| kind == Kind::Call(SignalKind::Invite).as_str()) {
            sqlx::query!(
                r#"
                with told as (
                    update calls c
                    set matrix_invite_event_id = s.event_id
                    from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as x (conversation_id, outbox_id, subject_id)
                    join sent_events s on s.conversation_id = x.conversation_id and s.outbox_id = x.outbox_id
                    where c.conversation_id = x.conversation_id
                        and c.call_id = x.subject_id
                        and c.send_outbox_id = x.outbox_id
                        and c.matrix_invite_event_id is null
                    returning c.conversation_id, c.call_id
                )
                insert into events (conversation_id, kind, subject_id)
                select conversation_id, 'call_updated', call_id from told
                "#,
                &self.conversations,
                &self.ids,
                &self.subjects,
            )
            .execute(&mut *conn)
            .await?;
        }
        if self.kinds.iter().any(|kind| kind == Kind::React.as_str()) {
            sqlx::query!(
                r#"
                update message_reactions r
                set matrix_event_id = s.event_id, matrix_room_id = s.room_id
                from unnest($1::uuid[], $2::uuid[]) as c (conversation_id, outbox_id)
                join sent_events s on s.conversation_id = c.conversation_id and s.outbox_id = c.outbox_id
                where r.conversation_id = c.conversation_id
                    and r.send_outbox_id = c.outbox_id
                    and r.matrix_event_id is null
                "#,
                &self.conversations,
                &self.ids,
            )
            .execute(conn)
            .await?;
        }
        reach(Point::SettleTold);
        Ok(())
    }
}
