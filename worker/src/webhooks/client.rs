//! The HTTP client, which goes nowhere but where a webhook may: every address that a name leads to is looked at before it is
//! connected to, no redirect is followed and no proxy asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::tls;
use claimcheck_common::webhook::{Reach, Target};
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

const USER_AGENT: &str = concat!("claimcheck-webhooks/", env!("CARGO_PKG_VERSION"));
/// Connections to a receiver that are kept for the next delivery, and how long.
const IDLE_CONNECTIONS: usize = 4;
const IDLE_TIME: Duration = Duration::from_secs(30);

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A bug: the protocol versions and the provider are fixed.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// So is all else.
    #[error("the HTTP client cannot be made")]
    Http(#[from] reqwest::Error),
}

/// A name leads to an address that webhooks may not reach.
#[derive(Debug, thiserror::Error)]
#[error("the name leads to an address that is not of the public internet")]
pub(super) struct NotAllowed;

/// Two clients, since a URL's scheme and port decide which addresses it may lead to.
pub(super) struct Client {
    public: reqwest::Client,
    opened: reqwest::Client,
}

impl Client {
    /// A client for the public internet, and for networks that are opened.
    pub(super) fn new(allow: &[IpNet], timeout: Duration) -> Result<Self, ClientError> {
        let allow: Arc<[IpNet]> = allow.into();
        Ok(Self {
            public: client(Reach::Public, allow.clone(), timeout)?,
            opened: client(Reach::Opened, allow, timeout)?,
        })
    }

    /// The client that may go there.
    pub(super) const fn to(&self, target: &Target) -> &reqwest::Client {
        match target.reach() {
            Reach::Public => &self.public,
            Reach::Opened => &self.opened,
        }
    }
}

fn client(reach: Reach, allow: Arc<[IpNet]>, timeout: Duration) -> Result<reqwest::Client, ClientError> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::of_the_web()?)
        .dns_resolver(Arc::new(Resolver { reach, allow }))
        .redirect(Policy::none())
        .no_proxy()
        .https_only(reach == Reach::Public)
        .connect_timeout(timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_TIME)
        .referer(false)
        .user_agent(USER_AGENT);
    Ok(client.build()?)
}

/// Names by the machine's resolver, as far as they lead where they may. A literal address is no name and does not come here:
/// [`Target`] has looked at it.
struct Resolver {
    reach: Reach,
    allow: Arc<[IpNet]>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, allow) = (self.reach, self.allow.clone());
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One wrong address is reason enough: whoever mixes them has something in mind.
            if found.iter().any(|address| !reach.admits(address.ip(), &allow)) {
                return Err(NotAllowed.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolve(reach: Reach, allow: &[&str], name: &str) -> Result<Vec<SocketAddr>, String> {
        let allow = allow.iter().map(|net| net.parse().unwrap()).collect();
        let resolver = Resolver { reach, allow };
        let found = resolver.resolve(name.parse().unwrap()).await;
        found.map(Iterator::collect).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_name_that_leads_inward_is_refused_unless_its_network_is_opened() {
        let refused = resolve(Reach::Public, &[], "localhost").await.unwrap_err();
        assert_eq!(refused, NotAllowed.to_string());
        assert!(resolve(Reach::Opened, &["10.0.0.0/8"], "localhost").await.is_err());
        let both = ["127.0.0.0/8", "::1/128"];
        assert!(!resolve(Reach::Opened, &both, "localhost").await.unwrap().is_empty());
    }
}
