//! The language that `api` and `worker` both speak.
#[cfg(feature = "testing")]
pub mod testing;
