//! What the worker refuses to start with, and what the operators' command line says of it.

use std::process::{Command, Output, Stdio};

use shared::testing::{
    eventually,
    homeserver::FakeHomeserver,
    nova::{Environment, Program, program_path, worker_environment},
};

use crate::scene::{Home, Scene};

fn run(program: &str, arguments: &[&str], environment: &Environment) -> Output {
    Command::new(program_path(program))
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_user_device_or_none_is_refused_with_the_reason() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let right = worker_environment("postgres://nowhere.invalid/x", &home.account);
    for (option, value, reason) in [
        ("MATRIX_SERVICE_USER", "@someone:elsewhere", "belongs to"),
        ("MATRIX_DEVICE_ID", "OTHER", "belongs to the device NOVAOUTBOX"),
        ("MATRIX_ACCESS_TOKEN", "wrong", "does not accept MATRIX_ACCESS_TOKEN"),
    ] {
        let mut environment = right.clone();
        environment.insert(option.into(), value.into());
        let mut worker = Program::spawn("worker", &environment);
        assert_eq!(worker.ended().await.code(), Some(1));
        let log = eventually(&format!("the log says that {option} {reason}"), || async {
            Some(worker.log().join("\n")).filter(|log| log.contains(reason))
        })
        .await;
        assert!(!log.contains(home.account.access_token()), "a token is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_is_well_and_what_is_not() {
    let fake = FakeHomeserver::start().await;
    let home = Home::of(&fake).await;
    let scene = Scene::new(&home).await;
    let well = run("outboxctl", &["doctor"], &scene.worker_environment);
    assert_eq!(well.status.code(), Some(0), "{}", said(&well));
    for check in ["database", "clock", "token", "room version", "upload limit"] {
        assert!(said(&well).contains(check), "{check} in:\n{}", said(&well));
    }
    fake.revoke_token(home.account.user_id());
    let ill = run("outboxctl", &["doctor", "--json"], &scene.worker_environment);
    assert_eq!(ill.status.code(), Some(1));
    let findings: serde_json::Value = serde_json::from_slice(&ill.stdout).unwrap();
    let token = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "token").unwrap();
    assert_eq!(token["ok"], false);
    assert!(token["detail"].as_str().unwrap().contains("M_UNKNOWN_TOKEN"), "{token}");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_check_reports_every_mistake_of_both_programs_at_once() {
    let wrong = Environment::from([
        ("MATRIX_ENABLED".into(), "true".into()),
        ("DATABASE_URL".into(), "postgres://localhost/x".into()),
        ("OUTBOX_LEASE".into(), "soon".into()),
    ]);
    let output = run("outboxctl", &["config", "check"], &wrong);
    assert_eq!(output.status.code(), Some(2));
    for option in [
        "CONTENT_KEYS",
        "JWT_SECRET",
        "MATRIX_HOMESERVER_URL",
        "MATRIX_SERVICE_USER",
        "MATRIX_ACCESS_TOKEN",
        "OUTBOX_LEASE",
    ] {
        assert!(said(&output).lines().any(|line| line.starts_with(option)), "{option} in:\n{}", said(&output));
    }
    assert!(said(&output).contains("api: 2 wrong"), "{}", said(&output));
}

#[test]
fn every_option_of_the_worker_appears_in_its_help() {
    let output = run("worker", &["--help"], &Environment::new());
    for option in [
        "DATABASE_URL",
        "DATABASE_URL_FILE",
        "CONTENT_KEYS",
        "MATRIX_ENABLED",
        "MATRIX_HOMESERVER_URL",
        "MATRIX_SERVICE_USER",
        "MATRIX_ACCESS_TOKEN",
        "MATRIX_ACCESS_TOKEN_FILE",
        "MATRIX_DEVICE_NAME",
        "MATRIX_DEVICE_ID",
        "OUTBOX_LEASE",
        "OUTBOX_POLL",
        "WORKER_LISTEN",
        "LOG_FORMAT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "TRACES_RATIO",
    ] {
        assert!(said(&output).contains(option), "{option} in:\n{}", said(&output));
    }
    for program in ["worker", "outboxctl"] {
        let output = run(program, &["--version"], &Environment::new());
        assert_eq!(said(&output).trim(), format!("{program} {}", env!("CARGO_PKG_VERSION")));
    }
}
