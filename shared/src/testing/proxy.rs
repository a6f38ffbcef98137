//! A TCP proxy before Postgres: it cuts the link when a test says so, and counts the statements that pass.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

type OnStatement = Box<dyn FnMut(u64) + Send>;
type OnCommit = Box<dyn FnMut() + Send>;

struct Shared {
    upstream: String,
    cut: AtomicBool,
    connections: Mutex<CancellationToken>,
    statements: AtomicU64,
    on_statement: Mutex<Option<OnStatement>>,
    on_commit: Mutex<Option<OnCommit>>,
}

/// The proxy. It ends with its value.
pub struct PgProxy {
    address: SocketAddr,
    url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl std::fmt::Debug for PgProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl PgProxy {
    /// A proxy before the database of this URL.
    pub async fn start(database_url: &str) -> Self {
        let mut url = url::Url::parse(database_url).expect("a valid URL");
        let upstream = format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        url.set_host(Some("127.0.0.1")).expect("a host can be set");
        url.set_port(Some(address.port())).expect("a port can be set");
        let shared = Arc::new(Shared {
            upstream,
            cut: AtomicBool::new(false),
            connections: Mutex::new(CancellationToken::new()),
            statements: AtomicU64::new(0),
            on_statement: Mutex::new(None),
            on_commit: Mutex::new(None),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, url: url.into(), shared, accepting }
    }

    /// The database's URL through the proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Cuts every connection, and every new one at once.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        let mut connections = self.shared.connections.lock().unwrap();
        connections.cancel();
        *connections = CancellationToken::new();
    }

    /// Lets connections through again.
    pub fn restore(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// Calls back before each statement that clients send from now on is passed on, with its number from 1. A statement
    /// is what ends in a Sync or a simple Query: what the server answers as one.
    pub fn on_statement(&self, call: impl FnMut(u64) + Send + 'static) {
        self.shared.statements.store(0, Ordering::SeqCst);
        *self.shared.on_statement.lock().unwrap() = Some(Box::new(call));
    }

    /// Calls back before each COMMIT that clients send from now on is passed on, which it is whatever the call does.
    pub fn on_commit(&self, call: impl FnMut() + Send + 'static) {
        *self.shared.on_commit.lock().unwrap() = Some(Box::new(call));
    }

    /// How many statements passed since the last [`PgProxy::on_statement`].
    pub fn statements(&self) -> u64 {
        self.shared.statements.load(Ordering::SeqCst)
    }
}

impl Drop for PgProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.connections.lock().unwrap().cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.cut.load(Ordering::SeqCst) {
            continue;
        }
        let ended = shared.connections.lock().unwrap().clone();
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(&shared.upstream).await else { return };
            let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            tokio::select! {
                () = ended.cancelled() => {}
                () = pass_requests(client_in, server_out, &shared) => {}
                () = pass_answers(server_in, client_out) => {}
            }
        });
    }
}

async fn pass_answers(mut server: OwnedReadHalf, mut client: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut server, &mut client).await;
}

/// Passes on message by message, so that statements can be counted before they reach the server.
async fn pass_requests(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, shared: &Shared) {
    // The startup message (and an SSL request before it) has a length but no type.
    const SSL_REQUEST: i32 = 80_877_103;
    loop {
        let Some(message) = read_message(&mut client, None).await else { return };
        let is_ssl_request = message.get(4..8) == Some(&SSL_REQUEST.to_be_bytes());
        if server.write_all(&message).await.is_err() {
            return;
        }
        if !is_ssl_request {
            break;
        }
    }
    loop {
        let Ok(kind) = client.read_u8().await else { return };
        let Some(message) = read_message(&mut client, Some(kind)).await else { return };
        if kind == b'Q' && message.get(5..11).is_some_and(|text| text.eq_ignore_ascii_case(b"commit")) {
            let mut call = shared.on_commit.lock().unwrap();
            if let Some(call) = call.as_mut() {
                call();
            }
        }
        if matches!(kind, b'S' | b'Q') {
            let mut call = shared.on_statement.lock().unwrap();
            let number = shared.statements.fetch_add(1, Ordering::SeqCst) + 1;
            if let Some(call) = call.as_mut() {
                call(number);
            }
        }
        if server.write_all(&message).await.is_err() {
            return;
        }
    }
}

async fn read_message(client: &mut OwnedReadHalf, kind: Option<u8>) -> Option<Vec<u8>> {
    let length = client.read_u32().await.ok()?;
    let mut message: Vec<u8> = kind.into_iter().chain(length.to_be_bytes()).collect();
    let head = message.len();
    message.resize(head + usize::try_from(length).ok()?.checked_sub(4)?, 0);
    client.read_exact(&mut message[head..]).await.ok()?;
    Some(message)
}
