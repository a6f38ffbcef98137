//! How a homeserver answers, run unchanged against the fake one and against Synapse.
//!
//! Each law makes two tests: `fake::law` and `synapse::law`. Where Synapse is, the environment says (`TEST_HOMESERVER_URL`,
//! `TEST_HOMESERVER_NAME`, `TEST_HOMESERVER_REGISTRATION_SECRET`); its rate limits must be lifted. Every test makes users and
//! rooms of its own, so that they run side by side.
mod codes;
mod create_room;
mod dedupe;
mod membership;
mod reading;
mod relations;
mod sync;
mod turn;

use serde_json::{Value, json};
use shared::testing::homeserver::FakeHomeserver;
use shared::testing::matrix_client::{HomeserverAddress, MatrixClient, MatrixError, MatrixResult};
use uuid::Uuid;

/// Makes of each law a test against the fake and one against Synapse.
macro_rules! laws {
    ($($law:ident),+ $(,)?) => {
        mod fake {
            use crate::conformance::Target;
            $(#[tokio::test]
            async fn $law() {
                let fake = shared::testing::homeserver::FakeHomeserver::start().await;
                super::$law(&Target::fake(&fake)).await;
            })+
        }
        mod synapse {
            use crate::conformance::Target;
            $(#[tokio::test]
            async fn $law() {
                super::$law(&Target::synapse()).await;
            })+
        }
    };
}
use laws;

/// The homeserver under test.
pub(crate) struct Target {
    pub(crate) home: HomeserverAddress,
}

impl Target {
    pub(crate) fn fake(fake: &FakeHomeserver) -> Self {
        Self { home: HomeserverAddress::from(fake) }
    }

    pub(crate) fn synapse() -> Self {
        let var =
            |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run them with `make test`"));
        Self {
            home: HomeserverAddress {
                url: var("TEST_HOMESERVER_URL"),
                server_name: var("TEST_HOMESERVER_NAME"),
                registration_secret: var("TEST_HOMESERVER_REGISTRATION_SECRET"),
            },
        }
    }

    async fn user(&self) -> MatrixClient {
        MatrixClient::register_random(&self.home).await.unwrap()
    }

    /// The same account on another device.
    async fn login(&self, user: &MatrixClient, device: &str) -> MatrixClient {
        let localpart = user.user_id().trim_start_matches('@').split(':').next().unwrap();
        MatrixClient::login(&self.home, localpart, "password", device).await.unwrap()
    }

    /// A private room with these members joined.
    async fn room(&self, creator: &MatrixClient, members: &[&MatrixClient]) -> String {
        let invite: Vec<&str> = members.iter().map(|member| member.user_id()).collect();
        let room = creator.create_room(&json!({ "invite": invite })).await.unwrap();
        for member in members {
            member.join(&room).await.unwrap();
        }
        room
    }

    /// A user id that nobody has.
    fn nobody(&self) -> String {
        format!("@nobody-{}:{}", Uuid::new_v4().simple(), self.home.server_name)
    }

    fn alias(&self, name: &str) -> String {
        format!("#{name}:{}", self.home.server_name)
    }
}

fn random(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::new_v4().simple())
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

fn edit_of(event: &str, body: &str) -> Value {
    json!({
        "msgtype": "m.text",
        "body": format!("* {body}"),
        "m.new_content": text(body),
        "m.relates_to": { "rel_type": "m.replace", "event_id": event },
    })
}

/// The bodies of a room's messages, oldest first.
async fn bodies(reader: &MatrixClient, room: &str) -> Vec<String> {
    let events = reader.timeline(room).await.unwrap();
    events.iter().filter_map(|event| event.body().map(str::to_owned)).collect()
}

/// The refusal's status and error code.
#[track_caller]
fn refusal<T: std::fmt::Debug>(result: MatrixResult<T>) -> (u16, String) {
    match result.unwrap_err() {
        MatrixError::Refused { status, errcode, .. } => (status, errcode),
        error @ MatrixError::Unanswered(_) => panic!("{error}"),
    }
}

/// Asserts on a refusal's status and error code.
macro_rules! assert_refused {
    ($result:expr, $status:expr, $errcode:expr) => {
        assert_eq!(crate::conformance::refusal($result), ($status, $errcode.to_owned()))
    };
}
use assert_refused;
