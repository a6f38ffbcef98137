//! Laws that every statement of the product keeps, checked on the offline data of all of them.

use std::{fs, path::Path};

use serde_json::Value;

/// Every statement, as the offline data has it.
fn statements() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.sqlx");
    let statements: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .map(|text| serde_json::from_str::<Value>(&text).unwrap()["query"].as_str().unwrap().to_lowercase())
        .collect();
    assert!(statements.len() > 50);
    statements
}

#[test]
fn statements_name_no_clock_but_the_databases_own_that_a_test_can_move() {
    for statement in statements() {
        let bare = statement.replace("outbox_now()", "");
        let foreign = ["now()", "current_timestamp", "statement_timestamp", "localtimestamp", "timeofday"]
            .into_iter()
            .find(|clock| bare.contains(clock));
        assert_eq!(foreign, None, "{statement}");
        // The doctor compares the machine's clock with the server's real one.
        if bare.contains("clock_timestamp") {
            assert_eq!(bare.trim(), r#"select clock_timestamp() as "now!""#);
        }
    }
}

#[test]
fn a_wake_up_is_never_part_of_another_statement() {
    for statement in statements() {
        if statement.contains("notify") {
            assert!(statement.starts_with("select pg_notify("), "{statement}");
        }
    }
}

#[test]
fn conversations_are_locked_in_a_way_that_foreign_keys_do_not_wait_for() {
    for statement in statements() {
        let bare = statement.replace("for no key update", "");
        assert!(!bare.contains("for update"), "{statement}");
    }
}

#[test]
fn the_trail_of_operators_is_only_ever_added_to() {
    let of_the_trail: Vec<_> = statements().into_iter().filter(|statement| statement.contains("audit_log")).collect();
    assert!(!of_the_trail.is_empty());
    for statement in of_the_trail {
        let first = statement.split_whitespace().next().unwrap_or_default();
        assert!(statement.trim_start().starts_with("insert into audit_log") || first == "select", "{statement}");
        assert!(!statement.contains("on conflict"), "{statement}");
    }
}
