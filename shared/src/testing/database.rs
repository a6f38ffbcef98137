//! A database for each test, made from a migrated template, with a clock that the test can move.

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::test_variable;

/// Serialises the making of templates between test processes.
const TEMPLATE_LOCK: i64 = 0x0000_6f75_7462_6f78;

static TEMPLATE: OnceCell<String> = OnceCell::const_new();

/// A database of one test. It goes with the server.
#[derive(Debug, Clone)]
pub struct TestDatabase {
    /// `postgres://…`
    pub url: String,
    /// A pool of a few connections, for the test's own eyes.
    pub pool: PgPool,
}

impl TestDatabase {
    /// A fresh database with the schema of this release.
    pub async fn create() -> Self {
        let server = test_variable("TEST_DATABASE_URL");
        let template = TEMPLATE.get_or_init(|| make_template(&server)).await;
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&server).await.expect("TEST_DATABASE_URL answers");
        admin
            .execute(AssertSqlSafe(format!("create database {name} template {template} strategy file_copy")))
            .await
            .expect("a database can be created");
        Self::open(&with_database(&server, &name)).await
    }

    /// A migrated database on a server that the test started itself.
    pub async fn create_on(server: &str) -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(server).await.expect("the server answers");
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("a database can be created");
        let url = with_database(server, &name);
        prepare(&url).await;
        Self::open(&url).await
    }

    async fn open(url: &str) -> Self {
        let options = PgConnectOptions::from_str(url).expect("a valid URL");
        let pool = PgPoolOptions::new().max_connections(4).connect_with(options).await.expect("the database answers");
        Self { url: url.to_owned(), pool }
    }

    /// Moves this database's clock forward.
    pub async fn advance(&self, by: Duration) {
        sqlx::raw_sql(AssertSqlSafe(format!(
            "update test_clock set ahead = ahead + interval '{} milliseconds'",
            by.as_millis()
        )))
        .execute(&self.pool)
        .await
        .expect("the clock can be moved");
    }

    /// From now on the clock stands still but when it is moved.
    pub async fn stop_clock(&self) {
        sqlx::raw_sql(
            "do $do$ begin
                execute format(
                    'create or replace function outbox_now() returns timestamptz language sql stable as
                    $$ select %L::timestamptz + (select ahead from test_clock) $$', statement_timestamp());
            end $do$",
        )
        .execute(&self.pool)
        .await
        .expect("the clock can be stopped");
    }

    /// A number, from a statement that yields one.
    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect("the statement yields a number")
    }
}

fn with_database(server: &str, name: &str) -> String {
    let mut url = url::Url::parse(server).expect("a valid URL");
    url.set_path(name);
    url.into()
}

async fn make_template(server: &str) -> String {
    // One template for each set of migrations: a server that outlives a change keeps no stale one.
    let name = format!("template_{:x}", crate::database::schema_fingerprint());
    let mut admin = PgConnection::connect(server).await.expect("TEST_DATABASE_URL answers");
    sqlx::query("select pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut admin).await.expect("a lock");
    let present: bool = sqlx::query_scalar("select exists (select 1 from pg_database where datname = $1)")
        .bind(&name)
        .fetch_one(&mut admin)
        .await
        .expect("the catalogue answers");
    if !present {
        let draft = format!("{name}_draft");
        for statement in [format!("drop database if exists {draft}"), format!("create database {draft}")] {
            admin.execute(AssertSqlSafe(statement)).await.expect("a database can be created");
        }
        prepare(&with_database(server, &draft)).await;
        admin
            .execute(AssertSqlSafe(format!("alter database {draft} rename to {name}")))
            .await
            .expect("a database can be renamed");
    }
    // The lock goes with the connection.
    admin.close().await.expect("the connection closes");
    name
}

/// Migrates a database and gives it a clock that can be moved.
async fn prepare(url: &str) {
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await.expect("the database answers");
    crate::database::migrate(&pool).await.expect("the migrations run");
    crate::database::add_attempt_partitions(&pool).await.expect("partitions can be added");
    sqlx::raw_sql(
        "create table test_clock (ahead interval not null);
         insert into test_clock values ('0');
         create or replace function outbox_now() returns timestamptz language sql stable as
         $$ select statement_timestamp() + (select ahead from test_clock) $$;",
    )
    .execute(&pool)
    .await
    .expect("the clock can be replaced");
    pool.close().await;
}
