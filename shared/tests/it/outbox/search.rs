//! What operators find: dead letters by any of their traits, in groups, and what is live or delivered.
use std::{collections::BTreeMap, time::Duration};

use shared::{
    ids::{ConversationId, OutboxId, UserId},
    outbox::{
        self, Attempt, Blame, ClaimedOperation, Counted, Cursor, DeadFilter, DeadLetter, Kind, LiveFilter,
        OperationResult, Outcome, Repair, SentFilter,
    },
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    reactions::react,
    world::{End, Lane, Worker, World},
};

/// Dead letters of every sort. Of many, few have a rare trait, however many there are; four die at a time.
async fn many_dead(world: &World, many: i32) -> (Lane, Lane) {
    let (common, rare) = (world.lane().await, world.lane().await);
    sqlx::query(
        "insert into dead_letters (conversation_id, lane_id, seq, outbox_id, kind, subject_id, revision, enqueued_at,
             attempts, cause, errcode, hint, died_at, user_id, detail)
         select c, c, n, gen_random_uuid(),
             case when rare then 'invite' when n % 2 = 0 then 'message' else 'edit' end, gen_random_uuid(), 1,
             outbox_now(), 1, case when rare then 'gave_up' when n % 3 = 0 then 'parent_dead' else 'own_fault' end,
             case when rare then 'M_FORBIDDEN' when n % 2 = 0 then 'M_TOO_LARGE' when n % 5 <> 0 then 'M_BAD_JSON' end,
             'hint', outbox_now() - make_interval(secs => n / 4), c,
             case when rare then 'the user pear is BANNED (100%)'
                 when n > $3 / 4 then 'long ago the disk was full'
                 when n % 7 <> 0 then 'connection refused by peer' end
         from (
             select n, n % ($3 / 200) = 7 as rare, case when n % ($3 / 200) = 7 then $1 else $2 end as c
             from generate_series(1, $3) n
         ) numbered",
    )
    .bind(rare.id.as_uuid())
    .bind(common.id.as_uuid())
    .bind(many)
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query("vacuum analyze dead_letters").execute(&world.pool).await.unwrap();
    (common, rare)
}

/// Wishes of every sort: those that many meet, few, and none.
async fn wishes(world: &World, common: &Lane, rare: &Lane) -> Vec<DeadFilter> {
    let now: OffsetDateTime = sqlx::query_scalar("select outbox_now()").fetch_one(&world.pool).await.unwrap();
    let none = DeadFilter::default();
    let text = |text: &str| Some(text.to_owned());
    let user = |lane: &Lane| Some(UserId::from(lane.id.as_uuid()));
    vec![
        none.clone(),
        DeadFilter { conversation_id: Some(rare.id), ..none.clone() },
        DeadFilter { conversation_id: Some(ConversationId::generate()), ..none.clone() },
        DeadFilter { kind: text("invite"), ..none.clone() },
        DeadFilter { cause: text("gave_up"), ..none.clone() },
        DeadFilter { errcode: text("M_FORBIDDEN"), ..none.clone() },
        DeadFilter { errcode: text("M_TOO_LARGE"), ..none.clone() },
        DeadFilter { user_id: user(rare), ..none.clone() },
        DeadFilter { user_id: user(rare), kind: text("invite"), ..none.clone() },
        DeadFilter { user_id: user(common), errcode: text("M_TOO_LARGE"), ..none.clone() },
        DeadFilter { conversation_id: Some(common.id), kind: text("edit"), ..none.clone() },
        // Each of the two is common, and nothing has both.
        DeadFilter { kind: text("message"), errcode: text("M_BAD_JSON"), ..none.clone() },
        DeadFilter { kind: text("message"), errcode: text("M_TOO_LARGE"), ..none.clone() },
        DeadFilter { cause: text("own_fault"), kind: text("edit"), ..none.clone() },
        DeadFilter { cause: text("own_fault"), errcode: text("M_TOO_LARGE"), kind: text("message"), ..none.clone() },
        DeadFilter { text: text("pear is banned (100%)"), ..none.clone() },
        DeadFilter { text: text("refused"), ..none.clone() },
        DeadFilter { text: text("100_"), ..none.clone() },
        DeadFilter { text: text("never said"), ..none.clone() },
        DeadFilter { text: text("refused"), kind: text("edit"), ..none.clone() },
        DeadFilter {
            since: Some(now - Duration::from_mins(20)),
            until: Some(now - Duration::from_mins(10)),
            ..none.clone()
        },
        DeadFilter { since: Some(now - Duration::from_mins(20)), errcode: text("M_FORBIDDEN"), ..none.clone() },
        DeadFilter {
            since: Some(now - Duration::from_mins(20)),
            errcode: text("M_TOO_LARGE"),
            kind: text("message"),
            ..none.clone()
        },
    ]
}

fn meets(letter: &DeadLetter, filter: &DeadFilter) -> bool {
    let detail = letter.detail.clone().unwrap_or_default().to_lowercase();
    filter.conversation_id.is_none_or(|id| id == letter.conversation_id)
        && filter.kind.as_ref().is_none_or(|kind| *kind == letter.kind)
        && filter.cause.as_ref().is_none_or(|cause| *cause == letter.cause)
        && filter.errcode.as_ref().is_none_or(|errcode| Some(errcode) == letter.errcode.as_ref())
        && filter.user_id.is_none_or(|user_id| Some(user_id) == letter.user_id)
        && filter.text.as_ref().is_none_or(|text| detail.contains(&text.to_lowercase()))
        && filter.since.is_none_or(|since| letter.died_at >= since)
        && filter.until.is_none_or(|until| letter.died_at < until)
}

async fn all_pages(conn: &mut PgConnection, filter: &DeadFilter, size: i64) -> Vec<OutboxId> {
    let (mut ids, mut before): (Vec<OutboxId>, Option<Cursor>) = (Vec::new(), None);
    loop {
        let page = outbox::dead_letters(conn, filter, before, size).await.unwrap();
        ids.extend(page.iter().map(|letter| letter.outbox_id));
        before = page.last().map(DeadLetter::cursor);
        if page.len() < usize::try_from(size).unwrap() {
            return ids;
        }
    }
}

#[tokio::test]
async fn every_wish_finds_just_the_dead_letters_that_meet_it_newest_first_page_by_page() {
    let world = World::new().await;
    let (common, rare) = many_dead(&world, 12_000).await;
    let mut tx = world.begin().await;
    let all = outbox::dead_letters(&mut tx, &DeadFilter::default(), None, 20_000).await.unwrap();
    assert_eq!(all.len(), 12_000);
    assert!(all.is_sorted_by(|one, next| (one.died_at, one.outbox_id) > (next.died_at, next.outbox_id)));
    let mut wishes = wishes(&world, &common, &rare).await;
    // Common, but long ago: neither among the newest nor few.
    wishes.push(DeadFilter { text: Some("DISK was".to_owned()), ..DeadFilter::default() });
    for filter in wishes {
        let expected: Vec<_> = all.iter().filter(|letter| meets(letter, &filter)).map(|l| l.outbox_id).collect();
        for size in [997, 3_000] {
            assert_eq!(all_pages(&mut tx, &filter, size).await, expected, "{filter:?} in pages of {size}");
        }
        let counted = outbox::count_dead(&mut tx, &filter).await.unwrap();
        let bound = usize::try_from(outbox::COUNTED_LETTERS).unwrap();
        let count = u64::try_from(expected.len().min(bound)).unwrap();
        assert_eq!(counted, Counted { count, more: expected.len() > bound }, "{filter:?}");
    }
}

/// How many pages of the dead letters and their indexes this session has read.
async fn read(conn: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "select sum(pg_stat_get_xact_blocks_fetched(oid))::bigint from pg_class where relname like 'dead_letters%'",
    )
    .fetch_one(conn)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_page_a_count_and_the_groups_read_no_more_when_there_are_twenty_times_as_many_dead() {
    let mut costs: Vec<Vec<(String, i64)>> = Vec::new();
    for many in [12_000, 240_000] {
        let world = World::new().await;
        let (common, rare) = many_dead(&world, many).await;
        let mut of_size = Vec::new();
        for filter in wishes(&world, &common, &rare).await {
            let mut tx = world.begin().await;
            sqlx::query("set local enable_seqscan = off").execute(&mut *tx).await.unwrap();
            let before = read(&mut tx).await;
            let page = outbox::dead_letters(&mut tx, &filter, None, 50).await.unwrap();
            if let Some(last) = page.last() {
                outbox::dead_letters(&mut tx, &filter, Some(last.cursor()), 50).await.unwrap();
            }
            let listed = read(&mut tx).await;
            outbox::count_dead(&mut tx, &filter).await.unwrap();
            let counted = read(&mut tx).await;
            of_size.push((format!("two pages for {filter:?}"), listed - before));
            of_size.push((format!("a count for {filter:?}"), counted - listed));
        }
        let mut tx = world.begin().await;
        let before = read(&mut tx).await;
        outbox::dead_groups(&mut tx, 50).await.unwrap();
        of_size.push(("the groups".to_owned(), read(&mut tx).await - before));
        costs.push(of_size);
    }
    let [few, many] = costs.as_slice() else { panic!("two sizes") };
    for ((what, few), (_, many)) in few.iter().zip(many) {
        println!("{few:6} {many:6} {what}");
    }
    for ((what, few), (_, many)) in few.iter().zip(many) {
        // Where no index has all that is asked for, a count goes over as many that do not meet it as it counts.
        let bound = if what.starts_with("a count") { 25_000 } else { 3 * few + 1_000 };
        assert!(*many <= bound, "{what}: {few} pages, and {many} with twenty times as much");
    }
}

#[tokio::test]
async fn the_groups_are_all_there_are_each_counted_the_largest_first() {
    let world = World::new().await;
    many_dead(&world, 30_000).await;
    let mut tx = world.begin().await;
    let all = outbox::dead_letters(&mut tx, &DeadFilter::default(), None, 50_000).await.unwrap();
    let mut expected: BTreeMap<(String, Option<String>, String), Vec<&DeadLetter>> = BTreeMap::new();
    for letter in &all {
        let key = (letter.cause.clone(), letter.errcode.clone(), letter.kind.clone());
        expected.entry(key).or_default().push(letter);
    }
    let groups = outbox::dead_groups(&mut tx, 50).await.unwrap();
    assert_eq!(groups.len(), expected.len());
    assert!(groups.is_sorted_by_key(|group| std::cmp::Reverse(group.count.count)));
    for group in &groups {
        let letters = &expected[&(group.cause.clone(), group.errcode.clone(), group.kind.clone())];
        let count = letters.len().min(10_000) as u64;
        assert_eq!(group.count, Counted { count, more: letters.len() > 10_000 }, "{group:?}");
        assert_eq!(group.newest, letters[0].outbox_id);
        assert_eq!(group.newest_at, letters[0].died_at);
        assert_eq!(group.oldest_at, letters.last().unwrap().died_at);
    }
    let banned = groups.iter().find(|group| group.kind == "invite").unwrap();
    assert_eq!(banned.repair, Some(Repair::Reinvite));
    assert!(banned.hint.contains("ban"), "{}", banned.hint);
    assert_eq!(outbox::dead_groups(&mut tx, 2).await.unwrap().len(), 2);
}

/// A result with what the homeserver answered.
fn answered(operation: &ClaimedOperation, outcome: Outcome, errcode: &str, detail: &str) -> OperationResult {
    let attempt = Attempt {
        errcode: Some(errcode.to_owned()),
        detail: Some(detail.to_owned()),
        http_status: Some(400),
        ..Attempt::default()
    };
    OperationResult { operation: operation.clone(), outcome, attempt: Some(attempt), found: Vec::new(), anew: false }
}

#[tokio::test]
async fn a_dead_letter_says_whose_it_is_and_what_went_wrong_with_what_was_parked_for_it() {
    let lane = World::with_lane().await;
    let worker = Worker::new();
    let posted = lane.post("one").await;
    let claimed = lane.claim(&worker, 1).await;
    // Handed out: so the edit is an operation of its own, and is parked with the message.
    lane.edit(&posted, "two").await;
    let result = answered(&claimed.operations[0], Outcome::OwnFault { hint: "?" }, "M_TOO_LARGE", "65 KiB at most");
    lane.settle_results(&worker, claimed.claim, vec![result]).await;
    let reactor = UserId::generate();
    react(&lane, &posted, reactor, "+1").await.unwrap();
    let mut tx = lane.world.begin().await;
    let letters = outbox::dead_letters(&mut tx, &DeadFilter::default(), None, 10).await.unwrap();
    let of = |kind: &str| letters.iter().find(|letter| letter.kind == kind).unwrap();
    let message = of("message");
    assert_eq!((message.user_id, message.detail.as_deref()), (Some(lane.world.author), Some("65 KiB at most")));
    assert_eq!((of("edit").user_id, of("edit").detail.as_deref()), (Some(lane.world.author), None));
    assert_eq!(of("react").user_id, Some(reactor), "parked before its reaction is written down");
    let of_reactor = DeadFilter { user_id: Some(reactor), ..DeadFilter::default() };
    assert_eq!(outbox::dead_letters(&mut tx, &of_reactor, None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_waits_is_found_by_the_code_of_its_last_failure_and_by_whose_it_is() {
    let world = World::new().await;
    let (lane, other) = (world.lane().await, world.lane().await);
    let worker = Worker::new();
    let limited = lane.post("limited").await;
    let waits = Outcome::Refused { retry_in: Duration::from_mins(5), blame: Blame::Nobody };
    let claimed = lane.claim(&worker, 1).await;
    let result = answered(&claimed.operations[0], waits, "M_LIMIT_EXCEEDED", "slower");
    lane.settle_results(&worker, claimed.claim, vec![result]).await;
    other.post("another").await;
    let mut tx = world.begin().await;
    let mut found = async |filter: LiveFilter| outbox::live_operations(&mut tx, &filter, None, 10).await.unwrap();
    let by_code = found(LiveFilter { errcode: Some("M_LIMIT_EXCEEDED".to_owned()), ..LiveFilter::default() }).await;
    assert_eq!(by_code.len(), 1);
    assert_eq!((by_code[0].outbox_id, by_code[0].user_id), (limited.outbox_id, Some(world.author)));
    assert_eq!(by_code[0].last_errcode.as_deref(), Some("M_LIMIT_EXCEEDED"));
    assert_eq!(found(LiveFilter { user_id: Some(world.author), ..LiveFilter::default() }).await.len(), 2);
    assert!(found(LiveFilter { user_id: Some(UserId::generate()), ..LiveFilter::default() }).await.is_empty());
    let now: OffsetDateTime = sqlx::query_scalar("select outbox_now()").fetch_one(&world.pool).await.unwrap();
    assert!(found(LiveFilter { since: Some(now), ..LiveFilter::default() }).await.is_empty());
    assert_eq!(found(LiveFilter { until: Some(now), ..LiveFilter::default() }).await.len(), 2);
    drop(tx);
    // A failure without a code takes the code away.
    world.advance(Duration::from_mins(5)).await;
    other.hold().await;
    lane.step(&worker, End::Refused).await;
    let codes =
        lane.number("select count(*) from outbox where conversation_id = $1 and last_errcode is not null").await;
    assert_eq!(codes, 0);
}

#[tokio::test]
async fn what_was_delivered_is_found_by_its_conversation_its_kind_and_its_author_the_last_made_first() {
    let world = World::new().await;
    let (lane, other) = (world.lane().await, world.lane().await);
    let one = lane.post("one").await;
    lane.drain().await;
    lane.edit(&one, "two").await;
    lane.drain().await;
    other.post("elsewhere").await;
    other.drain().await;
    let mut tx = world.begin().await;
    let mut found = async |filter: SentFilter| {
        let mut ids: Vec<Uuid> = Vec::new();
        let mut before = None;
        loop {
            let page = outbox::sent_operations(&mut tx, &filter, before, 1).await.unwrap();
            let Some(last) = page.last() else { break };
            before = Some(last.cursor());
            assert!(last.user_id == Some(world.author) && last.sender == "@service:nova.test", "{last:?}");
            ids.push(last.outbox_id.as_uuid());
        }
        assert!(ids.is_sorted_by(|one, next| one > next));
        ids.len()
    };
    let here = SentFilter { conversation_id: Some(lane.id), ..SentFilter::default() };
    assert_eq!(found(SentFilter::default()).await, 3);
    assert_eq!(found(here.clone()).await, 2);
    assert_eq!(found(SentFilter { kind: Some(Kind::Edit.as_str().to_owned()), ..SentFilter::default() }).await, 1);
    assert_eq!(found(SentFilter { user_id: Some(UserId::generate()), ..SentFilter::default() }).await, 0);
    assert_eq!(found(SentFilter { user_id: Some(world.author), ..here }).await, 2);
}
