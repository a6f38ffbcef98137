-- Conversations, messages, and the outbox that carries them to Matrix.
--
-- Every key of what belongs to a conversation begins with conversation_id, so that the data can be distributed by it.
-- Rows of the outbox hold references only: the one copy of a text is the sealed body of a message revision.

-- The one clock of every lease and due time. A test's database replaces this function to move its clock.
create function outbox_now() returns timestamptz language sql stable parallel safe as $$ select statement_timestamp() $$;
comment on function outbox_now() is 'The clock of leases and due times. Stable, so that an index can be bounded by it.';

create table conversations (
    conversation_id uuid not null,
    name text,
    created_by uuid not null,
    created_at timestamptz not null,
    last_seq bigint not null,
    constraint conversations_pkey primary key (conversation_id),
    constraint conversations_last_seq_check check (last_seq >= 0)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
comment on table conversations is 'A group of members who write to each other. Every write locks its row first.';
comment on column conversations.conversation_id is 'Id, UUID v7.';
comment on column conversations.name is 'What people call it; becomes the name of its Matrix room.';
comment on column conversations.created_by is 'The user who created it.';
comment on column conversations.created_at is 'When it was created.';
comment on column conversations.last_seq is 'The newest sequence number handed out in it. Taken under this row''s lock, so commit order is sequence order.';

create table conversation_members (
    conversation_id uuid not null,
    user_id uuid not null,
    added_seq bigint not null,
    removed_seq bigint,
    constraint conversation_members_pkey primary key (conversation_id, user_id, added_seq),
    constraint conversation_members_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint conversation_members_removed_seq_check check (removed_seq > added_seq)
);
create unique index conversation_members_present_key on conversation_members (conversation_id, user_id) where removed_seq is null;
create index conversation_members_user_idx on conversation_members (user_id, conversation_id) where removed_seq is null;
comment on table conversation_members is 'Who belongs to a conversation, and from which sequence number to which: one row for each stay.';
comment on column conversation_members.conversation_id is 'The conversation.';
comment on column conversation_members.user_id is 'The member: the subject of a token. There is no table of users.';
comment on column conversation_members.added_seq is 'The sequence number at which the stay began.';
comment on column conversation_members.removed_seq is 'The sequence number at which the stay ended; null while it lasts.';

create table messages (
    conversation_id uuid not null,
    message_id uuid not null,
    seq bigint not null,
    author_id uuid not null,
    origin text not null,
    kind text not null,
    revision integer not null,
    reply_to uuid,
    send_outbox_id uuid,
    matrix_event_id text,
    created_at timestamptz not null,
    edited_at timestamptz,
    deleted_at timestamptz,
    constraint messages_pkey primary key (conversation_id, message_id),
    constraint messages_seq_key unique (conversation_id, seq),
    constraint messages_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint messages_origin_check check (origin in ('nova', 'matrix')),
    constraint messages_kind_check check (kind in ('text')),
    constraint messages_revision_check check (revision >= 1)
) with (fillfactor = 85);
-- Unique with the conversation: two writers of one event id meet here, and one of them wins.
create unique index idx_messages_matrix_event_id on messages (conversation_id, matrix_event_id) where matrix_event_id is not null;
create index messages_message_id_idx on messages (message_id);
comment on table messages is 'What was said. A row outlives its deletion as a tombstone without text.';
comment on column messages.conversation_id is 'The conversation.';
comment on column messages.message_id is 'Id, UUID v7.';
comment on column messages.seq is 'Its place in the conversation.';
comment on column messages.author_id is 'The user who wrote it.';
comment on column messages.origin is 'Where it was written: nova (our API) or matrix.';
comment on column messages.kind is 'What it is: text.';
comment on column messages.revision is 'The newest revision: 1 as sent, n after n - 1 edits.';
comment on column messages.reply_to is 'The message of the same conversation that it answers.';
comment on column messages.send_outbox_id is 'The operation that sends it; null when it was never meant for Matrix.';
comment on column messages.matrix_event_id is 'The Matrix event of its first revision, once the homeserver has named it.';
comment on column messages.created_at is 'When it was written.';
comment on column messages.edited_at is 'When it was last edited.';
comment on column messages.deleted_at is 'When it was deleted; no revision has a body since.';

create table message_revisions (
    conversation_id uuid not null,
    message_id uuid not null,
    revision integer not null,
    body bytea not null,
    created_at timestamptz not null,
    constraint message_revisions_pkey primary key (conversation_id, message_id, revision),
    constraint message_revisions_message_fkey foreign key (conversation_id, message_id)
        references messages (conversation_id, message_id) on delete cascade
);
comment on table message_revisions is 'The only copy of a text. Deleting a message deletes its rows.';
comment on column message_revisions.conversation_id is 'The conversation.';
comment on column message_revisions.message_id is 'The message.';
comment on column message_revisions.revision is '1 as sent, n after n - 1 edits.';
comment on column message_revisions.body is 'The text, sealed with the key ring and bound to these three ids.';
comment on column message_revisions.created_at is 'When this revision was written.';

create table matrix_room_mappings (
    conversation_id uuid not null,
    matrix_room_id text not null,
    predecessor_room_id text,
    created_at timestamptz not null,
    ready_at timestamptz,
    constraint matrix_room_mappings_pkey primary key (conversation_id),
    constraint matrix_room_mappings_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint matrix_room_mappings_matrix_room_id_key unique (matrix_room_id)
);
comment on table matrix_room_mappings is 'The Matrix room of a conversation.';
comment on column matrix_room_mappings.conversation_id is 'The conversation.';
comment on column matrix_room_mappings.matrix_room_id is 'The room. Opaque: since room version 12 it names no server.';
comment on column matrix_room_mappings.predecessor_room_id is 'The room that this one replaced: what may have been sent before that is looked for there.';
comment on column matrix_room_mappings.created_at is 'When the mapping was written, or the room last replaced.';
comment on column matrix_room_mappings.ready_at is 'When the room was found whole: marked as ours, with its settings and members. Nothing is sent before.';

create table lanes (
    conversation_id uuid not null,
    lane_id uuid not null,
    lane_class text not null,
    open integer not null,
    frozen_through bigint not null,
    due_at timestamptz,
    hold text,
    owner uuid,
    leased_until timestamptz,
    claimed_at timestamptz,
    epoch bigint not null,
    constraint lanes_pkey primary key (conversation_id, lane_id),
    constraint lanes_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint lanes_class_check check (lane_class in ('call', 'chat')),
    constraint lanes_open_check check (open >= 0),
    constraint lanes_due_check check ((due_at is null) = (open = 0 or hold is not null)),
    constraint lanes_lease_check check ((owner is null) = (leased_until is null) and (owner is null) = (claimed_at is null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- Only lanes with work that may go are in it: what is idle or held costs a claim nothing.
create index lanes_due_idx on lanes (lane_class, due_at) where due_at is not null;
comment on table lanes is 'The scope of order: a conversation''s chat, or one call''s signalling. What workers lease.';
comment on column lanes.conversation_id is 'The conversation.';
comment on column lanes.lane_id is 'The conversation''s own id for its chat lane, a call''s id for a call lane.';
comment on column lanes.lane_class is 'call or chat. Calls are claimed first.';
comment on column lanes.open is 'How many live operations it has.';
comment on column lanes.frozen_through is 'The last sequence number that was or may have been handed to a sender: what is at or below it is no longer changed in place.';
comment on column lanes.due_at is 'When its first live operation may be tried; null when there is none or the lane is held.';
comment on column lanes.hold is 'Why nothing of it is sent until someone acts; null when it may go.';
comment on column lanes.owner is 'The worker that leases it; set until that worker releases it, also when the lease has lapsed.';
comment on column lanes.leased_until is 'When the lease lapses. A lapsed lease is taken over, never renewed.';
comment on column lanes.claimed_at is 'When the owner claimed it: whatever it had handed out may have been sent from then on.';
comment on column lanes.epoch is 'Counts the claims: the fencing token of every write-back.';

create table outbox (
    conversation_id uuid not null,
    lane_id uuid not null,
    seq bigint not null,
    outbox_id uuid not null,
    kind text not null,
    subject_id uuid not null,
    revision integer,
    target_outbox_id uuid,
    enqueued_at timestamptz not null,
    due_at timestamptz not null,
    expires_at timestamptz,
    attempts integer not null,
    failures integer not null,
    first_failed_at timestamptz,
    last_failed_at timestamptz,
    maybe_sent_at timestamptz,
    sender text,
    device text,
    trace text,
    constraint outbox_pkey primary key (conversation_id, lane_id, seq),
    constraint outbox_id_key unique (conversation_id, outbox_id),
    constraint outbox_lane_fkey foreign key (conversation_id, lane_id)
        references lanes (conversation_id, lane_id) on delete cascade,
    constraint outbox_kind_check check (kind in ('message', 'edit', 'redact', 'invite', 'remove')),
    constraint outbox_revision_check check ((kind in ('message', 'edit')) = (revision is not null)),
    constraint outbox_target_check check ((kind = 'redact') = (target_outbox_id is not null)),
    constraint outbox_sender_check check ((sender is null) = (device is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index outbox_subject_idx on outbox (conversation_id, subject_id);
comment on table outbox is 'Live operations: what is still to be done on Matrix, in order within a lane. References only, no text.';
comment on column outbox.conversation_id is 'The conversation.';
comment on column outbox.lane_id is 'The lane.';
comment on column outbox.seq is 'Its place: the conversation''s sequence number of the write that it carries.';
comment on column outbox.outbox_id is 'Id, UUID v7: the transaction id of the send and the marker in its content. Never reused.';
comment on column outbox.kind is 'message, edit, redact (sends); invite, remove (state operations).';
comment on column outbox.subject_id is 'What it is about: the message, or the user for invite and remove.';
comment on column outbox.revision is 'Which revision of the message it carries.';
comment on column outbox.target_outbox_id is 'The operation whose event a redaction redacts.';
comment on column outbox.enqueued_at is 'When it was written.';
comment on column outbox.due_at is 'When it may be tried next.';
comment on column outbox.expires_at is 'When it is no longer worth sending.';
comment on column outbox.attempts is 'How many attempts failed by its own fault.';
comment on column outbox.failures is 'How many attempts in a row failed, rate limits apart: what the next wait grows with.';
comment on column outbox.first_failed_at is 'When an attempt first failed for a reason that may be its own: the start of its time budget.';
comment on column outbox.last_failed_at is 'When an attempt last failed: whatever was delivered since shows that the homeserver is well.';
comment on column outbox.maybe_sent_at is 'The earliest attempt whose end is unknown: it may stand in the room since.';
comment on column outbox.sender is 'The Matrix user who sends it; fixed at the first claim.';
comment on column outbox.device is 'The device whose transaction ids the homeserver remembers; fixed at the first claim.';
comment on column outbox.trace is 'The trace context of the request that wrote it (W3C traceparent).';

create table sent_events (
    conversation_id uuid not null,
    outbox_id uuid not null,
    event_id text not null,
    kind text not null,
    subject_id uuid not null,
    revision integer,
    target_outbox_id uuid,
    room_id text not null,
    sender text not null,
    sent_at timestamptz not null,
    constraint sent_events_pkey primary key (conversation_id, outbox_id),
    constraint sent_events_event_id_key unique (conversation_id, event_id),
    constraint sent_events_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade
);
create index sent_events_subject_idx on sent_events (conversation_id, subject_id);
comment on table sent_events is 'Every event that we sent, for ever: the evidence that an operation reached its room.';
comment on column sent_events.conversation_id is 'The conversation.';
comment on column sent_events.outbox_id is 'The operation.';
comment on column sent_events.event_id is 'The event, as the homeserver named it.';
comment on column sent_events.kind is 'The operation''s kind.';
comment on column sent_events.subject_id is 'The operation''s subject.';
comment on column sent_events.revision is 'The revision that was sent.';
comment on column sent_events.target_outbox_id is 'For a redaction, the operation that it redacted.';
comment on column sent_events.room_id is 'The room that has it.';
comment on column sent_events.sender is 'The Matrix user who sent it.';
comment on column sent_events.sent_at is 'When the evidence was written.';

create table attempts (
    conversation_id uuid not null,
    outbox_id uuid not null,
    attempted_at timestamptz not null,
    worker_id uuid not null,
    outcome text not null,
    http_status integer,
    errcode text,
    detail text,
    duration_ms integer not null
) partition by range (attempted_at);
create index attempts_outbox_idx on attempts (conversation_id, outbox_id, attempted_at);
-- Takes what no day's partition covers, so that an attempt can always be written down.
create table attempts_default partition of attempts default;
comment on table attempts is 'Every try of every operation, appended. Partitioned by day; whole days are dropped.';
comment on column attempts.conversation_id is 'The conversation.';
comment on column attempts.outbox_id is 'The operation.';
comment on column attempts.attempted_at is 'When the attempt began, by the database''s clock at settling less its duration.';
comment on column attempts.worker_id is 'The worker process.';
comment on column attempts.outcome is 'How it ended, in the words of the verdict table.';
comment on column attempts.http_status is 'The homeserver''s status, when it answered.';
comment on column attempts.errcode is 'The Matrix error code, when it gave one.';
comment on column attempts.detail is 'What went wrong, for people. Never content, never a token.';
comment on column attempts.duration_ms is 'How long it took, in milliseconds.';

create table dead_letters (
    conversation_id uuid not null,
    lane_id uuid not null,
    seq bigint not null,
    outbox_id uuid not null,
    kind text not null,
    subject_id uuid not null,
    revision integer,
    target_outbox_id uuid,
    enqueued_at timestamptz not null,
    expires_at timestamptz,
    attempts integer not null,
    maybe_sent_at timestamptz,
    sender text,
    device text,
    trace text,
    cause text not null,
    errcode text,
    hint text not null,
    died_at timestamptz not null,
    constraint dead_letters_pkey primary key (conversation_id, lane_id, seq),
    constraint dead_letters_id_key unique (conversation_id, outbox_id),
    constraint dead_letters_lane_fkey foreign key (conversation_id, lane_id)
        references lanes (conversation_id, lane_id) on delete cascade,
    constraint dead_letters_cause_check check (cause in ('own_fault', 'parent_dead', 'gave_up'))
);
create index dead_letters_subject_idx on dead_letters (conversation_id, subject_id);
create index dead_letters_died_at_idx on dead_letters (died_at);
comment on table dead_letters is 'Operations that will not be tried again by themselves. Requeue brings one back to its place.';
comment on column dead_letters.conversation_id is 'The conversation.';
comment on column dead_letters.lane_id is 'The lane that it left.';
comment on column dead_letters.seq is 'Its place, to which a requeue brings it back.';
comment on column dead_letters.outbox_id is 'The operation.';
comment on column dead_letters.kind is 'As in outbox.';
comment on column dead_letters.subject_id is 'As in outbox.';
comment on column dead_letters.revision is 'As in outbox.';
comment on column dead_letters.target_outbox_id is 'As in outbox.';
comment on column dead_letters.enqueued_at is 'As in outbox.';
comment on column dead_letters.expires_at is 'As in outbox.';
comment on column dead_letters.attempts is 'As in outbox.';
comment on column dead_letters.maybe_sent_at is 'As in outbox: set when it may stand in the room all the same.';
comment on column dead_letters.sender is 'As in outbox.';
comment on column dead_letters.device is 'As in outbox.';
comment on column dead_letters.trace is 'As in outbox.';
comment on column dead_letters.cause is 'own_fault (the homeserver will never take it), parent_dead (what it depends on is dead), gave_up (its time budget ended).';
comment on column dead_letters.errcode is 'The Matrix error code of the last attempt.';
comment on column dead_letters.hint is 'What an operator can do about it.';
comment on column dead_letters.died_at is 'When it left its lane.';

-- Operations that may stand in a room although they are no longer live: an operator discarded them, or their message was
-- deleted and a lookup did not find them. Late evidence and later deletions must still find them.
create table withdrawn_operations (
    conversation_id uuid not null,
    lane_id uuid not null,
    outbox_id uuid not null,
    kind text not null,
    subject_id uuid not null,
    revision integer,
    maybe_sent_at timestamptz not null,
    sender text not null,
    device text not null,
    reason text not null,
    withdrawn_at timestamptz not null,
    constraint withdrawn_operations_pkey primary key (conversation_id, outbox_id),
    constraint withdrawn_operations_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint withdrawn_operations_reason_check check (reason in ('discarded', 'deleted', 'not_found'))
);
create index withdrawn_operations_subject_idx on withdrawn_operations (conversation_id, subject_id);
comment on table withdrawn_operations is 'Operations that may have been sent and will never be tried again.';
comment on column withdrawn_operations.conversation_id is 'The conversation.';
comment on column withdrawn_operations.lane_id is 'The lane that it was in.';
comment on column withdrawn_operations.outbox_id is 'The operation.';
comment on column withdrawn_operations.kind is 'As in outbox.';
comment on column withdrawn_operations.subject_id is 'As in outbox.';
comment on column withdrawn_operations.revision is 'As in outbox.';
comment on column withdrawn_operations.maybe_sent_at is 'As in outbox.';
comment on column withdrawn_operations.sender is 'As in outbox.';
comment on column withdrawn_operations.device is 'As in outbox.';
comment on column withdrawn_operations.reason is 'discarded by an operator; deleted with its message while dead; not_found when looked up.';
comment on column withdrawn_operations.withdrawn_at is 'When it left.';

-- When a lane is due: with its first live operation, but never in the past. A lane that is given back goes to the end of
-- the line, behind lanes that waited meanwhile, and the due index grows only at its end.
create function outbox_due(conversation uuid, lane uuid, at timestamptz) returns timestamptz language sql stable as $$
    select greatest(due_at, at) from outbox where conversation_id = conversation and lane_id = lane order by seq limit 1
$$;
comment on function outbox_due(uuid, uuid, timestamptz) is 'The due time of a lane that is not held, as of the given time; null when nothing is live.';
