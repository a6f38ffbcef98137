//! `outboxctl doctor`: is everything there that the worker needs, and does it fit together?

use std::{sync::Arc, time::Duration};

use shared::{
    config::programs::WorkerSettings,
    database::{self, Limits},
};

use crate::{breaker::Breaker, check_identity, homeserver::Homeserver};

/// How long the homeserver may take for each question.
const PATIENCE: Duration = Duration::from_secs(10);

/// One finding.
#[derive(Debug, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// Whether it is well.
    pub ok: bool,
    /// What was seen, and what to do about it.
    pub detail: String,
}

/// Looks at everything, also after something was found wrong.
pub async fn examine(config: &WorkerSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |check, result: anyhow::Result<String>| {
        let ok = result.is_ok();
        let detail = result.unwrap_or_else(|error| format!("{error:#}"));
        findings.push(Finding { check, ok, detail });
    };
    let pool = database::pool(&config.database, "outboxctl doctor", Limits::WORKERS);
    match pool {
        Ok(pool) => {
            add("database", database::describe(&pool).await.map_err(Into::into));
            add("clock", database::clock_offset(&pool).await.map_err(Into::into).and_then(|offset| {
                anyhow::ensure!(
                    offset < Duration::from_secs(5),
                    "this machine's clock is {offset:?} off the database's; leases use the database's only, but logs \
                     will not line up: set up NTP"
                );
                Ok(format!("within {offset:?} of the database's"))
            }));
        }
        Err(error) => add("database", Err(error.into())),
    }
    let Some(matrix) = &config.matrix else {
        add("matrix", Ok("not enabled (MATRIX_ENABLED is false): nothing is sent".to_owned()));
        return findings;
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Homeserver::new(matrix, PATIENCE, Arc::new(Breaker::new(1))).await {
        Err(error) => add("homeserver", Err(error)),
        Ok(homeserver) => match homeserver.whoami().await {
            Err(failure) => add("token", Err(failure.into())),
            Ok(whoami) => {
                let described = check_identity(&whoami, matrix).map(|device| {
                    format!("speaks as {}, device {}", whoami.user_id, if device.is_empty() { "none" } else { &device })
                });
                let usable = described.is_ok();
                add("token", described);
                if usable {
                    add("room version", homeserver.default_room_version().await.map_err(Into::into));
                    add(
                        "upload limit",
                        homeserver.upload_limit().await.map(|bytes| format!("{bytes} bytes")).map_err(Into::into),
                    );
                }
            }
        },
    }
    findings
}
