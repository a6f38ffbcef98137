//! Calls over REST and the WebSocket, between our own clients: no worker runs, and no homeserver is there.

use serde_json::{Value, json};
use shared::testing::{
    database::TestDatabase,
    nova::{Answer, Environment, NovaUser, Program, api_environment},
    websocket::Socket,
};

mod frames;
mod history;
mod ice;
mod limits;
mod private;
mod refused;
mod rest;
mod socket;
mod together;

const OFFER: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=an offer with \"quotes\", a tab\t and ü\r\n";
const ANSWER: &str = "v=0\r\no=- 3 4 IN IP4 127.0.0.1\r\ns=an answer\r\n";

/// Ada and Grace, a conversation of the two, and a process.
struct Scene {
    database: TestDatabase,
    api: Program,
    ada: NovaUser,
    grace: NovaUser,
    conversation: String,
}

fn with(database_url: &str, options: &[(&str, &str)]) -> Environment {
    let mut environment = api_environment(database_url);
    environment.extend(options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    environment
}

impl Scene {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(options: &[(&str, &str)]) -> Self {
        let database = TestDatabase::create().await;
        let api = Program::start("api", &with(&database.url, options)).await;
        let (ada, grace) = (NovaUser::new(&api), NovaUser::new(&api));
        let conversation = ada.create_conversation(&[grace.user_id]).await;
        Self { database, api, ada, grace, conversation }
    }

    /// Ada calls Grace; the call's id.
    async fn ring(&self) -> String {
        id(&self.initiate(&self.ada, json!({})).await.expect(201))
    }

    /// Somebody calls, with more or other fields.
    async fn initiate(&self, caller: &NovaUser, fields: Value) -> Answer {
        caller.call("POST", "/calls/initiate", Some(&offer(&self.conversation, fields))).await
    }

    /// A call of the two that was answered.
    async fn talk(&self) -> String {
        let call = self.ring().await;
        say(&self.grace, &call, "answer", json!({"sdp_answer": ANSWER})).await.expect(200);
        call
    }
}

/// The body of a request to call.
fn offer(conversation: &str, fields: Value) -> Value {
    merged(json!({"conversation_id": conversation, "sdp_offer": OFFER}), fields)
}

fn merged(mut object: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    object.as_object_mut().unwrap().extend(fields);
    object
}

fn id(call: &Value) -> String {
    call["id"].as_str().unwrap().to_owned()
}

/// Says something in a call.
async fn say(user: &NovaUser, call: &str, what: &str, body: Value) -> Answer {
    user.call("POST", &format!("/calls/{call}/{what}"), Some(&body)).await
}

async fn read(user: &NovaUser, call: &str) -> Value {
    user.get(&format!("/calls/{call}")).await
}

/// The next frame about calls; others go by.
async fn call_frame(socket: &mut Socket) -> Value {
    loop {
        let frame = socket.frame().await;
        if frame["type"].as_str().is_some_and(|name| name.starts_with("Call")) {
            return frame;
        }
    }
}

/// A frame without its cursor, which is opaque.
fn without_cursor(mut frame: Value) -> Value {
    assert!(frame["cursor"].as_str().is_some_and(|cursor| !cursor.is_empty()), "{frame}");
    frame["cursor"] = json!(null);
    frame
}
