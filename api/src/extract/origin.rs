//! Where a request comes from.
//!
//! A proxy speaks for its clients in `X-Forwarded-For`, and only one that the configuration names is believed: the header is
//! read from its end, and the first address that is no such proxy's is the client's. What stands before it was written by
//! the client itself and says nothing.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use claimcheck_common::domain::UserId;
use claimcheck_common::store::audit::{self, By};
use ipnet::IpNet;

use crate::limits::Limits;
use crate::middleware::RequestNotes;

/// A request's sender, and the notes that are taken of it.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The client's address; absent where there is no connection.
    pub address: Option<IpAddr>,
    /// What is told about the request.
    pub notes: RequestNotes,
}

impl Origin {
    /// As the audit log tells it.
    pub fn audit(&self, credential: Option<String>) -> audit::Origin {
        let id = self.notes.id();
        audit::Origin {
            credential,
            address: self.address,
            request_id: (!id.is_empty()).then(|| id.to_owned()),
        }
    }

    /// A user who has just proven to be one.
    pub fn of(&self, user: UserId) -> By {
        By {
            origin: self.audit(None),
            ..By::from(user)
        }
    }

    /// Somebody who has shown nothing yet that holds.
    pub fn anonymous(&self) -> By {
        By {
            origin: self.audit(None),
            ..By::from("anonymous")
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// The layer that finds out.
pub async fn locate(State(limits): State<Limits>, mut request: Request, next: Next) -> Response {
    let (extensions, headers) = (request.extensions(), request.headers());
    let peer = extensions.get::<ConnectInfo<SocketAddr>>();
    let origin = Origin {
        address: peer.map(|peer| client(peer.0.ip(), headers, limits.trusted_proxies())),
        notes: extensions.get::<RequestNotes>().cloned().unwrap_or_default(),
    };
    request.extensions_mut().insert(origin);
    next.run(request).await
}

fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut address = peer.to_canonical();
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let mut told = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
    while trusted.iter().any(|network| network.contains(&address)) {
        let Some(Ok(before)) = told.next().map(|text| text.trim().parse::<IpAddr>()) else {
            break;
        };
        address = before.to_canonical();
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(peer: &str, lines: &[&str]) -> String {
        let headers = lines
            .iter()
            .map(|line| ("x-forwarded-for".parse().unwrap(), line.parse().unwrap()))
            .collect();
        let trusted = ["10.0.0.0/8", "::1/128"].map(|network| network.parse().unwrap());
        client(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn only_a_configured_proxy_is_believed() {
        assert_eq!(told("203.0.113.7", &["198.51.100.1"]), "203.0.113.7");
        assert_eq!(told("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(told("::ffff:10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(told("::1", &["2001:db8::1"]), "2001:db8::1");
        assert_eq!(told("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn what_the_client_wrote_itself_says_nothing() {
        for lines in [
            &["1.1.1.1, 198.51.100.1"] as &[_],
            &["1.1.1.1", "198.51.100.1"],
            &["10.9.9.9, 198.51.100.1, 10.0.0.2"],
            &["nonsense, 198.51.100.1"],
        ] {
            assert_eq!(told("10.0.0.1", lines), "198.51.100.1", "{lines:?}");
        }
        assert_eq!(told("10.0.0.1", &["nonsense"]), "10.0.0.1");
        assert_eq!(told("10.0.0.1", &["10.0.0.2"]), "10.0.0.2");
    }
}
