-- The operators' desk: what dead letters are searched and grouped by, bulk work as tasks, who works, and whole timelines.

-- Errors are searched by any part of their text. The extension comes with PostgreSQL and is trusted: who may create in the
-- database may create it.
create extension if not exists pg_trgm;

-- Whose an operation is: who wrote the message, reacted, is invited or removed, or spoke in the call.
create function outbox_user(conversation uuid, kind text, subject uuid, outbox uuid) returns uuid language sql stable as $$
    select case
        when kind in ('invite', 'remove') then subject
        when kind = 'react' then (
            select r.reactor_id from message_reactions r where r.conversation_id = conversation and r.send_outbox_id = outbox
        )
        when kind like 'call\_%' then coalesce(
            (
                select s.author_id from call_signals s
                where s.conversation_id = conversation and s.send_outbox_id = outbox
                order by s.seq
                limit 1
            ),
            (select c.initiator_id from calls c where c.conversation_id = conversation and c.call_id = subject)
        )
        else (select m.author_id from messages m where m.conversation_id = conversation and m.message_id = subject)
    end
$$;
comment on function outbox_user(uuid, text, uuid, uuid) is
    'Whose an operation is: the author of its message, who reacted, the member, or who spoke in the call.';

alter table dead_letters add column user_id uuid;
alter table dead_letters add column detail text;
alter table dead_letters add column died_xid xid8 not null default pg_current_xact_id();
comment on column dead_letters.user_id is 'Whose it is, as of its death; see outbox_user.';
comment on column dead_letters.detail is 'What went wrong at its last attempt, for people. Never content, never a token.';
comment on column dead_letters.died_xid is
    'The transaction in which it died: whoever read the dead letters before its commit has not seen it, whatever died_at says.';
update dead_letters set user_id = outbox_user(conversation_id, kind, subject_id, outbox_id);

create index dead_letters_user_newest_idx on dead_letters (user_id, died_at, outbox_id) where user_id is not null;
create index dead_letters_detail_idx on dead_letters using gin (detail gin_trgm_ops) where detail is not null;
-- Groups are found one by one, however many letters each has.
create index dead_letters_group_idx on dead_letters (cause, (coalesce(errcode, '')), kind, died_at, outbox_id);

-- Why an operation waits is said with the code of its last failure, and found by it.
alter table outbox add column last_errcode text;
comment on column outbox.last_errcode is 'The Matrix error code of its last attempt that failed, if it had one.';
create index outbox_last_errcode_idx on outbox (last_errcode, outbox_id) where last_errcode is not null;

-- What happened in a conversation, by time.
create index attempts_conversation_idx on attempts (conversation_id, attempted_at);
create index received_events_received_at_idx on received_events (conversation_id, received_at, event_id);

-- Work that is too much for one transaction, done step by step by whichever process comes first.
create table operator_tasks (
    task_id uuid not null,
    kind text not null,
    arguments jsonb not null,
    as_of text,
    conversation_id uuid,
    rate integer,
    created_by text not null,
    reason text,
    created_at timestamptz not null,
    status text not null,
    due_at timestamptz,
    owner uuid,
    leased_until timestamptz,
    expected bigint not null,
    done bigint not null,
    refused bigint not null,
    findings jsonb not null,
    error text,
    ended_at timestamptz,
    ended_by text,
    constraint operator_tasks_pkey primary key (task_id),
    constraint operator_tasks_kind_check check (kind in ('requeue', 'verify', 'repair')),
    constraint operator_tasks_status_check check (status in ('running', 'done', 'cancelled', 'failed')),
    constraint operator_tasks_due_check check ((status = 'running') = (due_at is not null)),
    constraint operator_tasks_ended_check check ((status = 'running') = (ended_at is null)),
    constraint operator_tasks_lease_check check ((owner is null) = (leased_until is null)),
    constraint operator_tasks_rate_check check (rate > 0),
    constraint operator_tasks_counts_check check (expected >= 0 and done >= 0 and refused >= 0)
);
create index operator_tasks_due_idx on operator_tasks (due_at) where due_at is not null;
create index operator_tasks_conversation_idx on operator_tasks (conversation_id, task_id) where conversation_id is not null;
comment on table operator_tasks is 'Bulk work and work on Matrix that operators asked for, with its progress.';
comment on column operator_tasks.task_id is 'Id, UUID v7.';
comment on column operator_tasks.kind is 'requeue (dead letters by a filter), verify (compare with Matrix), repair (mend a conversation on Matrix).';
comment on column operator_tasks.arguments is 'What was asked for: the filter, or which repair. Never content.';
comment on column operator_tasks.as_of is 'For a requeue: the snapshot whose dead letters it takes, as the dry run named it.';
comment on column operator_tasks.conversation_id is 'The conversation, where it is about one.';
comment on column operator_tasks.rate is 'How many operations a second at most; null without a limit.';
comment on column operator_tasks.created_by is 'Who asked for it.';
comment on column operator_tasks.reason is 'Why.';
comment on column operator_tasks.created_at is 'When.';
comment on column operator_tasks.status is 'running, done, cancelled by an operator, or failed.';
comment on column operator_tasks.due_at is 'When its next step may be taken; null once it has ended.';
comment on column operator_tasks.owner is 'The process that takes a step which asks the homeserver; null while none does.';
comment on column operator_tasks.leased_until is 'When another process may take that step over.';
comment on column operator_tasks.expected is 'How much there was to do when it began.';
comment on column operator_tasks.done is 'How much is done: operations that came back, conversations that were compared.';
comment on column operator_tasks.refused is 'How much could not be done.';
comment on column operator_tasks.findings is 'What was found or could not be done, for people and programs; bounded.';
comment on column operator_tasks.error is 'Why it failed.';
comment on column operator_tasks.ended_at is 'When it ended.';
comment on column operator_tasks.ended_by is 'Who cancelled it.';

create table operator_task_parts (
    task_id uuid not null,
    conversation_id uuid not null,
    expected integer not null,
    constraint operator_task_parts_pkey primary key (task_id, conversation_id),
    constraint operator_task_parts_task_fkey foreign key (task_id) references operator_tasks (task_id) on delete cascade
);
comment on table operator_task_parts is 'What is left of a task, conversation by conversation: a row goes when its conversation is done.';
comment on column operator_task_parts.task_id is 'The task.';
comment on column operator_task_parts.conversation_id is 'The conversation.';
comment on column operator_task_parts.expected is 'How many operations of it the task was to touch when it began.';

-- Who works: renewed every few seconds by each worker.
create table workers (
    worker_id uuid not null,
    host text not null,
    version text not null,
    started_at timestamptz not null,
    seen_at timestamptz not null,
    circuit text not null,
    token_accepted boolean not null,
    sync_leader boolean not null,
    slots integer not null,
    busy integer not null,
    delivered bigint not null,
    failed bigint not null,
    delivered_per_minute double precision not null,
    constraint workers_pkey primary key (worker_id),
    constraint workers_circuit_check check (circuit in ('closed', 'ramping_up', 'open', 'disabled'))
);
comment on table workers is 'The worker processes, as each last told of itself.';
comment on column workers.worker_id is 'The process: a new one at each start.';
comment on column workers.host is 'The machine''s name.';
comment on column workers.version is 'Its release.';
comment on column workers.started_at is 'When it started.';
comment on column workers.seen_at is 'When it last told of itself; gone when that is more than a few rounds ago.';
comment on column workers.circuit is 'closed (all is well), ramping_up, open (the homeserver is down: nothing is claimed), disabled (Matrix is switched off).';
comment on column workers.token_accepted is 'Whether the homeserver accepts its token.';
comment on column workers.sync_leader is 'Whether it is the one that reads what happens on Matrix.';
comment on column workers.slots is 'How many lanes it works on at most.';
comment on column workers.busy is 'How many lanes it works on.';
comment on column workers.delivered is 'Operations delivered since it started.';
comment on column workers.failed is 'Attempts that failed since it started.';
comment on column workers.delivered_per_minute is 'Operations delivered in the last minute.';

-- More acts, each bound to its task where it is part of one, and a trail that nobody can rewrite.
alter table audit_log drop constraint audit_log_verb_check;
alter table audit_log add constraint audit_log_verb_check
    check (verb in ('requeue', 'discard', 'expire', 'complete', 'pause', 'resume', 'verify', 'repair', 'cancel'));
alter table audit_log drop constraint audit_log_scope_check;
alter table audit_log add constraint audit_log_scope_check
    check (scope in ('operations', 'all', 'class', 'conversation', 'lane', 'held', 'filter', 'task'));
alter table audit_log add column task_id uuid;
comment on column audit_log.verb is 'requeue, discard, expire, complete, pause, resume, verify, repair, or cancel (of a task).';
comment on column audit_log.scope is 'What kind of thing it acted on: operations, everything, a class, a conversation, a lane, all lanes that were held, what a filter chose, or a task.';
comment on column audit_log.task_id is 'The task that it began, ended or was a step of.';
create index audit_log_verb_idx on audit_log (verb, acted_at, audit_id);
create index audit_log_acted_by_idx on audit_log (acted_by, acted_at, audit_id);
create index audit_log_task_idx on audit_log (task_id, acted_at, audit_id) where task_id is not null;

create function audit_log_stands() returns trigger language plpgsql as $$
begin
    raise exception 'audit_log is append-only' using errcode = 'insufficient_privilege';
end
$$;
comment on function audit_log_stands() is 'Refuses to change or delete what stands in the trail.';
create trigger audit_log_append_only before update or delete or truncate on audit_log
    for each statement execute function audit_log_stands();
