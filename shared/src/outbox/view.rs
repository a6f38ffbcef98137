//! How far an operation has come, in the words of clients.

use serde::{Deserialize, Serialize};

/// How far a message has come on its way to Matrix.
///
/// There is no column that says so: where the row of its operation stands says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Delivery {
    /// It waits; an edit or a delete still changes what is sent.
    Pending,
    /// It was handed to a sender; how that ended is not known yet.
    Delivering,
    /// It stands in the room.
    Delivered,
    /// It will not be tried again by itself.
    Dead,
    /// It was deleted before it was sent.
    Cancelled,
    /// It was no longer worth sending.
    Expired,
    /// It was never meant for Matrix.
    Disabled,
}
