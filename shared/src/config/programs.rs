//! The command lines of the two programs, and what they run with once everything is checked.

use clap::Parser;
use secrecy::SecretString;

use super::{
    ApiArgs, ApiConfig, CallLimitArgs, CallLimits, Checked, ConfigProblem, ContentKeysArgs, DatabaseArgs,
    DatabaseConfig, DeliveryArgs, DeliveryConfig, IceArgs, IceConfig, JwtArgs, LogArgs, LogFormat, MatrixArgs,
    MatrixConfig, MatrixEnabledArgs, MatrixVoipConfig, TraceArgs, TraceConfig, VoipArgs, WebSocketArgs,
    WebSocketConfig,
};
use crate::seal::KeyRing;

/// Command line and environment of `api`.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "api", version, about = "The REST API of matrix-outbox")]
pub struct ApiCli {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    websocket: WebSocketArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    content_keys: ContentKeysArgs,
    #[command(flatten)]
    jwt: JwtArgs,
    #[command(flatten)]
    matrix_enabled: MatrixEnabledArgs,
    #[command(flatten)]
    voip: VoipArgs,
    #[command(flatten)]
    ice: IceArgs,
    #[command(flatten)]
    call_limits: CallLimitArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// What `api` runs with.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// How it listens and wakes workers.
    pub api: ApiConfig,
    /// How clients are told of events.
    pub websocket: WebSocketConfig,
    /// How it reaches the database.
    pub database: DatabaseConfig,
    /// What seals message texts.
    pub content_keys: KeyRing,
    /// What signs the callers' tokens.
    pub jwt_secret: SecretString,
    /// Whether new messages go to Matrix.
    pub matrix_enabled: bool,
    /// Whether calls go to Matrix.
    pub voip: MatrixVoipConfig,
    /// How clients reach each other in calls.
    pub ice: IceConfig,
    /// How many calls may be placed.
    pub call_limits: CallLimits,
    /// Where its traces go; none when nobody takes them.
    pub traces: Option<TraceConfig>,
    /// How it logs.
    pub log: LogFormat,
}

impl ApiCli {
    /// Checks all options; the error holds every problem at once.
    pub fn check(&self) -> Result<ApiSettings, Vec<ConfigProblem>> {
        let mut checked = Checked::default();
        let log = checked.log(&self.log);
        let traces = checked.traces(&self.traces);
        let api = checked.api(&self.api);
        let websocket = checked.websocket(&self.websocket);
        let database = checked.database(&self.database);
        let content_keys = checked.content_keys(&self.content_keys);
        let jwt_secret = checked.jwt_secret(&self.jwt);
        let matrix_enabled = checked.matrix_enabled(&self.matrix_enabled);
        let voip = checked.voip(&self.voip, matrix_enabled == Some(true));
        let ice = checked.ice(&self.ice);
        let call_limits = checked.call_limits(&self.call_limits);
        let settings = (|| {
            Some(ApiSettings {
                api: api?,
                websocket: websocket?,
                database: database?,
                content_keys: content_keys?,
                jwt_secret: jwt_secret?,
                matrix_enabled: matrix_enabled?,
                voip: voip?,
                ice: ice?,
                call_limits: call_limits?,
                traces: traces?,
                log: log?,
            })
        })();
        checked.finish(settings)
    }
}

/// Command line and environment of `worker`.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "worker", version, about = "Delivers the outbox of matrix-outbox to Matrix")]
pub struct WorkerCli {
    #[command(flatten)]
    delivery: DeliveryArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    content_keys: ContentKeysArgs,
    #[command(flatten)]
    matrix_enabled: MatrixEnabledArgs,
    #[command(flatten)]
    matrix: MatrixArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// What `worker` runs with.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// How it claims and sends.
    pub delivery: DeliveryConfig,
    /// How it reaches the database.
    pub database: DatabaseConfig,
    /// What opens message texts.
    pub content_keys: KeyRing,
    /// The homeserver; none when Matrix is not used, and nothing is claimed then.
    pub matrix: Option<MatrixConfig>,
    /// Where its traces go; none when nobody takes them.
    pub traces: Option<TraceConfig>,
    /// How it logs.
    pub log: LogFormat,
}

impl WorkerCli {
    /// Checks all options; the error holds every problem at once.
    pub fn check(&self) -> Result<WorkerSettings, Vec<ConfigProblem>> {
        let mut checked = Checked::default();
        let log = checked.log(&self.log);
        let traces = checked.traces(&self.traces);
        let delivery = checked.delivery(&self.delivery);
        let database = checked.database(&self.database);
        let content_keys = checked.content_keys(&self.content_keys);
        let matrix = match checked.matrix_enabled(&self.matrix_enabled) {
            Some(true) => checked.matrix(&self.matrix).map(Some),
            _ => Some(None),
        };
        let settings = (|| {
            Some(WorkerSettings {
                delivery: delivery?,
                database: database?,
                content_keys: content_keys?,
                matrix: matrix?,
                traces: traces?,
                log: log?,
            })
        })();
        checked.finish(settings)
    }
}
