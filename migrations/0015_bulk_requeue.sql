-- A message that comes back takes its edits and reactions along: most have none, and that is seen from a small index.
create index dead_letters_followers_idx on dead_letters (conversation_id, subject_id) where kind in ('edit', 'react');
