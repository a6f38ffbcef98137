//! Credentials of TURN servers: made from the secret that we share with them, or fetched from the homeserver by a worker
//! and read by the API.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha1::Sha1;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    ids::{CallId, ConversationId, MatrixUserId, MessageId, UserId},
    seal::{KeyRing, Place, SealError},
};

/// How soon a homeserver that did not answer is asked again, and for how long whoever asks has the word.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The longest time between two questions, also to a homeserver that has no TURN servers: it may get some.
const ASK_AT_LEAST_EVERY: Duration = Duration::from_mins(10);

/// Credentials with less than this left are not given to anyone: a call could not be set up with them.
const SHORTEST_USE: Duration = Duration::from_mins(1);

/// Credentials of one user, as TURN servers take them.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// `<unix time of their end>:<user>[:<call>]`
    pub username: String,
    /// What proves that we made it.
    pub password: SecretString,
}

/// Makes credentials from the secret that a TURN server shares with us, by the scheme of coturn's REST API.
pub fn credentials(
    secret: &SecretString,
    good_until: OffsetDateTime,
    user_id: UserId,
    call_id: Option<CallId>,
) -> Credentials {
    let until = good_until.unix_timestamp();
    let username = match call_id {
        Some(call_id) => format!("{until}:{user_id}:{call_id}"),
        None => format!("{until}:{user_id}"),
    };
    Credentials { password: password(secret, &username), username }
}

fn password(secret: &SecretString, username: &str) -> SecretString {
    // A key of any length will do, so there is no error.
    let mac = Hmac::<Sha1>::new_from_slice(secret.expose_secret().as_bytes())
        .map(|mac| mac.chain_update(username.as_bytes()).finalize().into_bytes());
    SecretString::from(mac.map(|mac| BASE64.encode(mac)).unwrap_or_default())
}

/// What a homeserver says of its TURN servers.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Where they are. Empty when it has none.
    pub uris: Vec<String>,
    /// By what they know us.
    pub credentials: Option<Credentials>,
    /// For how long.
    pub ttl: Duration,
}

/// Takes the word to ask the homeserver. False when somebody has asked and it is not time to ask again.
pub async fn may_ask(pool: &PgPool, service_user: &MatrixUserId) -> Result<bool, sqlx::Error> {
    let taken = sqlx::query!(
        r#"
        insert into turn_servers as t (service_user, refresh_at)
        values ($1, outbox_now() + make_interval(secs => $2))
        on conflict (service_user) do update set refresh_at = excluded.refresh_at
        where t.refresh_at <= outbox_now()
        "#,
        service_user.as_str(),
        ASK_AGAIN_AFTER.as_secs_f64(),
    )
    .execute(pool)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Keeps what the homeserver answered; it is asked again when half of the credentials' time is over.
pub async fn keep(
    pool: &PgPool,
    keys: &KeyRing,
    service_user: &MatrixUserId,
    answer: &Answer,
) -> Result<(), TurnError> {
    let answer_id = Uuid::now_v7();
    let sealed = match &answer.credentials {
        Some(credentials) => Some(keys.seal(place(answer_id), credentials.password.expose_secret())?),
        None => None,
    };
    let known = answer.credentials.is_some();
    let next = if known { (answer.ttl / 2).min(ASK_AT_LEAST_EVERY) } else { ASK_AT_LEAST_EVERY };
    sqlx::query!(
        r#"
        update turn_servers
        set refresh_at = outbox_now() + make_interval(secs => $2), answer_id = $3, uris = $4, username = $5,
            password = $6, fetched_at = outbox_now(), expires_at = outbox_now() + make_interval(secs => $7)
        where service_user = $1
        "#,
        service_user.as_str(),
        next.max(Duration::from_secs(1)).as_secs_f64(),
        known.then_some(answer_id),
        &answer.uris,
        answer.credentials.as_ref().map(|credentials| credentials.username.as_str()),
        sealed,
        known.then(|| answer.ttl.as_secs_f64()),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The homeserver's TURN servers, as clients may use them.
#[derive(Debug, Clone)]
pub struct OfHomeserver {
    /// Where they are.
    pub uris: Vec<String>,
    /// By what they know us.
    pub credentials: Credentials,
    /// When that is no longer good.
    pub expires_at: OffsetDateTime,
}

/// Why they could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The password could not be opened or sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database refused or did not answer.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What the homeserver said last, if it can still be used.
pub async fn of_homeserver(conn: &mut PgConnection, keys: &KeyRing) -> Result<Option<OfHomeserver>, TurnError> {
    let row = sqlx::query!(
        r#"
        select answer_id as "answer_id!", uris as "uris!", username as "username!", password as "password!",
            expires_at as "expires_at!"
        from turn_servers
        where expires_at > outbox_now() + make_interval(secs => $1) and uris <> '{}'
        order by fetched_at desc
        limit 1
        "#,
        SHORTEST_USE.as_secs_f64(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let password = SecretString::from(keys.open(place(row.answer_id), &row.password)?);
    let credentials = Credentials { username: row.username, password };
    Ok(Some(OfHomeserver { uris: row.uris, credentials, expires_at: row.expires_at }))
}

/// It belongs to no conversation.
fn place(answer_id: Uuid) -> Place {
    Place { conversation_id: ConversationId::from(Uuid::nil()), message_id: MessageId::from(answer_id), revision: 1 }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    const USER: &str = "1da8df05-aab0-4f2f-8d6b-96eb0284e3d9";
    const CALL: &str = "01a20119-2a83-73cb-9d97-e7f58b62e4c4";

    // printf %s "$username" | openssl dgst -sha1 -hmac "$secret" -binary | base64
    #[test]
    fn credentials_are_those_that_coturn_makes_of_the_same_secret() {
        let (user_id, call_id) = (USER.parse().unwrap(), CALL.parse().unwrap());
        let until = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        for (secret, call_id, username, password) in [
            ("north", None, format!("1800000000:{USER}"), "qZx8WE3zsP23yqtrlsJAG4gbwws="),
            ("north", Some(call_id), format!("1800000000:{USER}:{CALL}"), "8syINyu04ZZDZ6PLjU2SoK01HfI="),
            ("south", Some(call_id), format!("1800000000:{USER}:{CALL}"), "RtXIH9q05KIc+VmBMYV8oOVDt6o="),
        ] {
            let made = credentials(&SecretString::from(secret), until, user_id, call_id);
            assert_eq!((made.username, made.password.expose_secret()), (username, password));
        }
    }
}
