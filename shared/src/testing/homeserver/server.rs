//! Sockets: listening, closing, and each request's way past faults.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::accounts::authenticate;
use super::faults::Seen;
use super::handlers::{Arrival, Ask, Unanswered, answer};
use super::reply::{Failure, Reply};
use super::routes::{Kind, query_param, route};

/// Bodies beyond this are refused unread. An event may have 64 KiB.
const BODY_LIMIT: usize = 1024 * 1024;

/// Connections that wait to be accepted: more than any test opens at once.
const BACKLOG: u32 = 1024;

/// The request is not answered: its connection is closed.
#[derive(Debug)]
pub(super) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

/// A port of ours, which listens or refuses.
#[derive(Debug)]
pub(super) enum Port {
    Listening {
        stop: CancellationToken,
        task: JoinHandle<()>,
    },
    /// Bound but not listening: connections are refused, and nobody else gets the port.
    Refusing(TcpSocket),
    /// Only while it changes.
    Changing,
}

pub(super) fn bind(addr: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option of every TCP socket");
    socket.bind(addr).expect("a port of our own on the loopback interface");
    socket
}

impl Port {
    pub(super) fn listen(shared: &Arc<Shared>, socket: TcpSocket) -> Self {
        let listener = socket.listen(BACKLOG).expect("a bound socket can listen");
        let stop = shared.root.child_token();
        let task = tokio::spawn(accept(Arc::clone(shared), listener, stop.clone()));
        Self::Listening { stop, task }
    }

    pub(super) async fn refuse(&mut self, addr: SocketAddr) {
        let before = std::mem::replace(self, Self::Changing);
        *self = match before {
            Self::Listening { stop, task } => {
                stop.cancel();
                task.await.expect("the accept loop does not panic");
                Self::Refusing(bind(addr))
            }
            other => other,
        };
    }

    pub(super) fn reopen(&mut self, shared: &Arc<Shared>) {
        let before = std::mem::replace(self, Self::Changing);
        *self = match before {
            Self::Refusing(socket) => Self::listen(shared, socket),
            other => other,
        };
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        // Out of file descriptors, or gone before it was accepted: the next one may do better.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let generation = shared.generation.lock().unwrap().clone();
        tokio::spawn(serve(Arc::clone(&shared), stream, generation));
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, generation: CancellationToken) {
    // Small answers must not wait for more to come; a socket that is gone already says so when it is read.
    drop(stream.set_nodelay(true));
    let until = generation.clone();
    let service = service_fn(move |request| take(Arc::clone(&shared), request, generation.clone()));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error is a client that went away or a cut connection: both are ordinary here.
        served = connection => drop(served),
        () = until.cancelled() => {}
    }
}

/// Runs a request in a task of its own: as with Synapse, what was asked is done even if the client no longer waits for it.
async fn take(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    generation: CancellationToken,
) -> Result<Response<Full<Bytes>>, Cut> {
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_LIMIT).collect().await else { return Err(Cut) };
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let bearer = parts.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let bearer = bearer.and_then(|header| header.strip_prefix("Bearer ")).map(str::to_owned);
    let ask = Ask {
        path: parts.uri.path().to_owned(),
        token: bearer.or_else(|| query_param(&query, "access_token")),
        query,
        body: body.to_bytes(),
    };
    let work = tokio::spawn(async move {
        tokio::select! {
            biased;
            () = generation.cancelled() => Err(Cut),
            reply = process(&shared, parts.method, ask) => reply,
        }
    });
    let reply = match work.await {
        Ok(reply) => reply?,
        Err(_panicked) => Err(Failure::internal()).into(),
    };
    Ok(respond(reply))
}

async fn process(shared: &Shared, method: hyper::Method, ask: Ask) -> Result<Reply, Cut> {
    let call = route(&method, &ask.path);
    let kind = call.as_ref().map_or(Kind::Other, super::routes::Call::kind);
    let (who, arrival, now_ms) = {
        let state = shared.state.lock().unwrap();
        let who = authenticate(&state, &ask).ok().map(|who| who.user);
        let arrival = call.as_ref().map(|call| Arrival::observe(&state, call, &ask)).unwrap_or_default();
        (who, arrival, state.clock.now_ms())
    };
    let entry = shared.log.begin(now_ms, &method, &ask, kind, call.as_ref().ok(), who.clone());
    if shared.black_hole.load(Ordering::SeqCst) {
        std::future::pending::<Infallible>().await;
    }
    let latency_us = shared.latency_us.load(Ordering::SeqCst);
    if latency_us > 0 {
        tokio::time::sleep(Duration::from_micros(latency_us)).await;
    }
    let seen = Seen { kind, call: call.as_ref().ok(), user: who.as_deref(), body: &ask.body };
    let fault = shared.faults.pick(&seen);
    if let Some(fault) = &fault {
        fault.before().await;
        if fault.drops_before() {
            return Err(Cut);
        }
        if let Some(refusal) = fault.refusal()
            && fault.stop_after().is_none()
        {
            shared.log.end(entry, refusal.status);
            return Ok(refusal);
        }
    }
    let reply = match call {
        Err(failure) => Err(failure).into(),
        Ok(call) => {
            let stop_after = fault.as_ref().and_then(|fault| fault.stop_after());
            match answer(shared, call, &ask, &arrival, stop_after).await {
                Ok(reply) => reply,
                Err(Unanswered::Stopped) => {
                    let refusal = fault.as_ref().and_then(|fault| fault.refusal());
                    refusal.unwrap_or_else(|| Err(Failure::internal()).into())
                }
            }
        }
    };
    if let Some(fault) = &fault {
        fault.after().await;
        if fault.drops_after() {
            return Err(Cut);
        }
    }
    shared.log.end(entry, reply.status);
    Ok(reply)
}

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    if let Some(seconds) = reply.retry_after_secs {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
