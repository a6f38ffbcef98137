-- What clients need beside signalling: the homeserver's TURN servers, and how many calls may be placed.

create table turn_servers (
    service_user text not null,
    refresh_at timestamptz not null,
    answer_id uuid,
    uris text[],
    username text,
    password bytea,
    fetched_at timestamptz,
    expires_at timestamptz,
    constraint turn_servers_pkey primary key (service_user),
    constraint turn_servers_answer_check check ((fetched_at is null) = (uris is null)),
    constraint turn_servers_credentials_check check (
        (username is null) = (password is null) and (username is null) = (expires_at is null)
            and (username is null) = (answer_id is null) and (username is null or uris is not null)
    )
);
comment on table turn_servers is 'The TURN servers that the homeserver names, with credentials that expire.';
comment on column turn_servers.service_user is 'The Matrix user who asked.';
comment on column turn_servers.refresh_at is 'From when on a worker may ask again. Whoever does moves it first, so one of them does.';
comment on column turn_servers.answer_id is 'What the sealed password is bound to; new with each answer.';
comment on column turn_servers.uris is 'turn: and turns:. Empty where the homeserver has none; null until it has answered.';
comment on column turn_servers.username is 'The name by which the servers know us.';
comment on column turn_servers.password is 'Its password, sealed.';
comment on column turn_servers.fetched_at is 'When the homeserver last answered.';
comment on column turn_servers.expires_at is 'When the credentials are no longer good.';

create table call_allowances (
    subject_id uuid not null,
    role text not null,
    tokens double precision not null,
    counted_at timestamptz not null,
    constraint call_allowances_pkey primary key (subject_id, role),
    constraint call_allowances_role_check check (role in ('caller', 'callee')),
    constraint call_allowances_tokens_check check (tokens >= 0)
);
comment on table call_allowances is 'How many calls may be placed by whom and to whom: a bucket of tokens each, over all processes. Belongs to no conversation. Without a row a bucket is full.';
comment on column call_allowances.subject_id is 'The user or contact; for a call to a whole conversation, that.';
comment on column call_allowances.role is 'caller: calls placed by it. callee: calls placed to it.';
comment on column call_allowances.tokens is 'What was left when it was last counted; more comes with time.';
comment on column call_allowances.counted_at is 'When that was.';
