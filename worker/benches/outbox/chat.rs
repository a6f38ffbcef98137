//! Conversations, and what is written to them: the API's transaction, without the API.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use shared::{
    chat::{self, Content, MessageKind, NewMessage},
    ids::{ConversationId, LaneId, MessageId, OutboxId, UserId},
    outbox::{self, Kind, Operation},
    seal::KeyRing,
    testing::nova::CONTENT_KEYS,
};
use sqlx::{Acquire as _, PgConnection, PgPool};
use tokio::task::JoinSet;

/// What everybody says.
pub(crate) const TEXT: &str = "A message of ordinary length, such as people write to each other all day long.";

/// A writer and conversations that it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Chat {
    pub(crate) user_id: UserId,
    pub(crate) conversations: Arc<Vec<ConversationId>>,
    keys: KeyRing,
}

impl Chat {
    /// New conversations.
    pub(crate) async fn create(pool: &PgPool, conversations: usize) -> Self {
        let user_id = UserId::generate();
        let conversations: Vec<_> = (0..conversations).map(|_| ConversationId::generate()).collect();
        let mut tx = pool.begin().await.unwrap();
        for conversation_id in &conversations {
            chat::create_conversation(&mut tx, *conversation_id, None, user_id, &[]).await.unwrap();
        }
        tx.commit().await.unwrap();
        Self { user_id, conversations: Arc::new(conversations), keys: KeyRing::parse(CONTENT_KEYS).unwrap() }
    }

    /// The conversation of the n-th message: each in turn, or every second in the first of them.
    pub(crate) fn pick(&self, n: usize, mix: Mix) -> ConversationId {
        let hot = match mix {
            Mix::Even => false,
            Mix::HalfHot => n.is_multiple_of(2),
            Mix::Hot => true,
        };
        // Halved, lest the even ones get nothing where the odd ones are hot.
        let n = if mix == Mix::HalfHot { n / 2 } else { n };
        self.conversations[if hot { 0 } else { n % self.conversations.len() }]
    }

    /// Writes a message and its operation in one transaction. Returns the operation, and when its commit began.
    pub(crate) async fn write(&self, conn: &mut PgConnection, conversation_id: ConversationId) -> (OutboxId, Instant) {
        let (message_id, outbox_id) = (MessageId::generate(), OutboxId::generate());
        let mut tx = conn.begin().await.unwrap();
        let turn = chat::take_turn(&mut tx, conversation_id, self.user_id).await.unwrap();
        let content = Content::plain(TEXT);
        let message = NewMessage {
            message_id,
            author_id: self.user_id,
            kind: MessageKind::Text,
            content: &content,
            reply_to: None,
            thread_of: None,
            send_outbox_id: Some(outbox_id),
        };
        chat::insert_message(&mut tx, &turn, &self.keys, &message).await.unwrap();
        let operation = Operation {
            outbox_id,
            lane_id: LaneId::from(conversation_id),
            kind: Kind::Message,
            subject_id: message_id.as_uuid(),
            revision: Some(1),
            target_outbox_id: None,
            not_before: None,
            expires_at: None,
        };
        outbox::enqueue(&mut tx, &turn, &operation).await.unwrap();
        let commits = Instant::now();
        tx.commit().await.unwrap();
        (outbox_id, commits)
    }

    /// Writes so many messages, from several connections at once.
    pub(crate) async fn fill(&self, pool: &PgPool, messages: usize, mix: Mix) {
        let next = Arc::new(AtomicUsize::new(0));
        let mut writers = JoinSet::new();
        for _ in 0..8 {
            let (chat, pool, next) = (self.clone(), pool.clone(), Arc::clone(&next));
            writers.spawn(async move {
                let mut conn = pool.acquire().await.unwrap();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= messages {
                        return;
                    }
                    chat.write(&mut conn, chat.pick(n, mix)).await;
                }
            });
        }
        writers.join_all().await;
    }
}

/// How messages are spread over conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Each conversation in turn.
    Even,
    /// Half of all in one of them.
    HalfHot,
    /// All in one of them.
    Hot,
}
