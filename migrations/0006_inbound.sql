-- What comes from Matrix: how far the sync has come, what it applied, who is no user of ours, and what still waits.

create table sync_state (
    sync_user text not null,
    next_batch text,
    owner uuid,
    leased_until timestamptz,
    epoch bigint not null,
    synced_at timestamptz,
    constraint sync_state_pkey primary key (sync_user),
    constraint sync_state_lease_check check ((owner is null) = (leased_until is null))
);
comment on table sync_state is 'How far each account has read what the homeserver has for it. One worker at a time leads.';
comment on column sync_state.sync_user is 'The Matrix user who syncs.';
comment on column sync_state.next_batch is 'The homeserver''s token: everything before it is applied. Moves in the transaction of the last of what it covers.';
comment on column sync_state.owner is 'The worker that leads; set until it hands over, also when its lease has lapsed.';
comment on column sync_state.leased_until is 'When its lease lapses.';
comment on column sync_state.epoch is 'Counts the leaders: the fencing token of every transaction that applies events.';
comment on column sync_state.synced_at is 'When the token last moved.';

create table received_events (
    conversation_id uuid not null,
    event_id text not null,
    kind text not null,
    subject_id uuid,
    revision integer,
    relates_to text,
    room_id text not null,
    sender text not null,
    sent_at_ms bigint not null,
    redacted boolean not null default false,
    received_at timestamptz not null,
    constraint received_events_pkey primary key (conversation_id, event_id),
    constraint received_events_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint received_events_kind_check
        check (kind in ('message', 'edit', 'redaction', 'reaction', 'call', 'member', 'void'))
);
create index received_events_subject_idx on received_events (conversation_id, subject_id) where subject_id is not null;
create index received_events_relates_to_idx on received_events (conversation_id, relates_to) where relates_to is not null;
comment on table received_events is 'Every event of others that was applied, for ever: what is in it is not applied again.';
comment on column received_events.conversation_id is 'The conversation.';
comment on column received_events.event_id is 'The event.';
comment on column received_events.kind is 'message, edit, redaction, reaction, call, member; void for what was refused or came without content, and never counts.';
comment on column received_events.subject_id is 'The message, reaction or call signal that it became, or that it changed.';
comment on column received_events.revision is 'The revision that an edit became.';
comment on column received_events.relates_to is 'The event that it edits, redacts or answers.';
comment on column received_events.room_id is 'The room that has it.';
comment on column received_events.sender is 'The Matrix user who sent it.';
comment on column received_events.sent_at_ms is 'When, by the homeserver: the newest edit counts. Milliseconds since 1970.';
comment on column received_events.redacted is 'It was redacted since: an edit no longer counts.';
comment on column received_events.received_at is 'When it was applied.';

create table sync_parked (
    conversation_id uuid not null,
    event_id text not null,
    parked_id uuid not null,
    cause text not null,
    relates_to text,
    event bytea not null,
    detail text,
    room_id text not null,
    sent_at_ms bigint not null,
    parked_at timestamptz not null,
    constraint sync_parked_pkey primary key (conversation_id, event_id),
    constraint sync_parked_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint sync_parked_cause_check check (cause in ('awaits_target', 'poison')),
    constraint sync_parked_relates_to_check check (cause <> 'awaits_target' or relates_to is not null)
);
create index sync_parked_relates_to_idx on sync_parked (conversation_id, relates_to) where relates_to is not null;
create index sync_parked_parked_at_idx on sync_parked (cause, parked_at);
comment on table sync_parked is 'Events that could not be applied: their target is not here yet, or they make no sense.';
comment on column sync_parked.conversation_id is 'The conversation.';
comment on column sync_parked.event_id is 'The event.';
comment on column sync_parked.parked_id is 'What its sealed text is bound to, UUID v7.';
comment on column sync_parked.cause is 'awaits_target: applied when that comes. poison: looked at by people.';
comment on column sync_parked.relates_to is 'The event that it waits for.';
comment on column sync_parked.event is 'The event as it came, sealed.';
comment on column sync_parked.detail is 'What is wrong with it, for people. Never content.';
comment on column sync_parked.room_id is 'The room that has it.';
comment on column sync_parked.sent_at_ms is 'When it was sent, by the homeserver, in milliseconds since 1970.';
comment on column sync_parked.parked_at is 'When it was parked.';

create table conversation_contacts (
    conversation_id uuid not null,
    contact_id uuid not null,
    matrix_user_id text not null,
    display_name text,
    present boolean not null,
    first_seen_at timestamptz not null,
    constraint conversation_contacts_pkey primary key (conversation_id, contact_id),
    constraint conversation_contacts_matrix_user_id_key unique (conversation_id, matrix_user_id),
    constraint conversation_contacts_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade
);
comment on table conversation_contacts is 'People in a conversation''s room who are no users of ours: of other servers, or without a place in our namespace.';
comment on column conversation_contacts.conversation_id is 'The conversation.';
comment on column conversation_contacts.contact_id is 'Id, UUID v5 of the Matrix user: the same person has the same in every conversation.';
comment on column conversation_contacts.matrix_user_id is 'Who they are on Matrix.';
comment on column conversation_contacts.display_name is 'What they call themselves there.';
comment on column conversation_contacts.present is 'Whether they are in the room now.';
comment on column conversation_contacts.first_seen_at is 'When we first heard of them.';

create table left_rooms (
    conversation_id uuid not null,
    matrix_room_id text not null,
    left_at timestamptz not null,
    constraint left_rooms_pkey primary key (conversation_id, matrix_room_id),
    constraint left_rooms_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade
);
create index left_rooms_room_idx on left_rooms (matrix_room_id);
comment on table left_rooms is 'Rooms that a conversation had before: what still comes from them, or may have been sent to them, is found by these.';
comment on column left_rooms.conversation_id is 'The conversation.';
comment on column left_rooms.matrix_room_id is 'The room.';
comment on column left_rooms.left_at is 'When the conversation went on elsewhere.';

comment on column matrix_room_mappings.predecessor_room_id is 'The newest of left_rooms, for the release before, which knows no more.';
insert into left_rooms (conversation_id, matrix_room_id, left_at)
select conversation_id, predecessor_room_id, created_at from matrix_room_mappings where predecessor_room_id is not null;

create table call_signals (
    conversation_id uuid not null,
    signal_id uuid not null,
    call_id uuid not null,
    matrix_call_id text not null,
    seq bigint not null,
    kind text not null,
    party_id text,
    author_id uuid not null,
    origin text not null,
    payload bytea,
    matrix_event_id text,
    matrix_room_id text,
    expires_at timestamptz,
    created_at timestamptz not null,
    constraint call_signals_pkey primary key (conversation_id, signal_id),
    constraint call_signals_seq_key unique (conversation_id, seq),
    constraint call_signals_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint call_signals_origin_check check (origin in ('nova', 'matrix')),
    constraint call_signals_kind_check check (kind in ('invite', 'candidates', 'answer', 'select_answer', 'negotiate',
        'sdp_stream_metadata_changed', 'reject', 'hangup'))
);
create index call_signals_call_idx on call_signals (conversation_id, call_id, seq);
create unique index call_signals_matrix_event_id on call_signals (conversation_id, matrix_event_id)
    where matrix_event_id is not null;
comment on table call_signals is 'What was said to set up, change and end calls, in order.';
comment on column call_signals.conversation_id is 'The conversation.';
comment on column call_signals.signal_id is 'Id, UUID v7.';
comment on column call_signals.call_id is 'The call: of one that was placed here its id, else a UUID v5 of conversation and Matrix id.';
comment on column call_signals.matrix_call_id is 'The call, as its events name it.';
comment on column call_signals.seq is 'Its place in the conversation.';
comment on column call_signals.kind is 'The event''s type without its m.call.';
comment on column call_signals.party_id is 'The device that said it.';
comment on column call_signals.author_id is 'The user or contact who said it.';
comment on column call_signals.origin is 'Where it was said: nova (our API) or matrix.';
comment on column call_signals.payload is 'The event''s content, sealed and bound to signal and revision 1; null once it was redacted.';
comment on column call_signals.matrix_event_id is 'Its Matrix event.';
comment on column call_signals.matrix_room_id is 'The room that has it.';
comment on column call_signals.expires_at is 'For an invite, when nobody may ring for it any more.';
comment on column call_signals.created_at is 'When it was said; for what came from Matrix, when its homeserver had it.';

alter table messages add column matrix_room_id text;
comment on column messages.matrix_room_id is 'The room of its event, for what came from Matrix.';

create or replace view message_details as
select m.conversation_id, m.message_id, m.seq, m.author_id, m.origin, m.revision, m.reply_to, m.created_at, m.edited_at,
    m.deleted_at, m.send_outbox_id, m.matrix_event_id, coalesce(m.matrix_room_id, r.matrix_room_id) as matrix_room_id,
    b.body,
    case
        when m.origin = 'matrix' then null
        when m.send_outbox_id is null then 'disabled'
        when s.outbox_id is not null then 'delivered'
        when d.outbox_id is not null then 'dead'
        when o.outbox_id is null then 'cancelled'
        when o.seq <= l.frozen_through or o.maybe_sent_at is not null then 'delivering'
        else 'pending'
    end as delivery,
    b.rich, m.kind, m.thread_of, c.matrix_user_id as contact_matrix_user_id, c.display_name as contact_display_name
from messages m
left join message_revisions b on b.conversation_id = m.conversation_id and b.message_id = m.message_id
    and b.revision = m.revision
left join sent_events s on s.conversation_id = m.conversation_id and s.outbox_id = m.send_outbox_id
left join dead_letters d on d.conversation_id = m.conversation_id and d.outbox_id = m.send_outbox_id
left join outbox o on o.conversation_id = m.conversation_id and o.outbox_id = m.send_outbox_id
left join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
left join matrix_room_mappings r on r.conversation_id = m.conversation_id
left join conversation_contacts c on c.conversation_id = m.conversation_id and c.contact_id = m.author_id;
