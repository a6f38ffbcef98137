-- What happened in a conversation, by time: what is rare has an index of its own. What is frequent is found by its id,
-- which is a UUID v7.

create index messages_edited_at_idx on messages (conversation_id, edited_at, message_id) where edited_at is not null;
create index messages_deleted_at_idx on messages (conversation_id, deleted_at, message_id) where deleted_at is not null;
create index calls_ended_at_idx on calls (conversation_id, ended_at, call_id) where ended_at is not null;
create index withdrawn_operations_withdrawn_at_idx on withdrawn_operations (conversation_id, withdrawn_at, outbox_id);

-- Groups are counted from the index alone, which has to have the column itself besides what stands for it.
drop index dead_letters_group_idx;
create index dead_letters_group_idx on dead_letters (cause, (coalesce(errcode, '')), kind, died_at, outbox_id) include (errcode);
