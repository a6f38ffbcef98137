//! Options of calls: whether they go to Matrix, how clients reach each other, and how many may be placed.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};

use super::{Checked, given};
use crate::calls::MAX_RING;

/// How much longer than the longest ring credentials have to be good, so that whoever answers at its end still connects.
const SETUP: Duration = Duration::from_mins(5);

/// The newest secret, and the one before while it is replaced.
const MAX_SECRETS: usize = 2;

/// Whether calls go to Matrix.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct VoipArgs {
    /// Whether calls go to Matrix too; without, and without `MATRIX_ENABLED`, our own clients call each other only: true or
    /// false [default: true]
    #[arg(long, env = "MATRIX_VOIP_ENABLED", value_name = "BOOL")]
    pub matrix_voip_enabled: Option<String>,
    /// The version of Matrix' call events; only 1 [default: 1]
    #[arg(long, env = "MATRIX_VOIP_VERSION", value_name = "VERSION")]
    pub matrix_voip_version: Option<String>,
    /// Whether the homeserver is asked for its TURN servers, and clients are given them: true or false [default: false]
    #[arg(long, env = "TURN_FROM_HOMESERVER", value_name = "BOOL")]
    pub turn_from_homeserver: Option<String>,
}

/// How clients reach each other.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct IceArgs {
    /// TURN servers, as turn:host:port?transport=udp or turns:host:port[,…]
    #[arg(long, env = "TURN_SERVER_URL", value_name = "URLS")]
    pub turn_server_url: Option<String>,
    /// STUN servers, as stun:host:port[,…]
    #[arg(long, env = "STUN_SERVER_URL", value_name = "URLS")]
    pub stun_server_url: Option<String>,
    /// The secret that the TURN servers share, from which credentials are made that expire; newest first, at most two
    #[arg(long, env = "TURN_SHARED_SECRET", hide_env_values = true, value_name = "SECRETS")]
    pub turn_shared_secret: Option<String>,
    /// A file that holds the above
    #[arg(long, env = "TURN_SHARED_SECRET_FILE", value_name = "PATH")]
    pub turn_shared_secret_file: Option<String>,
    /// A name that every client is given, which never expires; better a shared secret
    #[arg(long, env = "TURN_USERNAME", value_name = "NAME")]
    pub turn_username: Option<String>,
    /// Its password
    #[arg(long, env = "TURN_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub turn_password: Option<String>,
    /// A file that holds the above
    #[arg(long, env = "TURN_PASSWORD_FILE", value_name = "PATH")]
    pub turn_password_file: Option<String>,
    /// For how long credentials made from the shared secret are good [default: 1h]
    #[arg(long, env = "TURN_CREDENTIAL_TTL", value_name = "DURATION")]
    pub turn_credential_ttl: Option<String>,
}

/// How many calls may be placed.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CallLimitArgs {
    /// Calls that one user may place in a minute, over all processes; 0 for no limit [default: 30]
    #[arg(long, env = "CALLS_PER_CALLER", value_name = "N")]
    pub calls_per_caller: Option<String>,
    /// Calls that one user may be rung for in a minute, whoever places them; 0 for no limit [default: 60]
    #[arg(long, env = "CALLS_PER_CALLEE", value_name = "N")]
    pub calls_per_callee: Option<String>,
}

/// The version of Matrix' call events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoipVersion {
    /// `"1"`: parties, `select_answer`, `negotiate`.
    V1,
}

/// Whether calls go to Matrix.
#[derive(Debug, Clone, Copy)]
pub struct MatrixVoipConfig {
    /// Whether they do.
    pub enabled: bool,
    /// In which version.
    pub version: VoipVersion,
    /// Whether the homeserver is asked for its TURN servers.
    pub turn_from_homeserver: bool,
}

/// By what a TURN server knows its clients.
#[derive(Clone)]
pub enum TurnCredentials {
    /// The same for everyone, for ever.
    Static {
        /// The name.
        username: String,
        /// The password.
        password: SecretString,
    },
    /// Made for each client, to expire.
    Shared {
        /// What they are made from, newest first: one or two.
        secrets: Vec<SecretString>,
        /// For how long they are good.
        ttl: Duration,
    },
}

impl fmt::Debug for TurnCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { username, .. } => {
                f.debug_struct("Static").field("username", username).finish_non_exhaustive()
            }
            Self::Shared { secrets, ttl } => {
                f.debug_struct("Shared").field("secrets", &secrets.len()).field("ttl", ttl).finish()
            }
        }
    }
}

/// TURN servers of our own.
#[derive(Debug, Clone)]
pub struct TurnConfig {
    /// `turn:` and `turns:`.
    pub urls: Vec<String>,
    /// By what they know clients.
    pub credentials: TurnCredentials,
}

/// How clients reach each other.
#[derive(Debug, Clone, Default)]
pub struct IceConfig {
    /// `stun:` and `stuns:`.
    pub stun_urls: Vec<String>,
    /// TURN servers of our own.
    pub turn: Option<TurnConfig>,
}

/// How many calls may be placed in a minute; none for as many as one likes.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallLimits {
    /// By one user.
    pub by_one: Option<u32>,
    /// To one user.
    pub to_one: Option<u32>,
}

impl Checked {
    /// Checks whether calls go to Matrix; they do not where nothing does.
    pub fn voip(&mut self, args: &VoipArgs, matrix_enabled: bool) -> Option<MatrixVoipConfig> {
        let enabled = self.flag("MATRIX_VOIP_ENABLED", args.matrix_voip_enabled.as_ref(), true);
        let version = args.matrix_voip_version.as_ref();
        let version = self.parsed("MATRIX_VOIP_VERSION", version, VoipVersion::V1, |text| match text {
            "1" => Ok(VoipVersion::V1),
            _ => Err("must be 1".to_owned()),
        });
        let asked = self.flag("TURN_FROM_HOMESERVER", args.turn_from_homeserver.as_ref(), false);
        Some(MatrixVoipConfig {
            enabled: enabled? && matrix_enabled,
            version: version?,
            turn_from_homeserver: asked? && matrix_enabled,
        })
    }

    /// Checks how clients reach each other.
    pub fn ice(&mut self, args: &IceArgs) -> Option<IceConfig> {
        let stun_urls = self.servers("STUN_SERVER_URL", args.stun_server_url.as_ref(), ["stun", "stuns"]);
        let urls = self.servers("TURN_SERVER_URL", args.turn_server_url.as_ref(), ["turn", "turns"]);
        let credentials = self.turn_credentials(args)?;
        let (stun_urls, urls) = (stun_urls?, urls?);
        let turn = match (urls.is_empty(), credentials) {
            (true, None) => None,
            (false, Some(credentials)) => Some(TurnConfig { urls, credentials }),
            (false, None) => {
                self.wrong("TURN_SERVER_URL", "needs TURN_SHARED_SECRET, or TURN_USERNAME and TURN_PASSWORD");
                return None;
            }
            (true, Some(_)) => {
                self.wrong("TURN_SERVER_URL", "is required with TURN_SHARED_SECRET or TURN_USERNAME");
                return None;
            }
        };
        Some(IceConfig { stun_urls, turn })
    }

    /// Checks how many calls may be placed.
    pub fn call_limits(&mut self, args: &CallLimitArgs) -> Option<CallLimits> {
        let by_one = self.number("CALLS_PER_CALLER", args.calls_per_caller.as_ref(), 30, 0, 100_000);
        let to_one = self.number("CALLS_PER_CALLEE", args.calls_per_callee.as_ref(), 60, 0, 100_000);
        let limit = |n: u32| (n > 0).then_some(n);
        Some(CallLimits { by_one: limit(by_one?), to_one: limit(to_one?) })
    }

    /// The outer none: something is wrong. The inner: none are given.
    #[expect(clippy::option_option, reason = "wrong and absent are two things")]
    fn turn_credentials(&mut self, args: &IceArgs) -> Option<Option<TurnCredentials>> {
        let ttl = self.duration(
            "TURN_CREDENTIAL_TTL",
            args.turn_credential_ttl.as_ref(),
            Duration::from_hours(1),
            MAX_RING + SETUP,
        );
        let (secret, secret_file) = (args.turn_shared_secret.as_ref(), args.turn_shared_secret_file.as_ref());
        let (password, password_file) = (args.turn_password.as_ref(), args.turn_password_file.as_ref());
        let username = given(args.turn_username.as_ref());
        let has_password = given(password).or(given(password_file)).is_some();
        let has_secret = given(secret).or(given(secret_file)).is_some();
        match (has_secret, username, has_password) {
            (false, None, false) => ttl.map(|_| None),
            (true, None, false) => {
                let text = self.secret("TURN_SHARED_SECRET", secret, secret_file)?;
                let secrets: Vec<SecretString> = text
                    .expose_secret()
                    .split(',')
                    .map(str::trim)
                    .filter(|secret| !secret.is_empty())
                    .map(SecretString::from)
                    .collect();
                if secrets.is_empty() || secrets.len() > MAX_SECRETS {
                    let reason = "must hold one secret or two, newest first, separated by a comma";
                    self.wrong("TURN_SHARED_SECRET", reason);
                    return None;
                }
                Some(Some(TurnCredentials::Shared { secrets, ttl: ttl? }))
            }
            (false, Some(username), true) => {
                let password = self.secret("TURN_PASSWORD", password, password_file)?;
                ttl?;
                Some(Some(TurnCredentials::Static { username: username.to_owned(), password }))
            }
            (true, _, _) => {
                self.wrong("TURN_SHARED_SECRET", "excludes TURN_USERNAME and TURN_PASSWORD");
                None
            }
            (false, Some(_), false) => {
                self.wrong("TURN_PASSWORD", "is required with TURN_USERNAME");
                None
            }
            (false, None, true) => {
                self.wrong("TURN_USERNAME", "is required with TURN_PASSWORD");
                None
            }
        }
    }

    fn servers(
        &mut self,
        option: &'static str,
        value: Option<&String>,
        schemes: [&'static str; 2],
    ) -> Option<Vec<String>> {
        let urls = given(value).unwrap_or_default().split(',').map(str::trim).filter(|url| !url.is_empty());
        let urls: Vec<String> = urls.map(str::to_owned).collect();
        if let Some(wrong) = urls.iter().position(|url| !is_ice_url(url, schemes)) {
            // Not shown: who mistakes it for another kind of URL may have put a password into it.
            let [plain, secure] = schemes;
            let reason = format!("entry {} must look like {plain}:host:port or {secure}:host:port", wrong + 1);
            self.wrong(option, reason);
            return None;
        }
        Some(urls)
    }
}

/// Whether a URL is one of RFC 7064 or RFC 7065, and of one of these schemes.
fn is_ice_url(url: &str, schemes: [&str; 2]) -> bool {
    let Some((scheme, rest)) = url.split_once(':') else { return false };
    let relays = scheme.starts_with("turn");
    let (server, transport) = match rest.split_once('?') {
        Some((server, query)) => (server, Some(query)),
        None => (rest, None),
    };
    let transport_fits = transport.is_none_or(|query| relays && matches!(query, "transport=udp" | "transport=tcp"));
    let (host, port) = match server.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or_default())),
            None => return false,
        },
        None => match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    let v6 = server.starts_with('[');
    let host_fits = if v6 {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    schemes.contains(&scheme) && host_fits && port_fits && transport_fits
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    fn ice(args: &IceArgs) -> Result<IceConfig, Vec<String>> {
        let mut checked = Checked::default();
        let ice = checked.ice(args);
        checked.finish(ice).map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[expect(clippy::unnecessary_wraps, reason = "as arguments have it")]
    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_server_is_named_by_a_url_of_its_kind() {
        for (url, is_one) in [
            ("turn:turn.example:3478", true),
            ("turn:turn.example:3478?transport=udp", true),
            ("turns:turn.example:5349?transport=tcp", true),
            ("turn:192.0.2.1", true),
            ("turn:[2001:db8::1]:3478", true),
            ("turn:[2001:db8::1]", true),
            ("turn:[nonsense]:3478", false),
            ("turn:[2001:db8::1]3478", false),
            ("turn:turn.example:0", false),
            ("turn:turn.example:70000", false),
            ("turn:turn.example:3478?transport=carrier-pigeon", false),
            ("turn:", false),
            ("turn://turn.example:3478", false),
            ("turn:name:password@turn.example", false),
            ("stun:turn.example:3478", false),
            ("https://turn.example", false),
            ("turn.example:3478", false),
        ] {
            assert_eq!(is_ice_url(url, ["turn", "turns"]), is_one, "{url}");
        }
        assert!(is_ice_url("stun:stun.example", ["stun", "stuns"]));
        assert!(!is_ice_url("stun:stun.example?transport=udp", ["stun", "stuns"]));
    }

    #[test]
    fn servers_are_a_list_and_secrets_at_most_two() {
        let args = |secrets: &str| IceArgs {
            turn_server_url: some("turn:a.example:3478?transport=udp, turns:a.example:5349 ,"),
            stun_server_url: some("stun:a.example:3478"),
            turn_shared_secret: some(secrets),
            ..IceArgs::default()
        };
        let config = ice(&args("new,old")).unwrap();
        let turn = config.turn.unwrap();
        assert_eq!(turn.urls, ["turn:a.example:3478?transport=udp", "turns:a.example:5349"]);
        assert_eq!(config.stun_urls, ["stun:a.example:3478"]);
        let TurnCredentials::Shared { secrets, ttl } = &turn.credentials else { panic!("made from a secret") };
        let secrets: Vec<&str> = secrets.iter().map(SecretString::expose_secret).collect();
        assert_eq!((secrets, *ttl), (vec!["new", "old"], Duration::from_hours(1)));
        for wrong in ["a,b,c", ","] {
            assert!(ice(&args(wrong)).unwrap_err()[0].starts_with("TURN_SHARED_SECRET: "));
        }
    }

    #[test]
    fn what_belongs_together_is_given_together() {
        let turn = || some("turn:a.example");
        let none = IceArgs::default;
        for (args, option) in [
            (IceArgs { turn_server_url: turn(), ..none() }, "TURN_SERVER_URL"),
            (IceArgs { turn_shared_secret: some("s"), ..none() }, "TURN_SERVER_URL"),
            (IceArgs { turn_server_url: turn(), turn_username: some("u"), ..none() }, "TURN_PASSWORD"),
            (IceArgs { turn_server_url: turn(), turn_password: some("p"), ..none() }, "TURN_USERNAME"),
            (
                IceArgs {
                    turn_server_url: turn(),
                    turn_username: some("u"),
                    turn_password: some("p"),
                    turn_shared_secret: some("s"),
                    ..none()
                },
                "TURN_SHARED_SECRET",
            ),
            (IceArgs { turn_credential_ttl: some("9m"), ..none() }, "TURN_CREDENTIAL_TTL"),
            (IceArgs { stun_server_url: some("turn:a.example"), ..none() }, "STUN_SERVER_URL"),
        ] {
            let problems = ice(&args).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(&format!("{option}: ")), "{problems:?}");
        }
        assert!(ice(&none()).unwrap().turn.is_none());
    }

    #[test]
    fn no_secret_is_shown() {
        let shown = |args: IceArgs| match ice(&args) {
            Ok(config) => format!("{config:?}"),
            Err(problems) => problems.join("\n"),
        };
        let turn = || some("turn:a.example");
        let none = IceArgs::default;
        for args in [
            IceArgs { turn_server_url: turn(), turn_shared_secret: some("hunter2,hunter22"), ..none() },
            IceArgs { turn_server_url: turn(), turn_username: some("u"), turn_password: some("hunter2"), ..none() },
            IceArgs { turn_server_url: turn(), turn_password: some("hunter2"), ..none() },
            IceArgs { turn_server_url: some("turn:u:hunter2@a.example"), ..none() },
            IceArgs { turn_shared_secret: some("hunter2,b,c"), ..none() },
        ] {
            let shown = shown(args);
            assert!(!shown.is_empty() && !shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn calls_go_to_matrix_where_messages_do_unless_that_is_switched_off() {
        let voip = |enabled: Option<&str>, matrix_enabled| {
            let args = VoipArgs { matrix_voip_enabled: enabled.map(str::to_owned), ..VoipArgs::default() };
            Checked::default().voip(&args, matrix_enabled).unwrap().enabled
        };
        assert_eq!([voip(None, true), voip(Some("false"), true)], [true, false]);
        assert_eq!([voip(None, false), voip(Some("true"), false)], [false, false]);
        for (version, fits) in [("1", true), ("0", false), ("2", false), ("one", false)] {
            let args = VoipArgs { matrix_voip_version: some(version), ..VoipArgs::default() };
            assert_eq!(Checked::default().voip(&args, true).is_some(), fits, "{version}");
        }
    }
}
