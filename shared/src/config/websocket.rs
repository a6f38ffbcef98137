//! Options of the WebSocket.

use std::time::Duration;

use super::Checked;

/// How clients are told of events.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct WebSocketArgs {
    /// How often to look into the event log when nothing wakes this process [default: 500ms]
    #[arg(long, env = "EVENTS_POLL", value_name = "DURATION")]
    pub events_poll: Option<String>,
    /// How often a client gets a heartbeat and a ping; silent for three times as long, it is disconnected [default: 20s]
    #[arg(long, env = "WS_HEARTBEAT", value_name = "DURATION")]
    pub ws_heartbeat: Option<String>,
    /// How long a client may take to read before it is disconnected, to resume [default: 10s]
    #[arg(long, env = "WS_WRITE_TIMEOUT", value_name = "DURATION")]
    pub ws_write_timeout: Option<String>,
    /// WebSocket connections of this process [default: 10000]
    #[arg(long, env = "WS_MAX_CONNECTIONS", value_name = "N")]
    pub ws_max_connections: Option<String>,
    /// WebSocket connections of one user to this process [default: 20]
    #[arg(long, env = "WS_MAX_CONNECTIONS_PER_USER", value_name = "N")]
    pub ws_max_connections_per_user: Option<String>,
}

/// How clients are told of events.
#[derive(Debug, Clone)]
pub struct WebSocketConfig {
    /// How often to look into the event log when nothing wakes this process.
    pub poll: Duration,
    /// How often a client gets a heartbeat and a ping.
    pub heartbeat: Duration,
    /// How long a client may take to read.
    pub write_timeout: Duration,
    /// Connections of this process.
    pub connections: usize,
    /// Connections of one user to this process.
    pub connections_per_user: usize,
}

impl Checked {
    /// Checks how clients are told of events.
    pub fn websocket(&mut self, args: &WebSocketArgs) -> Option<WebSocketConfig> {
        let ms = Duration::from_millis;
        let poll = self.duration("EVENTS_POLL", args.events_poll.as_ref(), ms(500), ms(10));
        let heartbeat = self.duration("WS_HEARTBEAT", args.ws_heartbeat.as_ref(), ms(20_000), ms(100));
        let write_timeout = self.duration("WS_WRITE_TIMEOUT", args.ws_write_timeout.as_ref(), ms(10_000), ms(100));
        let connections = self.number("WS_MAX_CONNECTIONS", args.ws_max_connections.as_ref(), 10_000, 1, 1_000_000);
        let of_one = args.ws_max_connections_per_user.as_ref();
        let connections_per_user = self.number("WS_MAX_CONNECTIONS_PER_USER", of_one, 20, 1, 10_000);
        Some(WebSocketConfig {
            poll: poll?,
            heartbeat: heartbeat?,
            write_timeout: write_timeout?,
            connections: usize::try_from(connections?).ok()?,
            connections_per_user: usize::try_from(connections_per_user?).ok()?,
        })
    }
}
