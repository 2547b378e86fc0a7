//! The connection loop: accepts, bounds and drains connections.
//!
//! axum's own loop has no limit on the time that a request's head may take, so that one half-sent head would hang a
//! graceful stop. This loop speaks HTTP/1.1 (HTTP/2 is the proxy's business) and gives every wait a limit: the head, the
//! number of connections, the drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer;

/// What the loop grants.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// A request's head must have come within this; an idle connection is closed after it.
    pub head: Duration,
    /// Connections at the same time; more wait in the kernel's queue.
    pub connections: usize,
    /// Open requests may go on for this long after the stop.
    pub drain: Duration,
}

/// Serves until `stop`, then lets open requests end within the drain time.
pub async fn serve(listener: TcpListener, router: Router, limits: ServeLimits, stop: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    let room = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    while let Some((stream, peer, place)) = next_connection(&listener, &room, &stop).await {
        let service = TowerToHyperService::new(Extension(ConnectInfo(peer)).layer(router.clone()));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let cut = cut.clone();
        connections.spawn(async move {
            let _place = place;
            tokio::select! {
                // A connection's end, however rude, concerns nobody else.
                _ended = connection => {}
                () = cut.cancelled() => {}
            }
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
        let task = tokio::spawn(serve(listener, router, limits, stop.clone()));
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
