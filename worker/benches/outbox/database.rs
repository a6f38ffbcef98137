//! Databases to measure on: the schema of this release and its own clock, not the one that tests can move.

use std::time::Duration;

use shared::{
    database::{Limits, connect_options},
    testing::test_variable,
};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// As the worker connects, but that nothing is cut short here.
fn options(url: &str) -> PgConnectOptions {
    let limits = Limits {
        lock_timeout: Duration::from_mins(1),
        idle_in_transaction: Duration::from_mins(10),
        statement_timeout: Duration::from_mins(10),
    };
    connect_options(url, "bench", limits).unwrap()
}

/// A database of one measurement.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
    server: String,
    name: String,
}

impl Database {
    /// A fresh one, with a pool of this many connections.
    pub(crate) async fn create(connections: u32) -> Self {
        let server = test_variable("TEST_DATABASE_URL");
        let name = format!("bench_{}", uuid::Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&server).await.unwrap();
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let (address, _) = server.rsplit_once('/').unwrap();
        let url = format!("{address}/{name}");
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_mins(1))
            .test_before_acquire(false)
            .connect_with(options(&url))
            .await
            .unwrap();
        shared::database::migrate(&pool).await.unwrap();
        shared::database::add_attempt_partitions(&pool).await.unwrap();
        Self { url, pool, server, name }
    }

    /// A connection beside the pool.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&options(&self.url)).await.unwrap()
    }

    /// Brings the statistics up to date, as autovacuum does in time.
    pub(crate) async fn settle_down(&self) {
        sqlx::raw_sql("vacuum analyze").execute(&self.pool).await.unwrap();
    }

    /// Deletes it: a million rows are in nobody's way afterwards.
    pub(crate) async fn remove(self) {
        self.pool.close().await;
        let mut admin = PgConnection::connect(&self.server).await.unwrap();
        admin.execute(AssertSqlSafe(format!("drop database {} with (force)", self.name))).await.unwrap();
    }
}
