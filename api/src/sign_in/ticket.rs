//! What binds a sign-in to one browser: a secret that this browser alone holds, in a cookie, for ten minutes.
//!
//! State, nonce and PKCE verifier follow from it (HMAC with SHA-256), so nothing of a sign-in has to be kept but the
//! digest that says it has begun and is not used up; and the state in a URL tells nobody the cookie (RFC 9700, section 4.7.1).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use claimcheck_common::store::api_keys::Digest;
use openidconnect::{CsrfToken, Nonce, PkceCodeVerifier};
use ring::hmac;

use crate::auth::{Secret, SecretKind};

/// A sign-in is over after this.
pub const TICKET_LIFETIME: Duration = Duration::from_mins(10);

/// One sign-in, as its browser holds it.
pub struct Ticket {
    secret: Secret,
    key: hmac::Key,
}

impl Ticket {
    /// A new one.
    pub fn draw() -> Self {
        Self::of(Secret::draw(SecretKind::SignIn))
    }

    fn of(secret: Secret) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        Self { secret, key }
    }

    /// What the database knows it by.
    pub fn digest(&self) -> Digest {
        self.secret.sha256()
    }

    /// Whether `state` belongs to this browser's sign-in. Takes as long for each.
    pub fn is_state(&self, state: &str) -> bool {
        hex::decode(state).is_ok_and(|tag| hmac::verify(&self.key, b"state", &tag).is_ok())
    }

    pub(super) fn state(&self) -> CsrfToken {
        CsrfToken::new(self.derive("state"))
    }

    pub(super) fn nonce(&self) -> Nonce {
        Nonce::new(self.derive("nonce"))
    }

    /// 64 characters of 256 bits: RFC 7636, section 4.1, asks for 43 to 128.
    pub(super) fn verifier(&self) -> PkceCodeVerifier {
        PkceCodeVerifier::new(self.derive("verifier"))
    }

    fn derive(&self, what: &str) -> String {
        hex::encode(hmac::sign(&self.key, what.as_bytes()))
    }
}

/// How a ticket travels. By TLS in a cookie that no other host and no plain answer can set (`__Host-`, RFC 6265bis); where
/// the public URL is plain HTTP, which production refuses, under a plain name.
#[derive(Debug, Clone)]
pub struct Cookie {
    secure: bool,
}

impl Cookie {
    /// `secure` says whether browsers come by TLS.
    pub(super) const fn new(secure: bool) -> Self {
        Self { secure }
    }

    const fn name(&self) -> &'static str {
        if self.secure {
            "__Host-claimcheck-sign-in"
        } else {
            "claimcheck-sign-in"
        }
    }

    /// The header that gives a browser its ticket. `Lax`: it comes back with the provider's redirect, a navigation, and with
    /// nothing that a foreign page sends.
    pub fn give(&self, ticket: &Ticket) -> Option<HeaderValue> {
        self.header(ticket.secret.expose(), TICKET_LIFETIME.as_secs())
    }

    /// The header that takes it away.
    pub fn take_back(&self) -> Option<HeaderValue> {
        self.header("", 0)
    }

    fn header(&self, value: &str, age: u64) -> Option<HeaderValue> {
        let (name, secure) = (self.name(), if self.secure { "; Secure" } else { "" });
        let text = format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{secure}");
        let mut header = HeaderValue::from_str(&text).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    /// The ticket that a request brings, if it is one and the only one.
    pub fn read(&self, headers: &HeaderMap) -> Option<Ticket> {
        let lines = headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|line| line.to_str().ok());
        let pairs = lines
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        let mut ours = pairs.filter(|(name, _)| *name == self.name()).map(|(_, value)| value);
        match (ours.next(), ours.next()) {
            (Some(value), None) => Secret::parse(SecretKind::SignIn, value).map(Ticket::of),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bringing(lines: &[&str]) -> HeaderMap {
        lines
            .iter()
            .map(|line| (header::COOKIE, line.parse().unwrap()))
            .collect()
    }

    #[test]
    fn state_nonce_and_verifier_follow_from_the_ticket_and_none_from_another() {
        let (one, other) = (Ticket::draw(), Ticket::draw());
        let all = [&one, &other].map(|ticket| {
            let (state, nonce) = (ticket.state().into_secret(), ticket.nonce().secret().to_owned());
            [state, nonce, ticket.verifier().into_secret()]
        });
        let mut different: Vec<_> = all.iter().flatten().collect();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), 6);
        assert!(one.is_state(one.state().secret()) && !one.is_state(other.state().secret()));
        assert!(!one.is_state("") && !one.is_state(one.nonce().secret()) && !one.is_state("nonsense"));
        assert!(
            all.iter()
                .flatten()
                .all(|text| !text.contains(&one.secret.expose()[4..]))
        );
    }

    #[test]
    fn a_ticket_comes_back_from_its_cookie_alone_and_only_once() {
        for (secure, name) in [(true, "__Host-claimcheck-sign-in"), (false, "claimcheck-sign-in")] {
            let (cookie, ticket) = (Cookie::new(secure), Ticket::draw());
            let given = cookie.give(&ticket).unwrap();
            let text = given.to_str().unwrap();
            assert_eq!(text.ends_with("; Secure"), secure, "{text}");
            for part in ["; Path=/;", "; Max-Age=600;", "; HttpOnly;", "; SameSite=Lax"] {
                assert!(text.contains(part) && !text.contains("Domain"), "{text}");
            }
            let pair = text.split(';').next().unwrap();
            assert!(pair.starts_with(&format!("{name}=")));
            let read = |lines: &[&str]| cookie.read(&bringing(lines)).map(|ticket| ticket.digest());
            assert_eq!(read(&[&format!("a=b; {pair}")]), Some(ticket.digest()));
            assert_eq!(read(&["a=b", pair]), Some(ticket.digest()));
            assert_eq!(read(&[pair, pair]), None);
            assert_eq!(read(&[&format!("{pair}; {pair}")]), None);
            assert_eq!(read(&[&format!("{pair}0")]), None);
            assert_eq!(read(&[&format!("{name}=")]), None);
            assert_eq!(read(&[]), None);
        }
        let (plain, ticket) = (Cookie::new(false), Ticket::draw());
        let pair = plain.give(&ticket).unwrap().to_str().unwrap().to_owned();
        assert!(
            Cookie::new(true).read(&bringing(&[&pair])).is_none(),
            "a plain cookie is none by TLS"
        );
    }
}
