//! The integration tests of `shared`, in one binary.
mod model;
