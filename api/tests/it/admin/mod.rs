//! The operators' API: scopes, lists, acts, and what it never shows.

mod acts;
mod reads;
pub(crate) mod scene;
mod scopes;
