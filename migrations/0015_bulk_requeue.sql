-- The parts of a task are found before its row is written: what takes long is done by a transaction that has no id yet.
alter table operator_task_parts alter constraint operator_task_parts_task_fkey deferrable initially deferred;
-- A message that comes back takes its edits and reactions along: most have none, and that is seen from a small index.
create index dead_letters_followers_idx on dead_letters (conversation_id, subject_id) where kind in ('edit', 'react');
