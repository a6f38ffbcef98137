-- What was compared with Matrix and not found there.

alter table sent_events add column lost_at timestamptz;
comment on column sent_events.lost_at is 'When it was found missing in its room and sent again, or not worth it; null while it stands there as far as we know. What was sent again is another operation.';

alter table operator_tasks add column counts jsonb not null default '{}';
comment on column operator_tasks.counts is 'How many findings there were of each kind, also of those that are not kept.';
