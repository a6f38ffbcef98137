//! Configuration: every option is an environment variable and a flag, is checked at start, and every mistake is
//! reported at once.
//!
//! The `*Args` types are what the command line and the environment gave, as text; [`Checked`] turns them into the
//! `*Config` types, in which nothing is left to be wrong. A secret option has a `…_FILE` twin that names a file.

use std::{net::SocketAddr, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::{ids::MatrixUserId, seal::KeyRing};

mod calls;
pub mod programs;
mod sync;
mod trace;
mod websocket;

pub use calls::{
    CallLimitArgs, CallLimits, IceArgs, IceConfig, MatrixVoipConfig, TurnConfig, TurnCredentials, VoipArgs, VoipVersion,
};
pub use sync::{InvitePolicy, SyncArgs, SyncConfig};
pub use trace::{TraceArgs, TraceConfig};
pub use websocket::{WebSocketArgs, WebSocketConfig};

/// What is wrong with one option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {reason}")]
pub struct ConfigProblem {
    /// The environment variable.
    pub option: &'static str,
    /// What is wrong and what would be right. Never a secret's value.
    pub reason: String,
}

/// Where and how to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Options of every program that uses the database.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DatabaseArgs {
    /// Postgres, as postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// A file that holds the above
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "PATH")]
    pub database_url_file: Option<String>,
    /// Connections that this process may hold [default: 16]
    #[arg(long, env = "DATABASE_MAX_CONNECTIONS", value_name = "N")]
    pub database_max_connections: Option<String>,
}

/// The keys that seal content.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ContentKeysArgs {
    /// Keys that seal message text, newest first: <key id>:<base64 of 32 bytes>[,…]
    #[arg(long, env = "CONTENT_KEYS", hide_env_values = true, value_name = "KEYS")]
    pub content_keys: Option<String>,
    /// A file that holds the above
    #[arg(long, env = "CONTENT_KEYS_FILE", value_name = "PATH")]
    pub content_keys_file: Option<String>,
}

/// How to log.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LogArgs {
    /// json or text; `RUST_LOG` chooses what is logged [default: json]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// The secret that signs tokens.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct JwtArgs {
    /// HS256 secret of the callers' tokens, at least 32 bytes
    #[arg(long, env = "JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub jwt_secret: Option<String>,
    /// A file that holds the above
    #[arg(long, env = "JWT_SECRET_FILE", value_name = "PATH")]
    pub jwt_secret_file: Option<String>,
}

/// Whether Matrix is used at all.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MatrixEnabledArgs {
    /// Whether new messages go to Matrix: true or false [default: false]
    #[arg(long, env = "MATRIX_ENABLED", value_name = "BOOL")]
    pub matrix_enabled: Option<String>,
}

/// The homeserver and the account that speaks there.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MatrixArgs {
    /// The homeserver's base URL, for example `http://matrix-synapse:8008`
    #[arg(long, env = "MATRIX_HOMESERVER_URL", value_name = "URL")]
    pub matrix_homeserver_url: Option<String>,
    /// The service account, for example @nova-service:staging.nova.internal
    #[arg(long, env = "MATRIX_SERVICE_USER", value_name = "USER")]
    pub matrix_service_user: Option<String>,
    /// The service account's access token
    #[arg(long, env = "MATRIX_ACCESS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub matrix_access_token: Option<String>,
    /// A file that holds the above
    #[arg(long, env = "MATRIX_ACCESS_TOKEN_FILE", value_name = "PATH")]
    pub matrix_access_token_file: Option<String>,
    /// How the device shows in lists of sessions [default: matrix-outbox]
    #[arg(long, env = "MATRIX_DEVICE_NAME", value_name = "NAME")]
    pub matrix_device_name: Option<String>,
    /// The device that the token must belong to; unset: whichever it belongs to
    #[arg(long, env = "MATRIX_DEVICE_ID", value_name = "ID")]
    pub matrix_device_id: Option<String>,
    /// Start with a token that has no device, though a retry may then double a message: true or false [default: false]
    #[arg(long, env = "MATRIX_ALLOW_TOKEN_WITHOUT_DEVICE", value_name = "BOOL")]
    pub matrix_allow_token_without_device: Option<String>,
    /// How to read what happens there.
    #[command(flatten)]
    pub sync: SyncArgs,
    /// Whether calls go there.
    #[command(flatten)]
    pub voip: VoipArgs,
}

/// How the API listens and wakes workers.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ApiArgs {
    /// Where to listen; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "API_LISTEN", value_name = "HOST:PORT")]
    pub api_listen: Option<String>,
    /// Whether to wake workers and other API processes by NOTIFY after a commit, and to be woken; without, all poll: true
    /// or false [default: true]
    #[arg(long, env = "OUTBOX_NOTIFY", value_name = "BOOL")]
    pub outbox_notify: Option<String>,
    /// Live operations of one conversation past which new messages are refused with 429 [default: 10000]
    #[arg(long, env = "OUTBOX_LANE_LIMIT", value_name = "N")]
    pub outbox_lane_limit: Option<String>,
    /// Requests that one user may make of this process in a second, ten seconds' worth of them at once; 0 for no limit
    /// [default: 0]
    #[arg(long, env = "API_REQUESTS_PER_SECOND", value_name = "N")]
    pub api_requests_per_second: Option<String>,
}

/// How the worker claims and sends.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DeliveryArgs {
    /// Where to serve metrics and health; port 0 picks a free one [default: 127.0.0.1:9090]
    #[arg(long, env = "WORKER_LISTEN", value_name = "HOST:PORT")]
    pub worker_listen: Option<String>,
    /// How long a claimed lane is leased [default: 30s]
    #[arg(long, env = "OUTBOX_LEASE", value_name = "DURATION")]
    pub outbox_lease: Option<String>,
    /// How often to look for due work when nothing wakes the worker [default: 1s]
    #[arg(long, env = "OUTBOX_POLL", value_name = "DURATION")]
    pub outbox_poll: Option<String>,
    /// Lanes that this process sends for at once [default: 128]
    #[arg(long, env = "OUTBOX_SLOTS", value_name = "N")]
    pub outbox_slots: Option<String>,
    /// How long one request to the homeserver may take [default: 10s]
    #[arg(long, env = "OUTBOX_HTTP_TIMEOUT", value_name = "DURATION")]
    pub outbox_http_timeout: Option<String>,
    /// The first wait after a failed attempt; doubles up to five minutes [default: 1s]
    #[arg(long, env = "OUTBOX_BACKOFF", value_name = "DURATION")]
    pub outbox_backoff: Option<String>,
    /// How often to ask a homeserver that is down whether it is back [default: 1s]
    #[arg(long, env = "OUTBOX_PROBE", value_name = "DURATION")]
    pub outbox_probe: Option<String>,
    /// How long after an attempt a look-up that does not find it is believed [default: 1m]
    #[arg(long, env = "OUTBOX_LOOKUP_DELAY", value_name = "DURATION")]
    pub outbox_lookup_delay: Option<String>,
    /// For how long the homeserver remembers a transaction id [default: 20h]
    #[arg(long, env = "OUTBOX_DEDUPE_WINDOW", value_name = "DURATION")]
    pub outbox_dedupe_window: Option<String>,
    /// Whether to wake API processes by NOTIFY after a commit; without, they poll: true or false [default: true]
    #[arg(long, env = "OUTBOX_NOTIFY", value_name = "BOOL")]
    pub outbox_notify: Option<String>,
    /// How long a client may be away and still be told all that it missed [default: 24h]
    #[arg(long, env = "EVENTS_RETENTION", value_name = "DURATION")]
    pub events_retention: Option<String>,
}

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `postgres://…`
    pub url: SecretString,
    /// Connections that this process may hold.
    pub max_connections: u32,
}

/// The homeserver and the account that speaks there.
#[derive(Debug, Clone)]
pub struct MatrixConfig {
    /// Base URL.
    pub homeserver_url: Url,
    /// The service account.
    pub service_user: MatrixUserId,
    /// Its access token.
    pub access_token: SecretString,
    /// How its device shows in lists of sessions.
    pub device_name: String,
    /// The device that the token must belong to.
    pub device_id: Option<String>,
    /// Start although the homeserver cannot remember transactions for the token.
    pub allow_token_without_device: bool,
    /// How to read what happens there.
    pub sync: SyncConfig,
    /// Whether calls go there.
    pub voip: MatrixVoipConfig,
}

/// How the worker claims and sends.
#[derive(Debug, Clone)]
pub struct DeliveryConfig {
    /// Where to serve metrics and health.
    pub listen: SocketAddr,
    /// How long a claimed lane is leased.
    pub lease: Duration,
    /// How often to look for due work when nothing wakes the worker.
    pub poll: Duration,
    /// Lanes that this process sends for at once.
    pub slots: usize,
    /// How long one request to the homeserver may take.
    pub http_timeout: Duration,
    /// The first wait after a failed attempt.
    pub backoff: Duration,
    /// How often to ask a homeserver that is down whether it is back.
    pub probe: Duration,
    /// How long after an attempt a look-up that does not find it is believed: until then the request may be on its way.
    pub lookup_delay: Duration,
    /// An ambiguous attempt older than this is looked up before it is repeated.
    pub dedupe_window: Duration,
    /// Whether to wake API processes by NOTIFY.
    pub notify: bool,
    /// How long the event log is kept.
    pub events_retention: Duration,
}

/// How the API listens and wakes workers.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether to wake workers and other API processes by NOTIFY, and to listen for it.
    pub notify: bool,
    /// Live operations of one conversation past which new messages are refused.
    pub lane_limit: i32,
    /// Requests that one user may make of this process in a second; none for as many as they like.
    pub requests_per_second: Option<u32>,
}

/// Checks options one by one and keeps every problem, so that all are reported at once.
#[derive(Debug, Default)]
pub struct Checked {
    problems: Vec<ConfigProblem>,
}

fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

impl Checked {
    /// Ends the check: the value if nothing was wrong, else every problem.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Vec<ConfigProblem>> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(self.problems),
        }
    }

    fn wrong(&mut self, option: &'static str, reason: impl Into<String>) {
        self.problems.push(ConfigProblem { option, reason: reason.into() });
    }

    fn required<'a>(&mut self, option: &'static str, value: Option<&'a String>) -> Option<&'a str> {
        let value = given(value);
        if value.is_none() {
            self.wrong(option, "is required");
        }
        value
    }

    fn secret(&mut self, option: &'static str, value: Option<&String>, file: Option<&String>) -> Option<SecretString> {
        match (given(value), given(file)) {
            (Some(_), Some(_)) => self.wrong(option, "is given twice: as a value and as a file"),
            (Some(value), None) => return Some(SecretString::from(value)),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) if text.trim().is_empty() => self.wrong(option, format!("the file {path} is empty")),
                Ok(text) => return Some(SecretString::from(text.trim())),
                Err(error) => self.wrong(option, format!("the file {path} cannot be read: {error}")),
            },
            (None, None) => self.wrong(option, "is required"),
        }
        None
    }

    fn parsed<T>(
        &mut self,
        option: &'static str,
        value: Option<&String>,
        default: T,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(text) = given(value) else { return Some(default) };
        match parse(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.wrong(option, format!("{reason}, but is {text:?}"));
                None
            }
        }
    }

    fn flag(&mut self, option: &'static str, value: Option<&String>, default: bool) -> Option<bool> {
        self.parsed(option, value, default, |text| text.parse().map_err(|_| "must be true or false".to_owned()))
    }

    fn number(
        &mut self,
        option: &'static str,
        value: Option<&String>,
        default: u32,
        min: u32,
        max: u32,
    ) -> Option<u32> {
        self.parsed(option, value, default, |text| {
            text.parse()
                .ok()
                .filter(|n| (min..=max).contains(n))
                .ok_or_else(|| format!("must be a whole number from {min} to {max}"))
        })
    }

    fn duration(
        &mut self,
        option: &'static str,
        value: Option<&String>,
        default: Duration,
        min: Duration,
    ) -> Option<Duration> {
        self.parsed(option, value, default, |text| {
            humantime::parse_duration(text).ok().filter(|d| *d >= min).ok_or_else(|| {
                format!("must be a duration such as 30s or 500ms, at least {}", humantime::format_duration(min))
            })
        })
    }

    fn address(&mut self, option: &'static str, value: Option<&String>, default: SocketAddr) -> Option<SocketAddr> {
        self.parsed(option, value, default, |text| {
            text.parse().map_err(|_| "must be an address and a port, such as 127.0.0.1:8080".to_owned())
        })
    }

    /// Checks how to log.
    pub fn log(&mut self, args: &LogArgs) -> Option<LogFormat> {
        self.parsed("LOG_FORMAT", args.log_format.as_ref(), LogFormat::Json, |text| match text {
            "json" => Ok(LogFormat::Json),
            "text" => Ok(LogFormat::Text),
            _ => Err("must be json or text".to_owned()),
        })
    }

    /// Checks how to reach the database.
    pub fn database(&mut self, args: &DatabaseArgs) -> Option<DatabaseConfig> {
        let url = self.secret("DATABASE_URL", args.database_url.as_ref(), args.database_url_file.as_ref());
        let url = url.filter(|url| {
            let known = Url::parse(url.expose_secret())
                .is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql") && url.has_host());
            if !known {
                self.wrong("DATABASE_URL", "must look like postgres://user:password@host:port/database");
            }
            known
        });
        let max = self.number("DATABASE_MAX_CONNECTIONS", args.database_max_connections.as_ref(), 16, 2, 1000);
        Some(DatabaseConfig { url: url?, max_connections: max? })
    }

    /// Checks the keys that seal content.
    pub fn content_keys(&mut self, args: &ContentKeysArgs) -> Option<KeyRing> {
        let keys = self.secret("CONTENT_KEYS", args.content_keys.as_ref(), args.content_keys_file.as_ref())?;
        KeyRing::parse(keys.expose_secret()).map_err(|error| self.wrong("CONTENT_KEYS", error.to_string())).ok()
    }

    /// Checks the secret that signs tokens.
    pub fn jwt_secret(&mut self, args: &JwtArgs) -> Option<SecretString> {
        const MIN_LEN: usize = 32;
        let secret = self.secret("JWT_SECRET", args.jwt_secret.as_ref(), args.jwt_secret_file.as_ref())?;
        if secret.expose_secret().len() < MIN_LEN {
            self.wrong("JWT_SECRET", format!("must have at least {MIN_LEN} bytes"));
            return None;
        }
        Some(secret)
    }

    /// Checks whether Matrix is used.
    pub fn matrix_enabled(&mut self, args: &MatrixEnabledArgs) -> Option<bool> {
        self.flag("MATRIX_ENABLED", args.matrix_enabled.as_ref(), false)
    }

    /// Checks the homeserver and its account; all of it is required.
    pub fn matrix(&mut self, args: &MatrixArgs) -> Option<MatrixConfig> {
        let url = self.required("MATRIX_HOMESERVER_URL", args.matrix_homeserver_url.as_ref());
        let homeserver_url = url.and_then(|text| {
            let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if url.is_none() {
                self.wrong("MATRIX_HOMESERVER_URL", format!("must look like https://matrix.example, but is {text:?}"));
            }
            url
        });
        let user = self.required("MATRIX_SERVICE_USER", args.matrix_service_user.as_ref());
        let service_user = user.and_then(|text| {
            text.parse().map_err(|error| self.wrong("MATRIX_SERVICE_USER", format!("{error}, but is {text:?}"))).ok()
        });
        let access_token = self.secret(
            "MATRIX_ACCESS_TOKEN",
            args.matrix_access_token.as_ref(),
            args.matrix_access_token_file.as_ref(),
        );
        let device_name = given(args.matrix_device_name.as_ref()).unwrap_or("matrix-outbox").to_owned();
        let device_id = given(args.matrix_device_id.as_ref()).map(str::to_owned);
        let allow =
            self.flag("MATRIX_ALLOW_TOKEN_WITHOUT_DEVICE", args.matrix_allow_token_without_device.as_ref(), false);
        let sync = self.sync(&args.sync);
        let voip = self.voip(&args.voip, true);
        Some(MatrixConfig {
            homeserver_url: homeserver_url?,
            service_user: service_user?,
            access_token: access_token?,
            device_name,
            device_id,
            allow_token_without_device: allow?,
            sync: sync?,
            voip: voip?,
        })
    }

    /// Checks how the API listens and wakes workers.
    pub fn api(&mut self, args: &ApiArgs) -> Option<ApiConfig> {
        let listen = self.address("API_LISTEN", args.api_listen.as_ref(), SocketAddr::from(([127, 0, 0, 1], 8080)));
        let notify = self.flag("OUTBOX_NOTIFY", args.outbox_notify.as_ref(), true);
        let lane_limit = self.number("OUTBOX_LANE_LIMIT", args.outbox_lane_limit.as_ref(), 10_000, 1, 1_000_000);
        let requests = self.number("API_REQUESTS_PER_SECOND", args.api_requests_per_second.as_ref(), 0, 0, 1_000_000);
        Some(ApiConfig {
            listen: listen?,
            notify: notify?,
            lane_limit: i32::try_from(lane_limit?).ok()?,
            requests_per_second: requests.map(|requests| (requests > 0).then_some(requests))?,
        })
    }

    /// Checks how the worker claims and sends, and that its times fit each other.
    pub fn delivery(&mut self, args: &DeliveryArgs) -> Option<DeliveryConfig> {
        let ms = Duration::from_millis;
        let listen =
            self.address("WORKER_LISTEN", args.worker_listen.as_ref(), SocketAddr::from(([127, 0, 0, 1], 9090)));
        let lease = self.duration("OUTBOX_LEASE", args.outbox_lease.as_ref(), ms(30_000), ms(500));
        let poll = self.duration("OUTBOX_POLL", args.outbox_poll.as_ref(), ms(1000), ms(10));
        let slots = self.number("OUTBOX_SLOTS", args.outbox_slots.as_ref(), 128, 2, 4096);
        let http = self.duration("OUTBOX_HTTP_TIMEOUT", args.outbox_http_timeout.as_ref(), ms(10_000), ms(100));
        let backoff = self.duration("OUTBOX_BACKOFF", args.outbox_backoff.as_ref(), ms(1000), ms(1));
        let lookup_delay = self.duration("OUTBOX_LOOKUP_DELAY", args.outbox_lookup_delay.as_ref(), ms(60_000), ms(0));
        let probe = self.duration("OUTBOX_PROBE", args.outbox_probe.as_ref(), ms(1000), ms(10));
        let window =
            self.duration("OUTBOX_DEDUPE_WINDOW", args.outbox_dedupe_window.as_ref(), ms(20 * 3_600_000), ms(0));
        let notify = self.flag("OUTBOX_NOTIFY", args.outbox_notify.as_ref(), true);
        let retention =
            self.duration("EVENTS_RETENTION", args.events_retention.as_ref(), ms(24 * 3_600_000), ms(60_000));
        let (lease, http_timeout) = (lease?, http?);
        // A request that outlives its lease would let two workers send for one lane.
        if http_timeout + lease / 4 > lease {
            self.wrong("OUTBOX_HTTP_TIMEOUT", "must be at most three quarters of OUTBOX_LEASE");
            return None;
        }
        Some(DeliveryConfig {
            listen: listen?,
            lease,
            poll: poll?,
            slots: usize::try_from(slots?).ok()?,
            http_timeout,
            backoff: backoff?,
            probe: probe?,
            lookup_delay: lookup_delay?,
            dedupe_window: window?,
            notify: notify?,
            events_retention: retention?,
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once_and_no_secret_is_shown() {
        let mut checked = Checked::default();
        let database = checked.database(&DatabaseArgs {
            database_url: Some("mysql://root:hunter2@db/x".into()),
            database_max_connections: Some("none".into()),
            ..DatabaseArgs::default()
        });
        checked.content_keys(&ContentKeysArgs { content_keys: Some("k:hunter2".into()), ..Default::default() });
        checked.jwt_secret(&JwtArgs { jwt_secret: Some("hunter2".into()), ..Default::default() });
        checked.matrix(&MatrixArgs { matrix_service_user: Some("nova".into()), ..Default::default() });
        checked.delivery(&DeliveryArgs {
            outbox_lease: Some("5s".into()),
            outbox_http_timeout: Some("5s".into()),
            ..Default::default()
        });
        let problems = checked.finish(database).unwrap_err();
        let options: Vec<_> = problems.iter().map(|problem| problem.option).collect();
        assert_eq!(
            options,
            [
                "DATABASE_URL",
                "DATABASE_MAX_CONNECTIONS",
                "CONTENT_KEYS",
                "JWT_SECRET",
                "MATRIX_HOMESERVER_URL",
                "MATRIX_SERVICE_USER",
                "MATRIX_ACCESS_TOKEN",
                "OUTBOX_HTTP_TIMEOUT"
            ]
        );
        for problem in problems {
            assert!(!problem.to_string().contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_secret_may_be_in_a_file_but_not_also_a_value() {
        let file = std::env::temp_dir().join(format!("matrix-outbox-secret-{}", std::process::id()));
        std::fs::write(&file, "0123456789012345678901234567890123456789\n").unwrap();
        let path = file.to_str().map(str::to_owned);
        let mut checked = Checked::default();
        let secret = checked.jwt_secret(&JwtArgs { jwt_secret: None, jwt_secret_file: path.clone() }).unwrap();
        assert_eq!(secret.expose_secret(), "0123456789012345678901234567890123456789");
        assert!(checked.jwt_secret(&JwtArgs { jwt_secret: Some("x".into()), jwt_secret_file: path }).is_none());
        std::fs::remove_file(file).unwrap();
    }
}
