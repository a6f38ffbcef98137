-- Calls: what state each is in, which devices take part, and the signals that go to Matrix in a lane of their own.

create table calls (
    conversation_id uuid not null,
    call_id uuid not null,
    matrix_call_id text not null,
    seq bigint not null,
    origin text not null,
    status text not null,
    reason text,
    initiator_id uuid not null,
    invitee_id uuid,
    matrix_party_id text,
    answered_by uuid,
    answered_party_id text,
    answered_origin text,
    send_outbox_id uuid,
    matrix_invite_event_id text,
    created_at timestamptz not null,
    ring_until timestamptz not null,
    answered_at timestamptz,
    ended_at timestamptz,
    ended_by uuid,
    replaced_by uuid,
    sealed boolean not null default true,
    constraint calls_pkey primary key (conversation_id, call_id),
    constraint calls_seq_key unique (conversation_id, seq),
    constraint calls_conversation_fkey foreign key (conversation_id)
        references conversations (conversation_id) on delete cascade,
    constraint calls_origin_check check (origin in ('nova', 'matrix')),
    constraint calls_status_check check (status in ('ringing', 'active', 'ended')),
    constraint calls_reason_check check ((status = 'ended') = (reason is not null)),
    constraint calls_ended_at_check check ((status = 'ended') = (ended_at is not null)),
    constraint calls_answered_at_check check (status <> 'active' or answered_at is not null)
) with (fillfactor = 70);
create unique index idx_calls_matrix_invite_event_id on calls (conversation_id, matrix_invite_event_id)
    where matrix_invite_event_id is not null;
create index calls_call_id_idx on calls (call_id);
create index calls_newest_idx on calls (conversation_id, created_at, call_id);
create index calls_live_idx on calls (conversation_id) where status <> 'ended';
-- What still rings is found without looking at the rest.
create index calls_ringing_idx on calls (ring_until) where status = 'ringing';
-- And what goes on for longer than anybody talks.
create index calls_active_idx on calls (answered_at) where status = 'active';
-- What was said in calls that are long over goes; each of them is met once.
create index calls_over_idx on calls (ended_at) where status = 'ended' and sealed;
comment on table calls is 'Calls, the state of each. A row outlives its call: it is the history.';
comment on column calls.conversation_id is 'The conversation.';
comment on column calls.call_id is 'Id: UUID v7, for a call from Matrix a UUID v5 of conversation and Matrix id.';
comment on column calls.matrix_call_id is 'The call, as its events name it.';
comment on column calls.seq is 'Its place in the conversation.';
comment on column calls.origin is 'Where it was placed: nova (our API) or matrix.';
comment on column calls.status is 'ringing, active, ended.';
comment on column calls.reason is 'Why it ended: user_hangup, rejected, invite_timeout, ice_failed, ice_timeout, user_media_failed, user_busy, unknown_error, glare, left.';
comment on column calls.initiator_id is 'The user or contact who calls.';
comment on column calls.invitee_id is 'The user or contact who is called; null when everybody in the conversation is.';
comment on column calls.matrix_party_id is 'The device that calls.';
comment on column calls.answered_by is 'Who answered; null also when another device than was known counts.';
comment on column calls.answered_party_id is 'The device whose answer counts.';
comment on column calls.answered_origin is 'Where it was answered: nova or matrix.';
comment on column calls.send_outbox_id is 'The operation that sends the invite; null for a call from Matrix, and for one that was never meant for it.';
comment on column calls.matrix_invite_event_id is 'The Matrix event of the invite, once it is known.';
comment on column calls.created_at is 'When it was placed; for a call from Matrix, when its homeserver had it.';
comment on column calls.ring_until is 'When nobody may ring for it any more.';
comment on column calls.answered_at is 'When it was answered.';
comment on column calls.ended_at is 'When it ended.';
comment on column calls.ended_by is 'Who ended it; null when nobody did.';
comment on column calls.replaced_by is 'The call that it lost to, when two rang for each other at once.';
comment on column calls.sealed is 'Whether what was said in it is still kept, sealed.';

create table call_parties (
    conversation_id uuid not null,
    call_id uuid not null,
    party_id text not null,
    user_id uuid not null,
    origin text not null,
    joined_at timestamptz not null,
    constraint call_parties_pkey primary key (conversation_id, call_id, party_id),
    constraint call_parties_call_fkey foreign key (conversation_id, call_id)
        references calls (conversation_id, call_id) on delete cascade,
    constraint call_parties_origin_check check (origin in ('nova', 'matrix'))
);
comment on table call_parties is 'The devices that said something in a call: one row for each.';
comment on column call_parties.conversation_id is 'The conversation.';
comment on column call_parties.call_id is 'The call.';
comment on column call_parties.party_id is 'The device, as the call''s events name it.';
comment on column call_parties.user_id is 'The user or contact whose device it is.';
comment on column call_parties.origin is 'Where it speaks: nova (our API) or matrix.';
comment on column call_parties.joined_at is 'When it first spoke.';

alter table call_signals
    add column send_outbox_id uuid,
    add column detail text,
    add column announced boolean not null default true;
create index call_signals_send_outbox_id_idx on call_signals (conversation_id, send_outbox_id)
    where send_outbox_id is not null;
create index call_signals_unannounced_idx on call_signals (conversation_id, seq) where not announced;
comment on column call_signals.payload is 'The event''s content, without what every event of a call has if it was said here; sealed and bound to signal and revision 1; null for what needs none, and once it was redacted.';
comment on column call_signals.send_outbox_id is 'The operation that sends it; several of candidates may go with one. Null for what came from Matrix or is of no use there.';
comment on column call_signals.detail is 'Why, of a hangup; which party, of a select_answer.';
comment on column call_signals.announced is 'False until all of the batch that it came with is applied: nobody rings for a call that the same batch ends.';

alter table outbox drop constraint outbox_kind_check;
alter table outbox add constraint outbox_kind_check
    check (kind in ('message', 'edit', 'redact', 'react', 'invite', 'remove', 'call_invite', 'call_candidates',
        'call_answer', 'call_select_answer', 'call_negotiate', 'call_sdp_stream_metadata_changed', 'call_reject',
        'call_hangup'));
comment on column outbox.kind is 'message, edit, redact, react (sends); invite, remove (state operations); call_* (sends of a call''s lane).';
comment on column outbox.subject_id is 'What it is about: the message, the user for invite and remove, the call for what is sent in one.';

-- Whether a user was called and neither answered nor declined before the call was over.
create function call_missed(status text, reason text, answered_at timestamptz, initiator uuid, invitee uuid, reader uuid)
returns boolean language sql immutable parallel safe as $$
    select status = 'ended' and answered_at is null and reason not in ('rejected', 'glare')
        and reader <> initiator and coalesce(invitee = reader, true)
$$;
comment on function call_missed(text, text, timestamptz, uuid, uuid, uuid) is 'Whether a user missed a call.';

-- A call, with how far its invite has come. Where the row of its operation stands says it.
create view call_details as
select c.*, r.matrix_room_id,
    case
        when c.origin = 'matrix' then null
        when c.send_outbox_id is null then 'disabled'
        when s.outbox_id is not null then 'delivered'
        when d.outbox_id is not null then 'dead'
        when o.outbox_id is null then
            case when coalesce(c.answered_at, c.ended_at) < c.ring_until - interval '10 seconds' then 'cancelled'
                else 'expired' end
        when o.seq <= l.frozen_through or o.maybe_sent_at is not null then 'delivering'
        else 'pending'
    end as delivery
from calls c
left join sent_events s on s.conversation_id = c.conversation_id and s.outbox_id = c.send_outbox_id
left join dead_letters d on d.conversation_id = c.conversation_id and d.outbox_id = c.send_outbox_id
left join outbox o on o.conversation_id = c.conversation_id and o.outbox_id = c.send_outbox_id
left join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
left join matrix_room_mappings r on r.conversation_id = c.conversation_id;
comment on view call_details is 'Calls as they are shown, with the state of their invite''s delivery.';

alter table events drop constraint events_kind_check;
alter table events add constraint events_kind_check
    check (kind in ('message_new', 'message_edited', 'message_deleted', 'message_delivery', 'reaction_added',
        'reaction_removed', 'conversation_new', 'member_added', 'member_removed', 'call_signal', 'call_updated'));
comment on column events.subject_id is 'To what: a message, a reaction, a user (member_added, member_removed), the conversation itself, a call signal, a call.';
