//! How the worker reads what happens on Matrix.

use std::time::Duration;

use super::Checked;

/// How the worker reads what happens on Matrix.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SyncArgs {
    /// Whether this worker may read what happens on Matrix; one of those that may does: true or false [default: true]
    #[arg(long, env = "MATRIX_SYNC_ENABLED", value_name = "BOOL")]
    pub matrix_sync_enabled: Option<String>,
    /// How long the worker that reads may be silent before another takes over [default: 10s]
    #[arg(long, env = "MATRIX_SYNC_LEASE", value_name = "DURATION")]
    pub matrix_sync_lease: Option<String>,
    /// How long the homeserver may hold a sync while there is nothing new [default: 30s]
    #[arg(long, env = "MATRIX_SYNC_HOLD", value_name = "DURATION")]
    pub matrix_sync_hold: Option<String>,
    /// Events of a room in one sync; more are fetched page by page, in order [default: 100]
    #[arg(long, env = "MATRIX_SYNC_LIMIT", value_name = "N")]
    pub matrix_sync_limit: Option<String>,
    /// What to do with invitations of the service account by strangers: reject or ignore [default: reject]
    #[arg(long, env = "MATRIX_INVITES", value_name = "POLICY")]
    pub matrix_invites: Option<String>,
}

/// What to do with invitations of the service account by strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvitePolicy {
    /// Turn them down.
    Reject,
    /// Leave them.
    Ignore,
}

/// How the worker reads what happens on Matrix.
#[derive(Debug, Clone)]
pub struct SyncConfig {
    /// Whether it may.
    pub enabled: bool,
    /// How long the right to is leased.
    pub lease: Duration,
    /// How long the homeserver may hold a sync while there is nothing new.
    pub hold: Duration,
    /// Events of a room in one sync.
    pub limit: u32,
    /// What to do with invitations by strangers.
    pub invites: InvitePolicy,
}

impl Checked {
    /// Checks how the worker reads what happens on Matrix.
    pub fn sync(&mut self, args: &SyncArgs) -> Option<SyncConfig> {
        let seconds = Duration::from_secs;
        let enabled = self.flag("MATRIX_SYNC_ENABLED", args.matrix_sync_enabled.as_ref(), true);
        let half_a_second = Duration::from_millis(500);
        let lease = self.duration("MATRIX_SYNC_LEASE", args.matrix_sync_lease.as_ref(), seconds(10), half_a_second);
        let hold = self.duration("MATRIX_SYNC_HOLD", args.matrix_sync_hold.as_ref(), seconds(30), Duration::ZERO);
        let limit = self.number("MATRIX_SYNC_LIMIT", args.matrix_sync_limit.as_ref(), 100, 1, 1000);
        let invites =
            self.parsed("MATRIX_INVITES", args.matrix_invites.as_ref(), InvitePolicy::Reject, |text| match text {
                "reject" => Ok(InvitePolicy::Reject),
                "ignore" => Ok(InvitePolicy::Ignore),
                _ => Err("must be reject or ignore".to_owned()),
            });
        Some(SyncConfig { enabled: enabled?, lease: lease?, hold: hold?, limit: limit?, invites: invites? })
    }
}
