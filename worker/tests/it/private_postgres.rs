//! A Postgres of one test's own, which it may stop and start again.

use std::{path::PathBuf, process::Command};

use shared::testing::test_variable;
use uuid::Uuid;

/// A server in a directory of its own. Stopped and deleted when dropped.
pub(crate) struct PrivatePostgres {
    directory: PathBuf,
    pub(crate) url: String,
}

impl PrivatePostgres {
    pub(crate) fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("matrix-outbox-postgres-{}", Uuid::new_v4().simple()));
        let mut server = Self { directory, url: String::new() };
        server.url = server.start_again();
        server
    }

    fn step(&self, step: &str) -> String {
        let run = Command::new(test_variable("TEST_STACK"))
            .args(["postgres", step, "--dir"])
            .arg(&self.directory)
            .output()
            .unwrap();
        assert!(run.status.success(), "postgres {step}: {}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    }

    /// Ends every connection and the server.
    pub(crate) fn stop(&self) {
        self.step("stop");
    }

    /// Starts it on the port and with the data that it had; returns its URL.
    pub(crate) fn start_again(&self) -> String {
        let output = self.step("start");
        output.lines().find_map(|line| line.strip_prefix("DATABASE_URL=")).unwrap().to_owned()
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        let mut stop = Command::new(test_variable("TEST_STACK"));
        let _ = stop.args(["postgres", "stop", "--dir"]).arg(&self.directory).output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
