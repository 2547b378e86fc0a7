//! The connection loop: accepts, bounds and drains connections.
//!
//! axum's own loop has no limit on the time that a request's head may take, so that one half-sent head would hang a
//! graceful stop. This loop gives every wait a limit: the TLS handshake, the head, the number of connections, the drain. In the clear
//! it speaks HTTP/1.1; by TLS what the client chose (`tls.rs`). Handshakes are done beside each other, so that a slow one holds up none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::middleware::AddExtension;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer;

use crate::tls::{H2, Tls};

/// Streams of one HTTP/2 connection at the same time.
const H2_STREAMS: u32 = 128;
/// An HTTP/2 connection that is idle is asked after this whether anybody is there, and closed if no answer comes within as long.
const H2_PING: Duration = Duration::from_secs(20);
const H2_HEAD_BYTES: u32 = 16 << 10;

/// What the loop grants.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// A TLS handshake, and then a request's head, must have come within this; an idle connection is closed after it.
    pub head: Duration,
    /// Connections at the same time; more wait in the kernel's queue.
    pub connections: usize,
    /// Open requests may go on for this long after the stop.
    pub drain: Duration,
}

/// Serves until `stop`, then lets open requests end within the drain time. With `tls` nothing is answered in the clear.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServeLimits,
    tls: Option<Tls>,
    stop: CancellationToken,
) {
    let http = http(limits);
    let room = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    while let Some((stream, peer, place)) = next_connection(&listener, &room, &stop).await {
        let connection = Connection {
            http: http.clone(),
            router: Extension(ConnectInfo(peer)).layer(router.clone()),
            watcher: graceful.watcher(),
        };
        let (tls, cut, stop) = (tls.clone(), cut.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            let served = async {
                match tls {
                    None => connection.serve(stream, false).await,
                    Some(tls) => connection.serve_tls(stream, &tls, limits.head, &stop).await,
                }
            };
            let _cut: Option<()> = cut.run_until_cancelled(served).await;
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            open = connections.len(),
            "the drain time is over; open requests are cut"
        );
        cut.cancel();
    }
    connections.close();
    connections.wait().await;
}

fn http(limits: ServeLimits) -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .max_header_list_size(H2_HEAD_BYTES)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    http
}

/// What one connection is served with.
struct Connection {
    http: Builder<TokioExecutor>,
    router: AddExtension<Router, ConnectInfo<SocketAddr>>,
    /// Keeps the stop waiting for it.
    watcher: Watcher,
}

impl Connection {
    async fn serve_tls(self, stream: TcpStream, tls: &Tls, limit: Duration, stop: &CancellationToken) {
        let handshake = tokio::time::timeout(limit, tls.acceptor().accept(stream));
        // Whoever has not even shaken hands has no open request.
        let Some(Ok(Ok(stream))) = stop.run_until_cancelled(handshake).await else {
            metrics::counter!("claimcheck_tls_handshakes_failed_total").increment(1);
            return;
        };
        let h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
        self.serve(stream, h2).await;
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, h2: bool) {
        let http = if h2 {
            self.http.http2_only()
        } else {
            self.http.http1_only()
        };
        let service = TowerToHyperService::new(self.router);
        let connection = self.watcher.watch(http.serve_connection(TokioIo::new(stream), service));
        // A connection's end, however rude, concerns nobody else.
        let _ended = connection.await;
    }
}

/// The next connection with its other end and its place among the allowed ones; `None` once `stop` is cancelled.
async fn next_connection(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    tokio::select! {
        () = stop.cancelled() => None,
        connection = async {
            let place = room.clone().acquire_owned().await.ok()?;
            let (stream, peer) = accept(listener).await;
            Some((stream, peer, place))
        } => connection,
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Small answers must not wait for a full segment.
                let _refused = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end first.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    struct Served {
        address: std::net::SocketAddr,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start(router: Router, head: Duration, drain: Duration) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let limits = ServeLimits {
            head,
            connections: 8,
            drain,
        };
        let task = tokio::spawn(serve(listener, router, limits, None, stop.clone()));
        Served { address, stop, task }
    }

    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_half_sent_head_is_given_up_and_so_is_a_silent_connection() {
        let served = start(Router::new(), SHORT, LONG).await;
        for sent in ["GET / HTTP/1.1\r\nHost: x\r\n", "P", ""] {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            let closed = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok(), "{sent:?} was held");
        }
    }

    #[tokio::test]
    async fn an_open_request_is_answered_after_the_stop() {
        let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let handler = {
            let (entered, leave) = (entered.clone(), leave.clone());
            move || async move {
                entered.notify_one();
                leave.notified().await;
                "done"
            }
        };
        let served = start(Router::new().route("/", get(handler)), LONG, LONG).await;
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        entered.notified().await;
        served.stop.cancel();
        leave.notify_one();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("done"), "{answer}");
        served.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_request_that_never_ends_cannot_hold_the_stop_beyond_the_drain() {
        let entered = Arc::new(Notify::new());
        let handler = {
            let entered = entered.clone();
            move || async move {
                entered.notify_one();
                std::future::pending::<()>().await;
            }
        };
        let served = start(Router::new().route("/", get(handler)), LONG, SHORT).await;
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        entered.notified().await;
        served.stop.cancel();
        tokio::time::timeout(LONG, served.task)
            .await
            .expect("the loop ends")
            .unwrap();
    }
}
