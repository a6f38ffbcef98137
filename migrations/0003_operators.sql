-- What operators do: timed pauses of a lane, the trail of their acts, and the indexes by which they find things.

-- A pause that ends by itself is a time that is read wherever a due time is set: nobody has to resume it.
alter table lanes add column paused_until timestamptz;
alter table lanes add column pause_reason text;
alter table lanes add constraint lanes_pause_check check ((paused_until is null) = (pause_reason is null));
comment on column lanes.paused_until is 'An operator wants nothing sent before this time; may be past. Also holds for what is enqueued into an empty lane.';
comment on column lanes.pause_reason is 'Why it is paused, for people; null when paused_until is.';

-- The one definition of when a lane is due, for whoever knows the due time of its first operation.
create function outbox_lane_due(first_due_at timestamptz, at timestamptz, hold text, paused_until timestamptz)
returns timestamptz language sql immutable parallel safe as $$
    select case when hold is null and first_due_at is not null then greatest(first_due_at, at, paused_until) end
$$;
comment on function outbox_lane_due(timestamptz, timestamptz, text, timestamptz) is
    'The due time of a lane: its first operation''s, but not before the given time nor before the end of its pause; null when it is held or empty.';

-- Hold and pause are given, not read: an update of the lane passes those of the row that it writes.
create function outbox_due(conversation uuid, lane uuid, at timestamptz, hold text, paused_until timestamptz)
returns timestamptz language sql stable as $$
    select outbox_lane_due(
        (select due_at from outbox where conversation_id = conversation and lane_id = lane order by seq limit 1),
        at, hold, paused_until)
$$;
comment on function outbox_due(uuid, uuid, timestamptz, text, timestamptz) is
    'The due time of a lane as of the given time, by its first live operation. In the past it never is: a lane that is given back goes to the end of the line.';

-- As the release before calls it, with the lane locked by an earlier statement: it keeps to pauses too.
create or replace function outbox_due(conversation uuid, lane uuid, at timestamptz) returns timestamptz language sql stable as $$
    select outbox_due(conversation, lane, at, null, l.paused_until)
    from lanes l where l.conversation_id = conversation and l.lane_id = lane
$$;

create index lanes_held_idx on lanes (conversation_id, lane_id) where hold is not null;
create index lanes_paused_idx on lanes (paused_until, lane_id) where paused_until is not null;

-- An operator has an operation's bare id, from a log or an event. None of these columns ever changes.
create index outbox_id_idx on outbox (outbox_id);
create index dead_letters_id_idx on dead_letters (outbox_id);
create index sent_events_id_idx on sent_events (outbox_id);
create index withdrawn_operations_id_idx on withdrawn_operations (outbox_id);

-- Dead letters are listed newest first, all of them or by one of their traits.
drop index dead_letters_died_at_idx;
create index dead_letters_newest_idx on dead_letters (died_at, outbox_id);
create index dead_letters_conversation_newest_idx on dead_letters (conversation_id, died_at, outbox_id);
create index dead_letters_kind_newest_idx on dead_letters (kind, died_at, outbox_id);
create index dead_letters_cause_newest_idx on dead_letters (cause, died_at, outbox_id);
create index dead_letters_errcode_newest_idx on dead_letters (errcode, died_at, outbox_id) where errcode is not null;

create table audit_log (
    audit_id uuid not null,
    acted_at timestamptz not null,
    acted_by text not null,
    verb text not null,
    scope text not null,
    conversation_id uuid,
    arguments jsonb not null,
    affected bigint not null,
    reason text,
    constraint audit_log_pkey primary key (audit_id),
    constraint audit_log_verb_check check (verb in ('requeue', 'discard', 'pause', 'resume')),
    constraint audit_log_scope_check check (scope in ('operations', 'all', 'class', 'conversation', 'lane', 'held')),
    constraint audit_log_affected_check check (affected >= 0)
);
create index audit_log_newest_idx on audit_log (acted_at, audit_id);
create index audit_log_conversation_idx on audit_log (conversation_id, acted_at, audit_id) where conversation_id is not null;
comment on table audit_log is 'Every act of an operator, written in the transaction of the act. Rows are never changed or deleted.';
comment on column audit_log.audit_id is 'Id, UUID v7.';
comment on column audit_log.acted_at is 'When.';
comment on column audit_log.acted_by is 'Who, by the name that they gave.';
comment on column audit_log.verb is 'requeue, discard, pause or resume.';
comment on column audit_log.scope is 'What kind of thing it acted on: operations, everything, a class, a conversation, a lane, or all lanes that were held.';
comment on column audit_log.conversation_id is 'The conversation that it acted on, if it was one.';
comment on column audit_log.arguments is 'What was asked for: ids, filters, until when. Never content.';
comment on column audit_log.affected is 'How many operations came back or went, lanes were paused or go on. For a pause of everything or of a class: 1.';
comment on column audit_log.reason is 'Why, in the operator''s words.';
