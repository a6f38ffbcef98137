//! What Postgres says of the statements that the product runs: how many, and how many pages they touch.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};

/// How a claim's first statement is told from others: it locks lanes.
pub(crate) const LOCKING: &str = "%for no key update skip locked%";

/// How a claim's second statement is told from others: it reads the first operations of lanes.
pub(crate) const READING: &str = "%cross join lateral%";

/// Counts of statements, where the server counts them.
#[derive(Debug)]
pub(crate) struct Statements {
    pool: PgPool,
}

impl Statements {
    /// Counts from now on; none where the server has no such module.
    pub(crate) async fn count(pool: &PgPool) -> Option<Self> {
        sqlx::raw_sql("create extension if not exists pg_stat_statements").execute(pool).await.ok()?;
        // Present but not loaded at start: it counts nothing, and says so.
        sqlx::raw_sql("select pg_stat_statements_reset()").execute(pool).await.ok()?;
        Some(Self { pool: pool.clone() })
    }

    /// Statements, rows and pages since then, of those whose text is like this.
    pub(crate) async fn like(&self, text: &str) -> Counted {
        let row = sqlx::query(
            "select coalesce(sum(calls), 0)::float8, coalesce(sum(rows), 0)::float8,
                coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float8
             from pg_stat_statements
             where dbid = (select oid from pg_database where datname = current_database()) and query like $1
                and query not like '%pg_stat_statements%'",
        )
        .bind(text)
        .fetch_one(&self.pool)
        .await
        .unwrap();
        Counted { calls: row.get(0), rows: row.get(1), pages: row.get(2) }
    }
}

/// What statements came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) calls: f64,
    pub(crate) rows: f64,
    pub(crate) pages: f64,
}

/// Runs a statement that this connection has prepared before, with these arguments, and says how many pages it touched
/// and how many rows it yielded.
///
/// It is the very statement, with the plan that it has come to: nothing here could drift from the product's code.
pub(crate) async fn explain(conn: &mut PgConnection, text: &str, arguments: &str) -> Explained {
    let name: String = sqlx::query_scalar("select name from pg_prepared_statements where statement like $1")
        .bind(text)
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    let statement = format!(r#"explain (analyze, buffers, timing off, format json) execute "{name}" ({arguments})"#);
    let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(conn).await.unwrap();
    let plans: Value = row.get(0);
    let plan = &plans[0]["Plan"];
    let count = |key: &str| plan[key].as_f64().unwrap_or_default();
    Explained {
        pages: count("Shared Hit Blocks") + count("Shared Read Blocks"),
        rows: count("Actual Rows"),
        ms: plans[0]["Execution Time"].as_f64().unwrap_or_default(),
    }
}

/// What one execution came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Explained {
    pub(crate) pages: f64,
    pub(crate) rows: f64,
    pub(crate) ms: f64,
}
