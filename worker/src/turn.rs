//! The homeserver's TURN servers: fetched before their credentials expire, and kept where the API reads them.

use std::time::Duration;

use shared::{
    seal::KeyRing,
    turn::{self, TurnError},
};
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};

use crate::homeserver::Homeserver;

/// How often to look whether it is time to ask.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs for ever. All workers do it, and one of them asks.
pub(crate) async fn run(pool: PgPool, keys: KeyRing, homeserver: Homeserver) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = refresh(&pool, &keys, &homeserver).await {
            tracing::warn!(%error, "the homeserver's TURN servers are not kept; trying again");
        }
    }
}

async fn refresh(pool: &PgPool, keys: &KeyRing, homeserver: &Homeserver) -> Result<(), TurnError> {
    if !turn::may_ask(pool, homeserver.service_user()).await? {
        return Ok(());
    }
    match homeserver.turn_servers().await {
        Ok(answer) => turn::keep(pool, keys, homeserver.service_user(), &answer).await,
        Err(failure) => {
            tracing::warn!(error = %failure, "the homeserver does not name its TURN servers; asking again");
            Ok(())
        }
    }
}
