//! What the operators' commands share: the database, and who is typing.

use clap::Args;
use shared::{
    config::{Checked, DatabaseArgs},
    database::{self, Limits},
    reason,
};
use sqlx::PgPool;

use crate::Failed;

/// A name in the trail is for people.
const LONGEST_NAME: usize = 100;

#[derive(Debug, Args)]
pub(crate) struct Who {
    /// Who acts, for the trail [default: the login name]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
}

impl Who {
    /// The name that was given, or that of the login.
    pub(crate) fn name(&self) -> Result<String, Failed> {
        let login = || ["USER", "LOGNAME"].into_iter().find_map(|variable| std::env::var(variable).ok());
        let name = self.name.clone().or_else(login).unwrap_or_default();
        let name = name.trim();
        match name.chars().count() {
            0 => Err(Failed::Usage("nobody knows who acts: say so with --as NAME".to_owned())),
            1..=LONGEST_NAME if !name.chars().any(char::is_control) => Ok(name.to_owned()),
            _ => Err(Failed::Usage(format!("--as: must be at most {LONGEST_NAME} characters on one line"))),
        }
    }
}

/// A reason, as the trail keeps it.
pub(crate) fn parse_reason(text: &str) -> Result<String, String> {
    reason::parse(text).map(str::to_owned).map_err(|error| error.to_string())
}

/// Checks the options and makes a pool, which connects when first used.
pub(crate) fn database(args: &DatabaseArgs) -> Result<PgPool, Failed> {
    let mut checked = Checked::default();
    let config = checked.database(args);
    let config = checked.finish(config).map_err(Failed::Configuration)?;
    Ok(database::pool(&config, "outboxctl", Limits::WORKERS)?)
}
