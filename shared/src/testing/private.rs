//! Servers of one test's own, which it may stop and start again.

use std::{path::PathBuf, process::Command};

use uuid::Uuid;

use super::{matrix_client::HomeserverAddress, test_variable};

/// A server in a directory of its own. Stopped and deleted when dropped.
#[derive(Debug)]
struct Service {
    name: &'static str,
    options: &'static [&'static str],
    directory: PathBuf,
}

impl Service {
    fn new(name: &'static str, options: &'static [&'static str]) -> Self {
        let directory = std::env::temp_dir().join(format!("matrix-outbox-{name}-{}", Uuid::new_v4().simple()));
        Self { name, options, directory }
    }

    fn command(&self, step: &str) -> Command {
        let mut command = Command::new(test_variable("TEST_STACK"));
        command.args([self.name, step, "--dir"]).arg(&self.directory).args(self.options);
        command
    }

    /// Starts it on the port and with the data that it had; returns what it says of itself.
    fn start(&self) -> String {
        let run = self.command("start").output().unwrap();
        assert!(run.status.success(), "{} start: {}", self.name, String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    }

    /// Ends every connection and the server.
    fn stop(&self) {
        let run = self.command("stop").output().unwrap();
        assert!(run.status.success(), "{} stop: {}", self.name, String::from_utf8_lossy(&run.stderr));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.command("stop").output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The value of a line `NAME=value`.
fn said(output: &str, name: &str) -> String {
    let value = output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the server says {name}")).to_owned()
}

/// A Postgres.
#[derive(Debug)]
pub struct PrivatePostgres {
    service: Service,
    /// `postgres://…`
    pub url: String,
}

impl PrivatePostgres {
    /// A new one.
    pub fn start() -> Self {
        let service = Service::new("postgres", &[]);
        let url = said(&service.start(), "DATABASE_URL");
        Self { service, url }
    }

    /// Ends every connection and the server.
    pub fn stop(&self) {
        self.service.stop();
    }

    /// Starts it on the port and with the data that it had.
    pub fn start_again(&self) {
        self.service.start();
    }
}

/// How a homeserver limits the rate of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimits {
    /// As Synapse does unless it is told otherwise: ten events at once, then one in five seconds.
    Default,
    /// Not at all.
    Lifted,
}

/// A Synapse.
#[derive(Debug)]
pub struct PrivateSynapse {
    service: Service,
    /// Where it is.
    pub address: HomeserverAddress,
}

impl PrivateSynapse {
    /// A new one.
    pub fn start(limits: RateLimits) -> Self {
        let options: &[&str] = match limits {
            RateLimits::Default => &["--default-rate-limits"],
            RateLimits::Lifted => &[],
        };
        let service = Service::new("synapse", options);
        let output = service.start();
        let address = HomeserverAddress {
            url: said(&output, "HOMESERVER_URL"),
            server_name: said(&output, "HOMESERVER_NAME"),
            registration_secret: said(&output, "HOMESERVER_REGISTRATION_SECRET"),
        };
        Self { service, address }
    }

    /// Ends every connection and the server.
    pub fn stop(&self) {
        self.service.stop();
    }

    /// Starts it on the port and with the data that it had.
    pub fn start_again(&self) {
        self.service.start();
    }
}
