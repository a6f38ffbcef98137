//! The API, run as a program against a real Postgres.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod admin;
mod atomicity;
mod bad_input;
mod calls;
mod compatibility;
mod console;
mod conversations;
mod conversing;
mod idempotency;
mod pages;
mod request_limits;
mod ws;
