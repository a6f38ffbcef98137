//! Claiming: leases on lanes that are due, and what their first operations need to be sent.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    CallToSend, Kind, LaneClass, Previous, ReactionToSend, Related, pause,
    related::{Relations, Wanted},
};
use crate::{
    chat::MessageKind,
    failpoint::{Point, reach},
    ids::{ConversationId, EventId, LaneId, MessageId, OutboxId, RoomId, UserId, WorkerId},
    seal::Place,
    trace::TraceParent,
};

/// What to claim, and for whom.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Who claims.
    pub worker_id: WorkerId,
    /// The Matrix user who will send what has no sender yet.
    pub sender: String,
    /// That user's device; empty when the token has none, so that the homeserver cannot remember transactions.
    pub device: String,
    /// Which class of lanes.
    pub class: LaneClass,
    /// How many lanes at most.
    pub lanes: u16,
    /// How many operations of a lane at most.
    pub operations: u16,
    /// How long the lease lasts.
    pub lease: Duration,
    /// An ambiguous attempt older than this is looked up before it is repeated.
    pub dedupe_window: Duration,
    /// Lanes due before this are not looked for; see [`oldest_due`].
    pub bookmark: Option<OffsetDateTime>,
}

/// What a claim found.
#[derive(Debug)]
pub struct Claim {
    /// Batches to send, each of one lane.
    pub batches: Vec<Claimed>,
    /// How many lanes were locked: equal to the number asked for when there may be more.
    pub lanes: usize,
    /// How many of them were taken over from an owner whose lease had lapsed.
    pub taken_over: usize,
}

/// The right to write back: the lane, at the epoch of this claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneClaim {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The lane.
    pub lane_id: LaneId,
    /// Its class.
    pub class: LaneClass,
    /// The fencing token.
    pub epoch: i64,
}

/// A lane's batch, handed to a sender.
#[derive(Debug)]
pub struct Claimed {
    /// The right to write back.
    pub claim: LaneClaim,
    /// The room, when it is known to be whole.
    pub room_id: Option<RoomId>,
    /// The lane's first operations, in order; never empty.
    pub operations: Vec<ClaimedOperation>,
}

/// How an operation is to be brought to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Send it.
    Put,
    /// Its earlier attempt is older than the homeserver's memory: look for its marker first, send it only if absent.
    LookUp,
    /// Its message was deleted, or the reaction taken back, after it was handed out: its words must not leave any more. Its transaction id is closed;
    /// where the earlier attempt is older than the homeserver's memory, its marker is looked for first.
    Close {
        /// Look before closing.
        look_up: bool,
    },
    /// It is not to be sent any more, and never was: it just goes.
    Drop,
    /// It already stands in the room: nothing is sent.
    Known(EventId),
}

/// One operation, with what it takes to send it.
#[derive(Debug, Clone)]
pub struct ClaimedOperation {
    /// Its id: transaction id and marker.
    pub outbox_id: OutboxId,
    /// Its place in the lane.
    pub seq: i64,
    /// What it does.
    pub kind: Kind,
    /// The message, the member or the call.
    pub subject_id: Uuid,
    /// Which revision it carries.
    pub revision: Option<i32>,
    /// How to end it.
    pub mode: Mode,
    /// Its earlier attempt was another account's or device's, or had no device: the homeserver does not know a repetition
    /// by us for one.
    pub foreign: bool,
    /// Attempts that failed by its own fault.
    pub attempts: i32,
    /// Attempts in a row that failed for any reason but a rate limit.
    pub failures: i32,
    /// How long it has been tried since it first failed in a way that may be its own fault; none when it was not tried for
    /// a while before this.
    pub suspected_for: Option<Duration>,
    /// How long ago it last failed.
    pub since_failure: Option<Duration>,
    /// When it was enqueued.
    pub enqueued_at: OffsetDateTime,
    /// How long it has waited, by the database's clock.
    pub waited: Duration,
    /// How long ago it might have gone for the first time since it was enqueued, failed, or came back.
    pub queued: Duration,
    /// The Matrix user who sends it.
    pub sender: String,
    /// That user's device; empty for none.
    pub device: String,
    /// When an attempt may first have reached the homeserver.
    pub maybe_sent_at: Option<OffsetDateTime>,
    /// The rooms that it may then stand in, if the conversation has had others since: those that it left, newest first.
    pub maybe_sent_to: Vec<RoomId>,
    /// The author of the message.
    pub author_id: Option<UserId>,
    /// What kind of message it is.
    pub message_kind: Option<MessageKind>,
    /// The sealed content of the revision; none once it was wiped.
    pub body: Option<Vec<u8>>,
    /// True when that is more than a text.
    pub rich: bool,
    /// What was sent before, for an edit that is more than a text.
    pub previous: Option<Previous>,
    /// The message that this one answers.
    pub reply_to: Option<Related>,
    /// The first message of the thread that this one stands in.
    pub thread_of: Option<Related>,
    /// The reaction that is sent.
    pub reaction: Option<ReactionToSend>,
    /// The call that it is about, and what it says there.
    pub call: Option<CallToSend>,
    /// The operation that sent the message which this one edits or reacts to.
    pub original_outbox_id: Option<OutboxId>,
    /// The event which this one edits or reacts to, once known, and the room that has it.
    pub original: Option<(EventId, RoomId)>,
    /// What a redaction is aimed at.
    pub target: Option<Target>,
    /// The trace of the request that wrote it.
    pub trace: Option<TraceParent>,
}

/// What a redaction is aimed at.
#[derive(Debug, Clone)]
pub struct Target {
    /// The operation whose event goes.
    pub outbox_id: OutboxId,
    /// Its event, once known, and the room that has it.
    pub event: Option<(EventId, RoomId)>,
    /// Whether it may stand in the room although no event is known, and as whose.
    pub maybe_sent: Option<MaybeSent>,
    /// The rooms that it may then stand in, if the conversation has had others since: those that it left, newest first.
    pub maybe_sent_to: Vec<RoomId>,
}

/// As whom and since when something may stand in a room.
#[derive(Debug, Clone)]
pub struct MaybeSent {
    /// What it was: a message, an edit or a reaction.
    pub kind: Kind,
    /// The revision that it carried.
    pub revision: Option<i32>,
    /// The Matrix user who sent it.
    pub sender: String,
    /// That user's device.
    pub device: String,
    /// When it may first have arrived.
    pub at: OffsetDateTime,
    /// How long ago it was given up at the latest.
    pub given_up_for: Duration,
    /// True when that is longer ago than the homeserver remembers, or `foreign`.
    pub forgotten: bool,
    /// True when it was another account's or device's, or had no device.
    pub foreign: bool,
}

impl ClaimedOperation {
    /// Where its text is sealed to; none for what carries no text.
    pub fn place(&self, conversation_id: ConversationId) -> Option<Place> {
        let revision = self.revision?;
        Some(Place { conversation_id, message_id: MessageId::from(self.subject_id), revision })
    }
}

/// The oldest due time of a class: the bookmark of the claims that follow.
///
/// Under a snapshot that someone holds open, every claim walks over the dead index entries of all that was done since.
/// Between full scans a claim therefore starts at the oldest entry that the last full scan found alive.
pub async fn oldest_due(
    conn: &mut PgConnection,
    class: LaneClass,
) -> Result<(Option<OffsetDateTime>, OffsetDateTime), sqlx::Error> {
    let row = sqlx::query!(
        r#"
        select (
            select due_at from lanes where lane_class = $1 and due_at is not null order by due_at limit 1
        ) as oldest, outbox_now() as "now!"
        "#,
        class.as_str(),
    )
    .fetch_one(conn)
    .await?;
    Ok((row.oldest, row.now))
}

/// Claims lanes of a class that are due. Call it in a transaction of its own and commit at once.
pub async fn claim(conn: &mut PgConnection, request: &ClaimRequest) -> Result<Claim, sqlx::Error> {
    let began = Instant::now();
    if pause::is_paused(conn, request.class).await? {
        return Ok(Claim { batches: Vec::new(), lanes: 0, taken_over: 0 });
    }
    // Locks and reads nothing else: what follows sees every transaction that held one of these lanes.
    let lanes = sqlx::query!(
        r#"
        select conversation_id as "conversation_id: ConversationId", lane_id as "lane_id: LaneId", epoch,
            owner is not null as "lapsed!", outbox_now() as "now!"
        from lanes
        where lane_class = $1
            and due_at <= outbox_now()
            and due_at >= coalesce($2::timestamptz, '-infinity'::timestamptz)
            and hold is null
            and (leased_until is null or leased_until <= outbox_now())
        order by due_at
        limit $3
        for no key update skip locked
        "#,
        request.class.as_str(),
        request.bookmark,
        i64::from(request.lanes),
    )
    .fetch_all(&mut *conn)
    .await?;
    let Some(first) = lanes.first() else { return Ok(Claim { batches: Vec::new(), lanes: 0, taken_over: 0 }) };
    reach(Point::ClaimLocked);
    let now = first.now;
    let conversations: Vec<Uuid> = lanes.iter().map(|lane| lane.conversation_id.as_uuid()).collect();
    let lane_ids: Vec<Uuid> = lanes.iter().map(|lane| lane.lane_id.as_uuid()).collect();

    let lapsed: Vec<_> = lanes.iter().filter(|lane| lane.lapsed).collect();
    if !lapsed.is_empty() {
        mark_ambiguous(
            conn,
            &lapsed.iter().map(|lane| lane.conversation_id.as_uuid()).collect::<Vec<_>>(),
            &lapsed.iter().map(|lane| lane.lane_id.as_uuid()).collect::<Vec<_>>(),
        )
        .await?;
        reach(Point::ClaimMarked);
    }
    let taken_over = lapsed.len();

    let mut operations = due_operations(conn, request, (&conversations, &lane_ids), now, began).await?;
    reach(Point::ClaimRead);
    let mut batches = Vec::with_capacity(lanes.len());
    let mut handed_through = Vec::with_capacity(lanes.len());
    for lane in &lanes {
        let (room_id, operations) = operations.remove(&(lane.conversation_id, lane.lane_id)).unwrap_or_default();
        handed_through.push(operations.last().map(|operation: &ClaimedOperation| operation.seq));
        if !operations.is_empty() {
            let claim = LaneClaim {
                conversation_id: lane.conversation_id,
                lane_id: lane.lane_id,
                class: request.class,
                epoch: lane.epoch + 1,
            };
            batches.push(Claimed { claim, room_id, operations });
        }
    }
    fix_senders(conn, request, &batches).await?;
    reach(Point::ClaimFixed);

    // A lane whose first operation turns out not to be due yet is given back at once.
    sqlx::query!(
        r#"
        update lanes l
        set epoch = l.epoch + 1,
            owner = case when c.handed_through is not null then $4::uuid end,
            leased_until = case when c.handed_through is not null then $5::timestamptz end,
            claimed_at = case when c.handed_through is not null then $6::timestamptz end,
            frozen_through = greatest(l.frozen_through, c.handed_through),
            due_at = case when c.handed_through is not null then l.due_at
                else outbox_due(l.conversation_id, l.lane_id, $6::timestamptz + interval '1 second', l.hold,
                    l.paused_until) end
        from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as c (conversation_id, lane_id, handed_through)
        where l.conversation_id = c.conversation_id and l.lane_id = c.lane_id
        "#,
        &conversations,
        &lane_ids,
        &handed_through as &[Option<i64>],
        request.worker_id.as_uuid(),
        now + request.lease,
        now,
    )
    .execute(&mut *conn)
    .await?;
    reach(Point::ClaimWritten);
    Ok(Claim { batches, lanes: lanes.len(), taken_over })
}

/// Whatever a lapsed owner was handed may have been sent from its claim on, and until its lease lapsed: nobody knows, so it
/// counts as ambiguous. What has no sender was never handed to anybody: an edit that came back with its message stands
/// among what is frozen.
async fn mark_ambiguous(conn: &mut PgConnection, conversations: &[Uuid], lanes: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update outbox o
        set maybe_sent_at = coalesce(o.maybe_sent_at, l.claimed_at),
            last_failed_at = greatest(o.last_failed_at, l.leased_until)
        from unnest($1::uuid[], $2::uuid[]) as c (conversation_id, lane_id)
        join lanes l on l.conversation_id = c.conversation_id and l.lane_id = c.lane_id
        where o.conversation_id = c.conversation_id
            and o.lane_id = c.lane_id
            and o.seq <= l.frozen_through
            and o.sender is not null
        "#,
        conversations,
        lanes,
    )
    .execute(conn)
    .await?;
    Ok(())
}

type Batches = HashMap<(ConversationId, LaneId), (Option<RoomId>, Vec<ClaimedOperation>)>;

/// One of the first operations of a lane, as the database has it.
struct DueRow {
    conversation_id: ConversationId,
    lane_id: LaneId,
    seq: i64,
    outbox_id: OutboxId,
    kind: String,
    subject_id: Uuid,
    revision: Option<i32>,
    attempts: i32,
    failures: i32,
    first_failed_at: Option<OffsetDateTime>,
    last_failed_at: Option<OffsetDateTime>,
    enqueued_at: OffsetDateTime,
    due_at: OffsetDateTime,
    maybe_sent_at: Option<OffsetDateTime>,
    sender: Option<String>,
    device: Option<String>,
    target_outbox_id: Option<OutboxId>,
    known_event_id: Option<EventId>,
    author_id: Option<UserId>,
    deleted: bool,
    original_outbox_id: Option<OutboxId>,
    message_kind: Option<MessageKind>,
    reply_to: Option<MessageId>,
    thread_of: Option<MessageId>,
    body: Option<Vec<u8>>,
    rich: Option<bool>,
    original_event_id: Option<EventId>,
    original_room_id: Option<RoomId>,
    target_event_id: Option<EventId>,
    target_room_id: Option<RoomId>,
    target_sender: Option<String>,
    target_device: Option<String>,
    target_maybe_sent_at: Option<OffsetDateTime>,
    target_withdrawn_at: Option<OffsetDateTime>,
    target_left_rooms: Vec<RoomId>,
    target_kind: Option<String>,
    target_revision: Option<i32>,
    room_id: Option<RoomId>,
    left_rooms: Vec<RoomId>,
    trace: Option<String>,
}

/// The first operations of each lane, up to the first that is not due or of a kind that only a newer release knows.
async fn due_operations(
    conn: &mut PgConnection,
    request: &ClaimRequest,
    (conversations, lanes): (&[Uuid], &[Uuid]),
    now: OffsetDateTime,
    began: Instant,
) -> Result<Batches, sqlx::Error> {
    let rows = sqlx::query_as!(
        DueRow,
        r#"
        select o.conversation_id as "conversation_id!: ConversationId", o.lane_id as "lane_id!: LaneId",
            o.seq as "seq!", o.outbox_id as "outbox_id!: OutboxId", o.kind as "kind!", o.subject_id as "subject_id!",
            o.revision, o.attempts as "attempts!", o.failures as "failures!", o.first_failed_at, o.last_failed_at,
            o.enqueued_at as "enqueued_at!", o.due_at as "due_at!",
            o.maybe_sent_at, o.sender, o.device, o.target_outbox_id as "target_outbox_id: OutboxId",
            s.event_id as "known_event_id?: EventId",
            m.author_id as "author_id?: UserId", m.deleted_at is not null as "deleted!",
            m.send_outbox_id as "original_outbox_id?: OutboxId",
            m.kind as "message_kind?: MessageKind", m.reply_to as "reply_to?: MessageId",
            m.thread_of as "thread_of?: MessageId", r.body as "body?", r.rich as "rich?",
            coalesce(original.event_id, case when m.origin = 'matrix' then m.matrix_event_id end)
                as "original_event_id: EventId",
            coalesce(original.room_id, case when m.origin = 'matrix' then m.matrix_room_id end)
                as "original_room_id: RoomId",
            target.event_id as "target_event_id?: EventId", target.room_id as "target_room_id?: RoomId",
            w.sender as "target_sender?", w.device as "target_device?", w.maybe_sent_at as "target_maybe_sent_at?",
            w.withdrawn_at as "target_withdrawn_at?",
            case when w.maybe_sent_at is null then '{}' else array(
                select left_rooms.matrix_room_id from left_rooms
                where left_rooms.conversation_id = o.conversation_id and left_rooms.left_at >= w.maybe_sent_at
                order by left_rooms.left_at desc
            ) end as "target_left_rooms!: Vec<RoomId>",
            w.kind as "target_kind?", w.revision as "target_revision?",
            case when room.ready_at is not null then room.matrix_room_id end as "room_id: RoomId",
            case when o.maybe_sent_at is null then '{}' else array(
                select left_rooms.matrix_room_id from left_rooms
                where left_rooms.conversation_id = o.conversation_id and left_rooms.left_at >= o.maybe_sent_at
                order by left_rooms.left_at desc
            ) end as "left_rooms!: Vec<RoomId>", o.trace
        from unnest($1::uuid[], $2::uuid[]) as l (conversation_id, lane_id)
        cross join lateral (
            select first.*, bool_and(first.due_at <= $4) over (order by first.seq) as ready
            from (
                select * from outbox
                where outbox.conversation_id = l.conversation_id and outbox.lane_id = l.lane_id
                order by outbox.seq
                limit $3
            ) first
        ) o
        left join sent_events s on s.conversation_id = o.conversation_id and s.outbox_id = o.outbox_id
        left join messages m on m.conversation_id = o.conversation_id and m.message_id = o.subject_id
        left join message_revisions r on r.conversation_id = o.conversation_id and r.message_id = o.subject_id
            and r.revision = o.revision
        left join sent_events original on original.conversation_id = o.conversation_id
            and original.outbox_id = m.send_outbox_id
        left join sent_events target on target.conversation_id = o.conversation_id
            and target.outbox_id = o.target_outbox_id
        left join withdrawn_operations w on w.conversation_id = o.conversation_id
            and w.outbox_id = o.target_outbox_id
        left join matrix_room_mappings room on room.conversation_id = o.conversation_id
        where o.ready
            -- Nobody who is to be removed first hears of a call.
            and not ($5 and exists (
                select 1 from outbox removal
                where removal.conversation_id = o.conversation_id and removal.lane_id = o.conversation_id
                    and removal.kind = 'remove' and removal.seq < o.seq
            ))
        order by o.conversation_id, o.lane_id, o.seq
        "#,
        conversations,
        lanes,
        i64::from(request.operations),
        now,
        request.class == LaneClass::Call,
    )
    .fetch_all(&mut *conn)
    .await?;

    let mut wanted = Wanted::default();
    for row in &rows {
        row.relates(&mut wanted);
    }
    let relations = wanted.read(conn, now, began).await?;
    let mut batches = Batches::new();
    let mut cut_off = None;
    for row in rows {
        let key = (row.conversation_id, row.lane_id);
        if cut_off == Some(key) {
            continue;
        }
        let Some(kind) = Kind::parse(&row.kind) else {
            cut_off = Some(key);
            continue;
        };
        let batch = batches.entry(key).or_default();
        batch.0.clone_from(&row.room_id);
        batch.1.push(row.into_operation(kind, request, now, &relations));
    }
    Ok(batches)
}

/// What was not tried for longer than this was paused, held, or met an outage: time that does not count as time in which
/// it was tried. Several times the longest wait between two attempts. `settle` has the same.
const UNTRIED: time::Duration = time::Duration::minutes(30);

impl DueRow {
    /// What else has to be read for it.
    fn relates(&self, wanted: &mut Wanted) {
        match Kind::parse(&self.kind) {
            Some(Kind::Message) => {
                wanted.message(self.conversation_id, self.reply_to);
                wanted.message(self.conversation_id, self.thread_of);
            }
            Some(Kind::Edit) if self.rich == Some(true) => wanted.before(self.conversation_id, self.outbox_id),
            Some(Kind::React) => wanted.reaction(self.conversation_id, self.outbox_id),
            Some(Kind::Call(_)) => wanted.call(self.conversation_id, self.outbox_id, self.subject_id.into()),
            _ => {}
        }
    }

    fn into_operation(
        self,
        kind: Kind,
        request: &ClaimRequest,
        now: OffsetDateTime,
        relations: &Relations,
    ) -> ClaimedOperation {
        // As the row will have it: see `fix_senders`.
        let fixed = self.sender.zip(self.device).filter(|_| self.maybe_sent_at.is_some());
        let (sender, device) = fixed.unwrap_or_else(|| (request.sender.clone(), request.device.clone()));
        // The homeserver remembers for a time, and for the device that sent it only.
        let is_foreign =
            |sender: &str, device: &str| device.is_empty() || sender != request.sender || device != request.device;
        let is_old = |since: OffsetDateTime| now - since > request.dedupe_window;
        let foreign = self.maybe_sent_at.is_some() && is_foreign(&sender, &device);
        let old = foreign || self.maybe_sent_at.is_some_and(is_old);
        let reaction = relations.reaction(self.conversation_id, self.outbox_id);
        let call = relations.call(self.conversation_id, self.outbox_id);
        // Words that are gone must not leave any more.
        let unwanted = match kind {
            Kind::Message | Kind::Edit => self.deleted,
            Kind::React => self.deleted || reaction.as_ref().is_none_or(|reaction| reaction.key.is_none()),
            Kind::Call(kind) => call.as_ref().is_none_or(|call| !call.is_wanted(kind)),
            Kind::Redact | Kind::Invite | Kind::Remove => false,
        };
        let mode = match self.known_event_id {
            Some(event_id) => Mode::Known(event_id),
            None if unwanted && matches!(kind, Kind::Call(_)) && self.maybe_sent_at.is_none() => Mode::Drop,
            None if unwanted => Mode::Close { look_up: old },
            None if old && !kind.is_state() => Mode::LookUp,
            None => Mode::Put,
        };
        let age = |since: OffsetDateTime| (now - since).try_into().ok();
        let tried_lately = self.last_failed_at.is_some_and(|at| now - at < UNTRIED);
        let target = self.target_outbox_id.map(|outbox_id| Target {
            outbox_id,
            event: self.target_event_id.zip(self.target_room_id),
            maybe_sent_to: self.target_left_rooms,
            maybe_sent: match (self.target_sender, self.target_device, self.target_maybe_sent_at) {
                (Some(sender), Some(device), Some(at)) => {
                    let kind = self.target_kind.as_deref().and_then(Kind::parse).unwrap_or(Kind::Message);
                    let revision = self.target_revision;
                    let foreign = is_foreign(&sender, &device);
                    let forgotten = foreign || is_old(at);
                    let given_up_for = self.target_withdrawn_at.and_then(age).unwrap_or_default();
                    Some(MaybeSent { kind, revision, sender, device, at, given_up_for, forgotten, foreign })
                }
                _ => None,
            },
        });
        ClaimedOperation {
            outbox_id: self.outbox_id,
            seq: self.seq,
            kind,
            subject_id: self.subject_id,
            revision: self.revision,
            mode,
            foreign,
            attempts: self.attempts,
            failures: self.failures,
            suspected_for: self.first_failed_at.filter(|_| tried_lately).and_then(age),
            since_failure: self.last_failed_at.and_then(age),
            enqueued_at: self.enqueued_at,
            waited: (now - self.enqueued_at).try_into().unwrap_or_default(),
            queued: (now - self.due_at).try_into().unwrap_or_default(),
            sender,
            device,
            maybe_sent_at: self.maybe_sent_at,
            maybe_sent_to: self.left_rooms,
            author_id: self.author_id,
            message_kind: self.message_kind,
            body: self.body,
            rich: self.rich.unwrap_or_default(),
            previous: relations.before(self.conversation_id, self.outbox_id),
            reply_to: relations.message(self.conversation_id, self.reply_to),
            thread_of: relations.message(self.conversation_id, self.thread_of),
            reaction,
            call,
            original_outbox_id: self.original_outbox_id,
            original: self.original_event_id.zip(self.original_room_id),
            target,
            trace: self.trace.and_then(|trace| trace.parse().ok()),
        }
    }
}

/// Sender and device of the first attempt that may have arrived are those of every later one: the homeserver's memory
/// hangs on both.
async fn fix_senders(conn: &mut PgConnection, request: &ClaimRequest, batches: &[Claimed]) -> Result<(), sqlx::Error> {
    let (mut conversations, mut lanes, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
    for batch in batches {
        for operation in &batch.operations {
            conversations.push(batch.claim.conversation_id.as_uuid());
            lanes.push(batch.claim.lane_id.as_uuid());
            seqs.push(operation.seq);
        }
    }
    sqlx::query!(
        r#"
        update outbox o
        set sender = $4, device = $5
        from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as c (conversation_id, lane_id, seq)
        where o.conversation_id = c.conversation_id and o.lane_id = c.lane_id and o.seq = c.seq
            and (o.sender is null or (o.maybe_sent_at is null and (o.sender, o.device) <> ($4, $5)))
        "#,
        &conversations,
        &lanes,
        &seqs,
        request.sender,
        request.device,
    )
    .execute(conn)
    .await?;
    Ok(())
}
