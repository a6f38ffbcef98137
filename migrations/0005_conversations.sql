-- Replies, threads, formatted text, mentions, media by reference, and reactions.

alter table messages drop constraint messages_kind_check;
alter table messages add constraint messages_kind_check
    check (kind in ('text', 'notice', 'emote', 'image', 'audio', 'video', 'file'));
alter table messages add column thread_of uuid;
comment on column messages.kind is 'What it is: text, notice (said by a program), emote (what its author does); or image, audio, video, file, whose media stands in its content.';
comment on column messages.thread_of is 'The first message of the thread that it belongs to: one of the same conversation that belongs to none itself.';

alter table message_revisions add column rich boolean not null default false;
comment on column message_revisions.body is 'What it says, sealed with the key ring and bound to these three ids: its text, or all of its content as JSON.';
comment on column message_revisions.rich is 'True when the body is JSON with more than a text: formatted text, mentions, media.';

create or replace view message_details as
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
    end as delivery,
    b.rich, m.kind, m.thread_of
from messages m
left join message_revisions b on b.conversation_id = m.conversation_id and b.message_id = m.message_id
    and b.revision = m.revision
left join sent_events s on s.conversation_id = m.conversation_id and s.outbox_id = m.send_outbox_id
left join dead_letters d on d.conversation_id = m.conversation_id and d.outbox_id = m.send_outbox_id
left join outbox o on o.conversation_id = m.conversation_id and o.outbox_id = m.send_outbox_id
left join lanes l on l.conversation_id = o.conversation_id and l.lane_id = o.lane_id
left join matrix_room_mappings r on r.conversation_id = m.conversation_id;

create table message_reactions (
    conversation_id uuid not null,
    reaction_id uuid not null,
    message_id uuid not null,
    reactor_id uuid not null,
    origin text not null,
    key bytea,
    send_outbox_id uuid,
    matrix_event_id text,
    matrix_room_id text,
    created_at timestamptz not null,
    removed_at timestamptz,
    constraint message_reactions_pkey primary key (conversation_id, reaction_id),
    constraint message_reactions_message_fkey foreign key (conversation_id, message_id)
        references messages (conversation_id, message_id) on delete cascade,
    constraint message_reactions_origin_check check (origin in ('nova', 'matrix')),
    constraint message_reactions_key_check check ((key is null) = (removed_at is not null))
) with (fillfactor = 85);
create index message_reactions_present_idx on message_reactions (conversation_id, message_id, reaction_id) where removed_at is null;
-- An operation carries one reaction.
create unique index message_reactions_send_key on message_reactions (conversation_id, send_outbox_id) where send_outbox_id is not null;
-- Two writers of one event id meet here, and one of them wins.
create unique index message_reactions_event_key on message_reactions (conversation_id, matrix_event_id) where matrix_event_id is not null;
comment on table message_reactions is 'Who reacted to which message with what. A row outlives its removal without its key.';
comment on column message_reactions.conversation_id is 'The conversation.';
comment on column message_reactions.reaction_id is 'Id, UUID v7.';
comment on column message_reactions.message_id is 'The message.';
comment on column message_reactions.reactor_id is 'Who reacted.';
comment on column message_reactions.origin is 'Where: nova (our API) or matrix.';
comment on column message_reactions.key is 'With what: an emoji or a short text, sealed with the key ring and bound to conversation and reaction; null once it is removed.';
comment on column message_reactions.send_outbox_id is 'The operation that sends it; null when it was never meant for Matrix, and while another user''s reaction with the same key stands there for both.';
comment on column message_reactions.matrix_event_id is 'Its Matrix event, once the homeserver has named it.';
comment on column message_reactions.matrix_room_id is 'The room that has the event.';
comment on column message_reactions.created_at is 'When it was made.';
comment on column message_reactions.removed_at is 'When it was removed, or its message deleted.';

-- What a reaction needs to be sent is found by its operation.
alter table outbox drop constraint outbox_kind_check;
alter table outbox add constraint outbox_kind_check
    check (kind in ('message', 'edit', 'redact', 'react', 'invite', 'remove'));
comment on column outbox.kind is 'message, edit, redact, react (sends); invite, remove (state operations).';
comment on column outbox.subject_id is 'What it is about: the message, or the user for invite and remove.';
