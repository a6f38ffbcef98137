//! How a request's transaction ends.

use sqlx::{Postgres, Transaction};

use crate::{problem::ApiError, trace::Trace};

/// Commits what was done, or rolls back what is refused, before the client learns of either: a lock that outlived the
/// answer to a refused request would refuse the next one.
pub(crate) async fn finish<T>(
    tx: Transaction<'_, Postgres>,
    trace: &Trace,
    done: Result<T, ApiError>,
) -> Result<T, ApiError> {
    match done {
        Ok(done) => {
            trace.commit(tx).await?;
            Ok(done)
        }
        Err(refused) => {
            // A link that is gone has rolled it back.
            let _ = tx.rollback().await;
            Err(refused)
        }
    }
}
