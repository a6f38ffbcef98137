//! The console, as a browser without script sees it.

pub(crate) mod browser;
mod pages;
mod sessions;
