-- What those on call look at.

-- Operations that may have arrived, and since when. Few are: an operation enters it when nobody knows how an attempt ended,
-- once, and what is delivered at the first attempt never does. So claims and settles of what goes well write nothing to it.
create index outbox_maybe_sent_at_idx on outbox (maybe_sent_at) where maybe_sent_at is not null;
