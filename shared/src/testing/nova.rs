//! The product, run as its users run it: the programs as child processes, and clients of the REST API.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::process::{Pid, Signal, kill_process};
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{
    eventually,
    matrix_client::{HomeserverAddress, MatrixClient},
    websocket::Socket,
};
use crate::{database::unix_time, ids::UserId, token};

/// Signs the tokens of tests.
pub const JWT_SECRET: &str = "a secret for tests, long enough for HS256";

/// Seals the texts of tests.
pub const CONTENT_KEYS: &str = "test:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// Short leases, polls and backoffs: what takes minutes in production takes tenths of a second in tests.
const QUICK: [(&str, &str); 8] = [
    ("OUTBOX_LEASE", "2s"),
    ("OUTBOX_POLL", "50ms"),
    ("EVENTS_POLL", "50ms"),
    ("OUTBOX_HTTP_TIMEOUT", "1s"),
    ("OUTBOX_BACKOFF", "20ms"),
    ("OUTBOX_PROBE", "100ms"),
    ("LOG_FORMAT", "json"),
    ("RUST_LOG", "info"),
];

/// The environment of a program.
pub type Environment = BTreeMap<String, String>;

/// The environment of `api` on a database.
pub fn api_environment(database_url: &str) -> Environment {
    environment(&[
        ("API_LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", database_url),
        ("CONTENT_KEYS", CONTENT_KEYS),
        ("JWT_SECRET", JWT_SECRET),
        ("MATRIX_ENABLED", "true"),
    ])
}

/// The environment of `worker` on a database and a homeserver.
pub fn worker_environment(database_url: &str, account: &MatrixClient) -> Environment {
    environment(&[
        ("WORKER_LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", database_url),
        ("CONTENT_KEYS", CONTENT_KEYS),
        ("MATRIX_ENABLED", "true"),
        ("MATRIX_HOMESERVER_URL", &account.home().url),
        ("MATRIX_SERVICE_USER", account.user_id()),
        ("MATRIX_ACCESS_TOKEN", account.access_token()),
        // Whoever tests deliveries wants to know by which way each was settled: not by its echo.
        ("MATRIX_SYNC_ENABLED", "false"),
        ("MATRIX_SYNC_LEASE", "2s"),
    ])
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    QUICK.iter().chain(pairs).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The service account on a homeserver, logged in on its device.
pub async fn service_account(home: &HomeserverAddress) -> MatrixClient {
    let name = format!("nova-service-{}", uuid::Uuid::new_v4().simple());
    MatrixClient::register(home, &name, "password").await.expect("an account can be registered");
    MatrixClient::login(home, &name, "password", "NOVAOUTBOX").await.expect("the account can log in")
}

/// A program of this workspace, as a child process. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
    address: Option<String>,
}

/// The path of a program of this workspace: beside the test that runs.
pub fn program_path(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("tests run from the target folder");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: build the whole workspace (`make test` does)", path.display());
    path
}

impl Program {
    /// Starts a program with this environment only.
    pub fn spawn(name: &str, environment: &Environment) -> Self {
        let mut child = Command::new(program_path(name))
            .env_clear()
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let stderr = child.stderr.take().expect("stderr is piped");
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, log, reader: Some(reader), address: None }
    }

    /// Starts a program and waits until it says where it listens.
    pub async fn start(name: &str, environment: &Environment) -> Self {
        let mut program = Self::spawn(name, environment);
        let address = eventually(&format!("{name} listens"), || async {
            let running = program.child_is_running();
            let said = program.log().iter().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                line["listen"].as_str().map(str::to_owned)
            });
            // One that is to die may have done so by now; it did listen.
            assert!(running || said.is_some(), "{name} ended at start:\n{}", program.log().join("\n"));
            said
        })
        .await;
        program.address = Some(address);
        program
    }

    /// `http://host:port` of what it serves.
    pub fn url(&self) -> String {
        format!("http://{}", self.address.as_deref().expect("the program was started with `start`"))
    }

    /// What it has logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The id under which a worker leases lanes.
    pub fn worker_id(&self) -> String {
        let starts = self.log().into_iter().find_map(|line| {
            let line: Value = serde_json::from_str(&line).ok()?;
            line["worker.id"].as_str().map(str::to_owned)
        });
        starts.expect("a worker says its id when it starts")
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn child_is_running(&self) -> bool {
        // A child that has ended and is not waited for answers signals too; its state tells.
        std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process can be signalled");
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it ends by itself; its log is complete then.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the program ends", || async { (!self.child_is_running()).then_some(()) }).await;
        if let Some(reader) = self.reader.take() {
            let _ = tokio::task::spawn_blocking(|| reader.join()).await;
        }
        self.child.wait().expect("the process can be waited for")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail = &log[log.len().saturating_sub(40)..];
            eprintln!("--- the last {} log lines of a program:\n{}", tail.len(), tail.join("\n"));
        }
    }
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body; null when it is no JSON.
    pub body: Value,
}

impl Answer {
    /// The body, if the status is as expected.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// The problem's stable code; empty when the answer is no problem.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// Where clients find the API, wherever it has been started last; and how often they were not answered there.
#[derive(Debug, Clone)]
pub struct Front {
    base: Arc<Mutex<String>>,
    unanswered: Arc<AtomicU64>,
}

impl Front {
    /// An API at this base URL.
    pub fn at(base: &str) -> Self {
        Self { base: Arc::new(Mutex::new(base.to_owned())), unanswered: Arc::default() }
    }

    /// All clients go to this one from now on.
    pub fn move_to(&self, api: &Program) {
        *self.base.lock().unwrap() = api.url();
    }

    /// How many requests of those who insist got no answer, or one that says nothing but that something is away.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        self.base.lock().unwrap().clone()
    }
}

/// A user of the REST API.
#[derive(Debug, Clone)]
pub struct NovaUser {
    /// The user's id.
    pub user_id: UserId,
    front: Front,
    token: String,
    http: reqwest::Client,
}

impl NovaUser {
    /// A new user with a valid token.
    pub fn new(api: &Program) -> Self {
        Self::at(&api.url(), UserId::generate())
    }

    /// A user of an API at this base URL.
    pub fn at(base: &str, user_id: UserId) -> Self {
        Self::behind(Front::at(base), user_id)
    }

    /// A user who follows the API wherever it goes.
    pub fn behind(front: Front, user_id: UserId) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let secret = SecretString::from(JWT_SECRET);
        let token = token::sign(&secret, user_id, unix_time() + 3600, None).expect("a token can be signed");
        let http = reqwest::Client::builder().timeout(super::PATIENCE).no_proxy().build().expect("a plain client");
        Self { user_id, front, token, http }
    }

    /// The same user at another API process.
    #[must_use]
    pub fn via(&self, api: &Program) -> Self {
        Self { front: Front::at(&api.url()), ..self.clone() }
    }

    /// Sends a request; an error means that no answer came.
    pub async fn try_call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, reqwest::Error> {
        self.try_call_with(method, path, &[], body).await
    }

    /// Sends a request with more headers; an error means that no answer came.
    pub async fn try_call_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer, reqwest::Error> {
        let method = method.parse().expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.front.url())).bearer_auth(&self.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    /// Asks until the API answers for good, as clients do while it or its database is away.
    pub async fn insist(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        eventually("the API answers", || async {
            let answer = self.try_call_with(method, path, headers, body).await.ok();
            let answer = answer.filter(|answer| answer.status < 500 && answer.code() != "idempotency_key_in_flight");
            self.front.unanswered.fetch_add(u64::from(answer.is_none()), Ordering::SeqCst);
            answer
        })
        .await
    }

    /// Sends a request with more headers.
    pub async fn call_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        self.try_call_with(method, path, headers, body).await.expect("the API answers")
    }

    /// Sends a request.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.try_call(method, path, body).await.expect("the API answers")
    }

    /// Sends a request whose body is these bytes.
    pub async fn call_raw(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        let request = self
            .http
            .post(format!("{}{path}", self.front.url()))
            .bearer_auth(&self.token)
            .header("content-type", content_type)
            .body(body.into());
        answer(request).await.expect("the API answers")
    }

    /// Sends a GET with this Authorization header, or none.
    pub async fn get_as(&self, path: &str, authorization: Option<&str>) -> Answer {
        let mut request = self.http.get(format!("{}{path}", self.front.url()));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        answer(request).await.expect("the API answers")
    }

    /// Sends a request without a token and without a body.
    pub async fn call_without_token(&self, method: &str, path: &str) -> Answer {
        let method = method.parse().expect("a method");
        answer(self.http.request(method, format!("{}{path}", self.front.url()))).await.expect("the API answers")
    }

    /// Opens a WebSocket, from now on or from a cursor, and waits until it is ready.
    pub async fn listen(&self, since: Option<&str>) -> Socket {
        let mut socket = self.try_listen(since).await.expect("the API takes the connection");
        assert_eq!(socket.frame().await["type"], "ready");
        socket
    }

    /// Opens a WebSocket. The error is the status and the body of a refusal; 0 when no answer came.
    pub async fn try_listen(&self, since: Option<&str>) -> Result<Socket, (u16, Value)> {
        let base = self.front.url().replacen("http", "ws", 1);
        let since = since.map(|since| format!("?since={since}")).unwrap_or_default();
        let authorization = format!("Bearer {}", self.token);
        Socket::connect(&format!("{base}/ws{since}"), &[("authorization", &authorization)]).await
    }

    /// The same user with a token that expires so many seconds from now.
    #[must_use]
    pub fn expiring_in(&self, seconds: i64) -> Self {
        let secret = SecretString::from(JWT_SECRET);
        let token = token::sign(&secret, self.user_id, unix_time() + seconds, None).expect("a token can be signed");
        Self { token, ..self.clone() }
    }

    /// The same user with a token of this scope.
    #[must_use]
    pub fn with_scope(&self, scope: &str) -> Self {
        let secret = SecretString::from(JWT_SECRET);
        let token = token::sign(&secret, self.user_id, unix_time() + 3600, Some(scope)).expect("a token can be signed");
        Self { token, ..self.clone() }
    }

    /// Its token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Creates a conversation with these members beside the user; returns its id.
    pub async fn create_conversation(&self, members: &[UserId]) -> String {
        let body = self.call("POST", "/conversations", Some(&json!({"members": members}))).await.expect(201);
        body["id"].as_str().expect("an id").to_owned()
    }

    /// Posts a message.
    pub async fn post(&self, conversation_id: &str, text: &str) -> Answer {
        let body = json!({"conversation_id": conversation_id, "plaintext": text});
        self.call("POST", "/messages", Some(&body)).await
    }

    /// Gives a message another text.
    pub async fn edit(&self, message_id: &str, text: &str) -> Answer {
        self.call("PATCH", &format!("/messages/{message_id}"), Some(&json!({"plaintext": text}))).await
    }

    /// Deletes a message.
    pub async fn delete(&self, message_id: &str) -> Answer {
        self.call("DELETE", &format!("/messages/{message_id}"), None).await
    }

    /// Reads something that is there.
    pub async fn get(&self, path: &str) -> Value {
        self.call("GET", path, None).await.expect(200)
    }

    /// Reads a message again and again until it is delivered.
    pub async fn delivered(&self, message_id: &str) -> Value {
        eventually(&format!("message {message_id} is delivered"), || async {
            let answer = self.try_call("GET", &format!("/messages/{message_id}"), None).await.ok()?;
            (answer.body["matrix"]["delivery"] == "delivered").then_some(answer.body)
        })
        .await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    let body = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
    Ok(Answer { status, headers, body })
}
