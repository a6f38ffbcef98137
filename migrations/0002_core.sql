-- Edits, deletes and members; idempotency keys; pauses.

-- A message as it is shown: its newest text, and how far its first revision has come. Where the row of its operation
-- stands says it; there is no column that could disagree.
create view message_details as
select m.conversation_id, m.message_id, m.seq, m.author_id, m.origin, m.revision, m.reply_to, m.created_at, m.edited_at,
    m.deleted_at, m.send_outbox_id, m.matrix_event_id, r.matrix_room_id, b.body,
    case
        when m.origin = 'matrix' then null
        when m.send_outbox_id is null then 'disabled'
        when s.outbox_id is not null then 'delivered'
        when d.outbox_id is not null then 'dead'
        when o.outbox_id is null then 'cancelled'
        when o.seq <= l.frozen_through or o.maybe_sent_at is not null then 'delivering'
        else 'pending'
    end as delivery
from messages m
left join message_revisions b on b.conversation_id = m.conversation_id and b.message_id = m.message_id
    and b.revision = m.revision
left join sent_events s on s.conversation_id = m.conversation_id and s.outbox_id = m.send_outbox_id
left join dead_letters d on d.conversation_id = m.conversation_id and d.outbox_id = m.send_outbox_id
left join outbox o on o.conversation_id = m.conversation_id and o.outbox_id = m.send_outbox_id
left join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
left join matrix_room_mappings r on r.conversation_id = m.conversation_id;
comment on view message_details is 'Messages as they are shown, with the state of their delivery.';

create table idempotency_keys (
    user_id uuid not null,
    route text not null,
    idempotency_key text not null,
    fingerprint bytea not null,
    http_status integer not null,
    resource_id uuid not null,
    created_at timestamptz not null,
    constraint idempotency_keys_pkey primary key (user_id, route, idempotency_key)
);
create index idempotency_keys_created_at_idx on idempotency_keys (created_at);
comment on table idempotency_keys is 'Requests that were answered, for a day: a repetition is answered with the same resource, as it is then.';
comment on column idempotency_keys.user_id is 'Who asked.';
comment on column idempotency_keys.route is 'What was asked: method and path.';
comment on column idempotency_keys.idempotency_key is 'The client''s key.';
comment on column idempotency_keys.fingerprint is 'A keyed hash of the request: tells another request apart, and no text.';
comment on column idempotency_keys.http_status is 'The status that was answered.';
comment on column idempotency_keys.resource_id is 'What was created.';
comment on column idempotency_keys.created_at is 'When.';

create table pauses (
    scope text not null,
    reason text not null,
    paused_until timestamptz,
    created_by text not null,
    created_at timestamptz not null,
    constraint pauses_pkey primary key (scope),
    constraint pauses_scope_check check (scope in ('all', 'call', 'chat'))
);
comment on table pauses is 'What nothing is claimed of. Read at each claim, so that a pause with an end needs nobody to resume it.';
comment on column pauses.scope is 'all, or one class of lanes.';
comment on column pauses.reason is 'Why, for people.';
comment on column pauses.paused_until is 'Until when; null until somebody resumes.';
comment on column pauses.created_by is 'Who paused.';
comment on column pauses.created_at is 'When.';

-- What may expire is found without looking at the rest.
create index outbox_expires_at_idx on outbox (expires_at) where expires_at is not null;
