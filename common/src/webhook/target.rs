//! A URL that a webhook may be sent to, as far as its text tells. What its name leads to is looked at when it is called.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use super::address;

const URL_MAX: usize = 2048;
/// Of the public internet; where others are wanted, a network is to be opened.
const PORTS: [u16; 2] = [443, 8443];

/// A URL that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    url: Url,
    reach: Reach,
}

/// Which addresses a URL's name may lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The public internet, and networks that the operator opened.
    Public,
    /// Opened networks alone: it has another scheme or port than is asked for outside.
    Opened,
}

impl Target {
    /// Checks a URL; the error reads on from the field's name. The parser reads hosts as browsers do, so that `2130706433`,
    /// `0x7f.1` and `0177.0.0.1` are the address that they mean.
    pub fn parse(text: &str, opened: &[IpNet]) -> Result<Self, String> {
        if text.len() > URL_MAX {
            return Err(format!("must have at most {URL_MAX} bytes"));
        }
        let url = Url::parse(text).map_err(|_| "must be a URL such as https://example.org/hook".to_owned())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user or a password; send them in `headers`".to_owned());
        }
        if url.fragment().is_some() {
            return Err("must not hold a fragment (`#…`)".to_owned());
        }
        let port = url.port_or_known_default();
        let asked_outside = url.scheme() == "https" && port.is_some_and(|port| PORTS.contains(&port));
        let reach = match url.scheme() {
            "https" | "http" if asked_outside => Reach::Public,
            "https" | "http" if !opened.is_empty() => Reach::Opened,
            _ => return Err("must begin with https:// and use port 443 or 8443".to_owned()),
        };
        let literal = match url.host() {
            None => return Err("must name a host".to_owned()),
            Some(Host::Domain(_)) => None,
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        };
        if literal.is_some_and(|address| !reach.admits(address, opened)) {
            return Err("must lead to the public internet; this address is not of it".to_owned());
        }
        Ok(Self { url, reach })
    }

    /// The URL as it is called.
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// Where its name may lead.
    pub const fn reach(&self) -> Reach {
        self.reach
    }

    /// Scheme, host and port: who receives.
    pub fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

impl Reach {
    /// Whether an address is within it.
    pub fn admits(self, address: IpAddr, opened: &[IpNet]) -> bool {
        address::is_opened(address, opened) || self == Self::Public && address::is_public(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_not_public_is_refused_however_it_is_written() {
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001::1]",
            "10.0.0.1",
            "169.254.169.254",
            "0xa9fea9fe",
            "192.168.1.1",
            "[fd00::1]",
            "[fe80::1]",
            "①②⑦.⓪.⓪.①",
            "127。0。0。1",
        ] {
            let refused = Target::parse(&format!("https://{host}/hook"), &[]);
            assert!(refused.is_err(), "{host}: {refused:?}");
        }
    }

    #[test]
    fn outside_only_https_on_its_ports_is_called() {
        for good in [
            "https://example.org/hook?a=1",
            "https://example.org:8443/",
            "https://8.8.8.8/",
        ] {
            assert_eq!(Target::parse(good, &[]).unwrap().reach(), Reach::Public, "{good}");
        }
        for bad in [
            "",
            "example.org",
            "http://example.org/",
            "https://example.org:22/",
            "https://example.org:6379/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "gopher://example.org/",
            "https://ada:secret@example.org/",
            "https://example.org/#x",
            "https://",
            "javascript:alert(1)",
        ] {
            assert!(Target::parse(bad, &[]).is_err(), "{bad}");
        }
        assert!(Target::parse(&format!("https://example.org/{}", "x".repeat(2048)), &[]).is_err());
    }

    #[test]
    fn another_scheme_or_port_leads_to_opened_networks_alone() {
        let opened = ["127.0.0.0/8".parse().unwrap()];
        for good in ["http://127.0.0.1:4000/", "http://localhost:4000/", "https://127.0.0.1/"] {
            assert!(Target::parse(good, &opened).is_ok(), "{good}");
        }
        let target = Target::parse("http://example.org/", &opened).unwrap();
        assert!(!target.reach().admits("8.8.8.8".parse().unwrap(), &opened));
        assert!(Target::parse("http://8.8.8.8/", &opened).is_err());
        assert!(Target::parse("https://10.0.0.1/", &opened).is_err());
    }
}
