//! Repairs of many: just the conversations are repaired that suffer from what the repair mends, and each of them once.
use serde_json::json;
use shared::{
    ids::ConversationId,
    outbox::{
        self, Ailment, HOLD_ALIAS_NOT_OURS, HOLD_NEVER_IN_ROOM, HOLD_NOT_IN_REPLACEMENT, HOLD_NOT_IN_ROOM, Repair,
    },
    tasks::{self, TaskStatus},
};

use super::world::{Lane, World};

const OPERATOR: &str = "operator";

fn of(repair: Repair) -> Ailment<'static> {
    Ailment { repair, errcode: None }
}

async fn ailing(world: &World, of: Ailment<'_>) -> Vec<ConversationId> {
    outbox::ailing(&mut *world.begin().await, of).await.unwrap()
}

/// The ids of lanes, in their order.
fn ids(lanes: &[&Lane]) -> Vec<ConversationId> {
    let mut ids: Vec<_> = lanes.iter().map(|lane| lane.id).collect();
    ids.sort_unstable();
    ids
}

async fn held(world: &World, reason: &str) -> Lane {
    let lane = world.lane().await;
    let mut tx = world.begin().await;
    assert!(outbox::hold(&mut tx, lane.id, lane.lane_id(), reason).await.unwrap());
    tx.commit().await.unwrap();
    lane
}

/// Letters, and the members that they are about.
async fn dead(lane: &Lane, kind: &str, cause: &str, errcode: Option<&str>, many: i32) {
    sqlx::query(
        "with letters as (
             insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
                 attempts, cause, errcode, hint, died_at)
             select $1, $1, -n - (select count(*) from dead_letters), gen_random_uuid(), $2, gen_random_uuid(), 1,
                 outbox_now(), 1, $3, $4, 'hint', outbox_now()
             from generate_series(1, $5) n
             returning conversation_id, subject_id
         )
         insert into conversation_members (conversation_id, user_id, added_seq)
         select conversation_id, subject_id, 1 from letters",
    )
    .bind(lane.id.as_uuid())
    .bind(kind)
    .bind(cause)
    .bind(errcode)
    .bind(many)
    .execute(&lane.world.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn who_is_rejoined_or_gets_the_alias_is_held_for_just_that() {
    let world = World::new().await;
    let not_ours = format!("the alias #nova-conv-1:nova.test {HOLD_ALIAS_NOT_OURS}");
    let [never, gone, replaced, alias, both, _] = [
        held(&world, HOLD_NEVER_IN_ROOM).await,
        held(&world, HOLD_NOT_IN_ROOM).await,
        held(&world, &format!("to look; held before: {HOLD_NOT_IN_REPLACEMENT}")).await,
        held(&world, &not_ours).await,
        held(&world, &format!("{HOLD_NOT_IN_ROOM}; and: {not_ours}")).await,
        held(&world, "an operator's wish").await,
    ];
    let well = world.lane().await;
    dead(&well, "invite", "own_fault", Some("M_FORBIDDEN"), 1).await;
    assert_eq!(ailing(&world, of(Repair::Rejoin)).await, ids(&[&never, &gone, &replaced, &both]));
    assert_eq!(ailing(&world, of(Repair::AdoptAlias)).await, ids(&[&alias]));
    // As the lists say it, lane by lane.
    for lane in outbox::held_lanes(&mut *world.begin().await, None, None, 100).await.unwrap() {
        for repair in [Repair::Rejoin, Repair::AdoptAlias] {
            let is_in = ailing(&world, of(repair)).await.contains(&lane.conversation_id);
            assert_eq!(is_in, lane.repair == Some(repair), "{}", lane.reason);
        }
    }
}

#[tokio::test]
async fn who_is_invited_again_has_invitations_that_died_of_a_refusal_and_of_the_code_that_was_asked_for() {
    let world = World::new().await;
    let (one, other, gone) = (world.lane().await, world.lane().await, world.lane().await);
    dead(&one, "invite", "own_fault", Some("M_FORBIDDEN"), 3).await;
    dead(&one, "invite", "gave_up", Some("M_UNKNOWN"), 1).await;
    dead(&other, "invite", "gave_up", Some("M_NOT_FOUND"), 1).await;
    dead(&gone, "invite", "own_fault", Some("M_USER_DEACTIVATED"), 1).await;
    dead(&gone, "message", "own_fault", Some("M_FORBIDDEN"), 1).await;
    dead(&gone, "invite", "gave_up", None, 1).await;
    held(&world, HOLD_NOT_IN_ROOM).await;
    let removed = world.lane().await;
    dead(&removed, "invite", "own_fault", Some("M_FORBIDDEN"), 1).await;
    let remove = "update conversation_members set removed_seq = 2 where conversation_id = $1";
    sqlx::query(remove).bind(removed.id.as_uuid()).execute(&world.pool).await.unwrap();
    assert_eq!(ailing(&world, of(Repair::Reinvite)).await, ids(&[&one, &other]), "nobody invites who was removed");
    for (code, expected) in [
        ("M_FORBIDDEN", vec![&one]),
        ("M_UNKNOWN", vec![&one]),
        ("M_NOT_FOUND", vec![&other]),
        ("M_USER_DEACTIVATED", vec![]),
        ("", vec![]),
    ] {
        let of = Ailment { repair: Repair::Reinvite, errcode: Some(code) };
        assert_eq!(ailing(&world, of).await, ids(&expected), "{code}");
        let counted = outbox::count_ailing(&mut *world.begin().await, of).await.unwrap();
        assert_eq!((counted.count, counted.more), (expected.len() as u64, false), "{code}");
    }
}

#[tokio::test]
async fn a_count_looks_at_so_many_letters_and_says_when_there_are_more() {
    let world = World::new().await;
    let (one, other) = (world.lane().await, world.lane().await);
    let most = i32::try_from(outbox::COUNTED_LETTERS).unwrap();
    dead(&one, "invite", "own_fault", Some("M_FORBIDDEN"), most - 1).await;
    dead(&other, "invite", "own_fault", Some("M_FORBIDDEN"), 1).await;
    let count = async || outbox::count_ailing(&mut *world.begin().await, of(Repair::Reinvite)).await.unwrap();
    assert_eq!(count().await.to_string(), "2");
    dead(&other, "invite", "gave_up", Some("M_FORBIDDEN"), 1).await;
    assert!(count().await.more);
    assert_eq!(ailing(&world, of(Repair::Reinvite)).await, ids(&[&one, &other]), "a task takes all");
}

#[test]
fn a_code_is_short_and_on_one_line() {
    let problem = |errcode: &str| Ailment { repair: Repair::Reinvite, errcode: Some(errcode) }.problem();
    assert_eq!(problem("M_FORBIDDEN"), None);
    for errcode in ["M_\0", "M_\n", &"M".repeat(201)] {
        let filter = outbox::DeadFilter { errcode: Some(errcode.to_owned()), ..Default::default() };
        assert_eq!(filter.problem(), problem(errcode));
        assert!(problem(errcode).is_some_and(|problem| problem.starts_with("errcode: ")), "{errcode:?}");
    }
}

#[tokio::test]
async fn a_repair_of_all_is_one_task_and_one_act_and_a_part_for_each_conversation() {
    let world = World::new().await;
    let (one, other) = (held(&world, HOLD_NOT_IN_ROOM).await, held(&world, HOLD_NEVER_IN_ROOM).await);
    let mut tx = world.begin().await;
    let task = tasks::start_repairs(&mut tx, OPERATOR, of(Repair::Rejoin), Some("why")).await.unwrap();
    assert_eq!((task.expected, task.conversation_id, task.status), (2, None, TaskStatus::Running));
    assert_eq!(task.arguments, json!({"repair": "rejoin"}));
    assert_eq!(tasks::parts(&mut tx, task.task_id, 10).await.unwrap(), ids(&[&one, &other]));
    let of_code = Ailment { repair: Repair::Reinvite, errcode: Some("M_FORBIDDEN") };
    let nothing = tasks::start_repairs(&mut tx, OPERATOR, of_code, Some("why")).await.unwrap();
    assert_eq!((nothing.expected, nothing.status), (0, TaskStatus::Done));
    assert_eq!(nothing.arguments, json!({"repair": "reinvite", "errcode": "M_FORBIDDEN"}));
    tx.commit().await.unwrap();
    let acts: Vec<(String, String, Option<String>, i32)> = sqlx::query_as(
        "select verb, scope, reason, (arguments ->> 'expected')::integer from audit_log order by audit_id",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    let act = |many| ("repair".to_owned(), "all".to_owned(), Some("why".to_owned()), many);
    assert_eq!(acts, [act(2), act(0)], "the trail says of how many");
}
