//! A client of the WebSocket, which keeps every byte that it was sent.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        http::{HeaderName, HeaderValue, Response},
        protocol::frame::CloseFrame,
    },
};

use super::PATIENCE;

/// A TCP stream that keeps what it read.
#[derive(Debug)]
pub struct Kept {
    stream: TcpStream,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Kept {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.bytes.lock().unwrap().extend_from_slice(&buffer.filled()[before..]);
        read
    }
}

impl AsyncWrite for Kept {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a client hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A frame.
    Frame(Value),
    /// The server closed the connection, with this code and reason.
    Closed(u16, String),
    /// The connection ended without a word.
    CutOff,
}

/// A connection to the WebSocket.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<Kept>,
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Pings that came from the server; they are answered as they come.
    pub pings: usize,
    /// The subprotocol that the server chose.
    pub protocol: Option<String>,
    cursor: Option<String>,
}

impl Socket {
    /// Connects to `ws://host:port/path` with these headers. The error is the status of a refusal; 0 when none came.
    pub async fn connect(url: &str, headers: &[(&str, &str)]) -> Result<Self, (u16, Value)> {
        let mut request = url.into_client_request().expect("a valid URL");
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a valid name");
            request.headers_mut().append(name, HeaderValue::from_str(value).expect("a valid value"));
        }
        let address = request.uri().authority().expect("a host").to_string();
        let stream = TcpStream::connect(&address).await.map_err(|_| (0, Value::Null))?;
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = Kept { stream, bytes: Arc::clone(&bytes) };
        match client_async(request, kept).await {
            Ok((stream, response)) => {
                let protocol = response.headers().get("sec-websocket-protocol");
                let protocol = protocol.map(|protocol| protocol.to_str().expect("plain ASCII").to_owned());
                Ok(Self { stream, bytes, pings: 0, protocol, cursor: None })
            }
            Err(Error::Http(response)) => Err(refusal(&response)),
            Err(_) => Err((0, Value::Null)),
        }
    }

    /// What comes next. Pings are counted and answered on the way.
    pub async fn hear(&mut self) -> Heard {
        self.hear_within(PATIENCE).await.expect("the server says something")
    }

    /// What comes next, if it comes in time. Nothing is lost when it does not.
    pub async fn hear_within(&mut self, limit: Duration) -> Option<Heard> {
        tokio::time::timeout(limit, async {
            loop {
                return match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let frame: Value = serde_json::from_str(&text).expect("frames are JSON");
                        if let Some(cursor) = frame["cursor"].as_str() {
                            self.cursor = Some(cursor.to_owned());
                        }
                        Heard::Frame(frame)
                    }
                    Some(Ok(Message::Ping(_))) => {
                        self.pings += 1;
                        continue;
                    }
                    Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                        Heard::Closed(code.into(), reason.to_string())
                    }
                    Some(Ok(Message::Close(None))) => Heard::Closed(1005, String::new()),
                    Some(Ok(other)) => panic!("unexpected: {other:?}"),
                    Some(Err(_)) | None => Heard::CutOff,
                };
            }
        })
        .await
        .ok()
    }

    /// The next frame but heartbeats.
    pub async fn frame(&mut self) -> Value {
        let frame = tokio::time::timeout(PATIENCE, async {
            loop {
                match self.hear().await {
                    Heard::Frame(frame) if frame["type"] == "heartbeat" => {}
                    Heard::Frame(frame) => return frame,
                    end => panic!("the connection ended: {end:?}"),
                }
            }
        });
        frame.await.expect("an event comes")
    }

    /// The next frame of a type; others go by.
    pub async fn frame_of(&mut self, name: &str) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["type"] == name {
                return frame;
            }
        }
    }

    /// Waits for the end; frames go by.
    pub async fn ended(&mut self) -> Heard {
        loop {
            match self.hear().await {
                Heard::Frame(_) => {}
                end => return end,
            }
        }
    }

    /// The cursor of the last frame that had one.
    pub fn cursor(&self) -> &str {
        self.cursor.as_deref().expect("a frame with a cursor was heard")
    }

    /// Sends a frame.
    pub async fn say(&mut self, frame: &Value) {
        self.stream.send(Message::text(frame.to_string())).await.expect("the server listens");
    }

    /// Sends any message.
    pub async fn send(&mut self, message: Message) {
        self.stream.send(message).await.expect("the server listens");
    }

    /// Everything that came over the socket, handshake included.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// Says goodbye, and waits for the server's.
    pub async fn close(mut self) {
        let _ = self.stream.close(None).await;
        while let Some(Ok(_)) = self.stream.next().await {}
    }
}

fn refusal(response: &Response<Option<Vec<u8>>>) -> (u16, Value) {
    let body = response.body().as_deref().unwrap_or_default();
    (response.status().as_u16(), serde_json::from_slice(body).unwrap_or_default())
}
