//! The outbox on a real database: each test is a law, and fails without what upholds it.
mod sound;
mod table;
mod world;
