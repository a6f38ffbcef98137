-- Messages of a thread that come before the message that begins it.

alter table received_events add column thread_root text;
create index received_events_thread_root_idx on received_events (conversation_id, thread_root)
    where thread_root is not null;
comment on column received_events.thread_root is 'The event that begins the thread of a message, where that was not here yet when the message came.';

create index messages_thread_of_idx on messages (conversation_id, thread_of) where thread_of is not null;
