-- The event log: what clients who are connected, or come back, are told of. References only; what they are shown is read
-- from the rows themselves at that time, so that no deleted text is told again.

create table events (
    xid xid8 not null default pg_current_xact_id(),
    event_id bigint generated always as identity,
    conversation_id uuid not null,
    kind text not null,
    subject_id uuid not null,
    created_at timestamptz not null default outbox_now(),
    constraint events_pkey primary key (xid, event_id),
    constraint events_kind_check check (kind in ('message_new', 'message_edited', 'message_deleted', 'message_delivery',
        'reaction_added', 'reaction_removed', 'conversation_new', 'member_added', 'member_removed', 'call_signal'))
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0);
-- Who comes back reads the log of their conversations, however much happened in all others.
create index events_conversation_idx on events (conversation_id, xid, event_id);
-- Who was removed is told so, and nothing else of a conversation that is no longer theirs.
create index events_removed_idx on events (subject_id, xid, event_id) where kind = 'member_removed';
comment on table events is 'What happened, in an order in which nothing is ever inserted before what may be read: (xid, event_id), of transactions older than every running one.';
comment on column events.xid is 'The transaction that wrote it. Read only below pg_snapshot_xmin(pg_current_snapshot()).';
comment on column events.event_id is 'Its place within the transaction.';
comment on column events.conversation_id is 'The conversation, whose members are told.';
comment on column events.kind is 'What happened.';
comment on column events.subject_id is 'To what: a message, a reaction, a user (member_added, member_removed), the conversation itself, a call signal.';
comment on column events.created_at is 'When it was written, for retention and for the log''s lag.';

create table event_log_floor (
    only_row boolean not null default true,
    xid xid8 not null,
    event_id bigint not null,
    moved_at timestamptz not null,
    constraint event_log_floor_pkey primary key (only_row),
    constraint event_log_floor_only_row_check check (only_row)
);
insert into event_log_floor (xid, event_id, moved_at) values ('0', 0, outbox_now());
comment on table event_log_floor is 'One row: where the event log begins. Moved in the transaction that deletes what lies before.';
comment on column event_log_floor.only_row is 'True: there is one.';
comment on column event_log_floor.xid is 'Events at or before (xid, event_id) are gone: who has read less than that has missed something.';
comment on column event_log_floor.event_id is 'See xid.';
comment on column event_log_floor.moved_at is 'When it was last moved.';
