//! A wire between a process and a server: it can be cut, and it can fall silent without an end, as when a machine vanishes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use url::Url;

/// What happens to the connections that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Bytes pass.
    Alive,
    /// Both ends get a reset.
    Cut,
    /// Nothing passes any more, and neither end is told.
    Silent,
}

/// A TCP proxy in front of one server.
pub struct Wire {
    address: SocketAddr,
    /// Each connection listens to the sender of its own time: a new one is there after each blow.
    fate: watch::Sender<watch::Sender<Fate>>,
    task: JoinHandle<()>,
}

impl Wire {
    /// Lays a wire to the server of `url`.
    ///
    /// # Panics
    /// If the URL names no server or there is no port.
    pub async fn to(url: &str) -> Self {
        let url = Url::parse(url).expect("a URL");
        let server = (url.host_str().expect("a host").to_owned(), url.port().expect("a port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (fate, now) = watch::channel(watch::Sender::new(Fate::Alive));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let fate = now.borrow().subscribe();
                let server = server.clone();
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(server).await {
                        carry(client, server, fate).await;
                    }
                });
            }
        });
        Self { address, fate, task }
    }

    /// `url`, by this wire.
    ///
    /// # Panics
    /// If it is none.
    pub fn by(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(self.address.port())).expect("a port");
        url.to_string()
    }

    /// Resets every connection; new ones pass.
    pub fn cut(&self) {
        self.strike(Fate::Cut);
    }

    /// Lets every connection fall silent for good; new ones pass.
    pub fn silence(&self) {
        self.strike(Fate::Silent);
    }

    fn strike(&self, fate: Fate) {
        let before = self.fate.send_replace(watch::Sender::new(Fate::Alive));
        before.send_replace(fate);
        // Kept open, or the connections would take its end for another blow.
        std::mem::forget(before);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, mut fate: watch::Receiver<Fate>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut from_server) = (vec![0; 1 << 14], vec![0; 1 << 14]);
    loop {
        let passed = tokio::select! {
            _ = fate.changed() => break,
            read = client.read(&mut from_client) => pass(read, &from_client, &mut server).await,
            read = server.read(&mut from_server) => pass(read, &from_server, &mut client).await,
        };
        if passed.is_none() {
            return;
        }
    }
    let fate = *fate.borrow();
    if fate == Fate::Silent {
        // Held, and never read again.
        std::future::pending::<()>().await;
    }
    for stream in [&client, &server] {
        // Closing then sends a reset.
        let _ = stream.set_zero_linger();
    }
}

async fn pass(read: std::io::Result<usize>, bytes: &[u8], to: &mut TcpStream) -> Option<()> {
    match read {
        Ok(0) | Err(_) => None,
        Ok(count) => to.write_all(&bytes[..count]).await.ok(),
    }
}
