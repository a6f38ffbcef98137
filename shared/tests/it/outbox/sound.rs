//! What must hold after every step, and a picture of where everything stands.
use sqlx::Row as _;
use uuid::Uuid;

use super::world::{Lane, World};

/// Each yields a row for each violation, given conversations.
const LAWS: &str = "
with live as (select * from outbox where conversation_id = any($1)),
dead as (select * from dead_letters where conversation_id = any($1)),
sent as (select * from sent_events where conversation_id = any($1)),
given_up as (select * from withdrawn_operations where conversation_id = any($1)),
place as (
    select outbox_id from live union all select outbox_id from dead
    union all select outbox_id from sent union all select outbox_id from given_up
),
lane as (
    select l.*, (select count(*) from live o where o.conversation_id = l.conversation_id and o.lane_id = l.lane_id) as rows,
        (select o.due_at from live o where o.conversation_id = l.conversation_id and o.lane_id = l.lane_id
         order by o.seq limit 1) as first_due_at
    from lanes l where conversation_id = any($1)
)
select 'open counts the live rows' as law, lane_id::text as what from lane where open <> rows
union all
select 'a lane is due when it has work and is not held', lane_id::text from lane
where (due_at is null) <> (rows = 0 or hold is not null)
union all
select 'a lane is not due before its first row', lane_id::text from lane where due_at < first_due_at
union all
select 'a lane is due with its first row', lane_id::text from lane
where due_at > greatest(first_due_at, outbox_now() + interval '1 second', paused_until)
union all
select 'a lane is not due before its pause ends', lane_id::text from lane where due_at < paused_until
union all
select 'an operation stands in one place', outbox_id::text from place group by outbox_id having count(*) > 1
union all
select 'a deleted message has no dead letter', d.outbox_id::text
from dead d join messages m on m.conversation_id = d.conversation_id and m.message_id = d.subject_id
where m.deleted_at is not null
union all
select 'a deleted message has no text', r.message_id::text
from message_revisions r join messages m using (conversation_id, message_id)
where m.deleted_at is not null and r.conversation_id = any($1)
union all
select 'what may be changed in place carries text that exists', o.outbox_id::text
from live o join lane l using (conversation_id, lane_id)
join messages m on m.conversation_id = o.conversation_id and m.message_id = o.subject_id
where m.deleted_at is null and o.kind in ('message', 'edit') and o.seq > l.frozen_through and o.maybe_sent_at is null
    and not exists (
        select 1 from message_revisions r
        where r.conversation_id = o.conversation_id and r.message_id = o.subject_id and r.revision = o.revision
    )
union all
select 'the texts of a message leave in the order in which they were written', later.outbox_id::text
from live earlier join live later using (conversation_id, lane_id, subject_id)
where earlier.seq < later.seq and earlier.revision > later.revision
union all
select 'a reaction waits with its key, or to be closed before its redaction', o.outbox_id::text
from (
    select o.conversation_id, o.outbox_id, o.subject_id from live o join lane l using (conversation_id, lane_id)
    where o.kind = 'react' and o.seq > l.frozen_through and o.maybe_sent_at is null
        and not exists (
            select 1 from live r where r.conversation_id = o.conversation_id and r.target_outbox_id = o.outbox_id
        )
    union all
    select conversation_id, outbox_id, subject_id from dead where kind = 'react'
) o
join messages m on m.conversation_id = o.conversation_id and m.message_id = o.subject_id and m.deleted_at is null
where not exists (
    select 1 from message_reactions r
    where r.conversation_id = o.conversation_id and r.send_outbox_id = o.outbox_id and r.key is not null
)
union all
select 'a deleted message has no reactions', r.reaction_id::text
from message_reactions r join messages m using (conversation_id, message_id)
where m.deleted_at is not null and r.removed_at is null and r.conversation_id = any($1)
union all
select 'what may have been sent has a sender', outbox_id::text from live where maybe_sent_at is not null and sender is null
union all
select 'one redaction for each operation', target_outbox_id::text from (
    select target_outbox_id from live union all select target_outbox_id from sent
) t where target_outbox_id is not null group by target_outbox_id having count(*) > 1
";

const PICTURE: &str = "
with everything as (
    select 'live' as place, 1 as rank, seq, outbox_id, kind, revision, target_outbox_id,
        maybe_sent_at is not null as maybe_sent
    from outbox where conversation_id = $1
    union all
    select 'dead', 2, seq, outbox_id, kind, revision, target_outbox_id, maybe_sent_at is not null
    from dead_letters where conversation_id = $1
    union all
    select 'given up', 3, 0, outbox_id, kind, revision, null, true from withdrawn_operations where conversation_id = $1
    union all
    select 'sent', 4, 0, outbox_id, kind, revision, target_outbox_id, false
    from sent_events where conversation_id = $1
)
select e.place, concat_ws(' ', e.kind, e.revision, t.kind, t.revision) || case when e.maybe_sent then '?' else '' end
    as operation
from everything e left join everything t on t.outbox_id = e.target_outbox_id
order by e.rank, e.seq, e.outbox_id
";

impl World {
    /// Holds the whole database against the laws.
    pub(super) async fn sound(&self) {
        check(self, None).await;
    }
}

impl Lane {
    /// Holds this conversation against the laws.
    pub(super) async fn sound(&self) {
        check(&self.world, Some(self)).await;
    }

    /// Where each operation stands, in words: `live: message 1; dead: edit 2?`. A question mark says that it may have
    /// been sent.
    pub(super) async fn picture(&self) -> String {
        let rows = sqlx::query(PICTURE).bind(self.id.as_uuid()).fetch_all(&self.world.pool).await.unwrap();
        let mut picture = String::new();
        let mut last = String::new();
        for row in rows {
            let (place, operation): (String, String) = (row.get("place"), row.get("operation"));
            if place == last {
                picture += ", ";
            } else {
                if !picture.is_empty() {
                    picture += "; ";
                }
                picture += &place;
                picture += ": ";
            }
            picture += &operation;
            last = place;
        }
        picture
    }
}

async fn check(world: &World, lane: Option<&Lane>) {
    let conversations: Vec<Uuid> = match lane {
        Some(lane) => vec![lane.id.as_uuid()],
        None => sqlx::query_scalar("select conversation_id from conversations").fetch_all(&world.pool).await.unwrap(),
    };
    let broken = sqlx::query(LAWS).bind(conversations).fetch_all(&world.pool).await.unwrap();
    let broken: Vec<String> =
        broken.iter().map(|row| format!("{} ({})", row.get::<&str, _>("law"), row.get::<&str, _>("what"))).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
