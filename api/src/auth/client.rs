//! How a client of `/v1/auth/token` shows its id and secret (RFC 6749, section 2.3.1): by HTTP Basic or in the form, one of them.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use claimcheck_common::domain::{Scope, Scopes};
use secrecy::SecretString;

use crate::error::{ApiError, Problem};
use crate::extract::Form;

/// What a client shows.
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: SecretString,
}

/// Reads id and secret.
pub fn shown(headers: &HeaderMap, form: &mut Form) -> Result<Shown, ApiError> {
    let by_form = (form.take("client_id"), form.take("client_secret"));
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    match (lines.next(), lines.next(), by_form) {
        (None, _, (Some(id), Some(secret))) => Ok(Shown {
            id,
            secret: secret.into(),
        }),
        (Some(line), None, (None, None)) => line.to_str().ok().and_then(basic).ok_or_else(missing),
        (None, ..) => Err(missing()),
        // Which of them was checked, and which acts, could differ.
        _ => Err(ApiError::Invalid(Problem::new(
            "invalid_request",
            "Send the client's id and secret by `Authorization: Basic` or in the form, and once.",
        ))),
    }
}

/// Both are form-encoded before they are put together.
fn basic(line: &str) -> Option<Shown> {
    let (scheme, encoded) = line.split_once(' ')?;
    let decoded = scheme
        .eq_ignore_ascii_case("basic")
        .then(|| BASE64_STANDARD.decode(encoded.trim()).ok())??;
    let text = String::from_utf8(decoded).ok()?;
    let (id, secret) = text.split_once(':')?;
    let read = |part: &str| {
        let whole = format!("={part}");
        let mut pairs = url::form_urlencoded::parse(whole.as_bytes());
        pairs.next().map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    Some(Shown {
        id: read(id),
        secret: read(secret).into(),
    })
}

fn missing() -> ApiError {
    let message = "This grant needs a service account's id and secret, by `Authorization: Basic` or as `client_id` and \
                   `client_secret`.";
    ApiError::Unauthenticated(Problem::new("invalid_client", message))
}

/// Those of the scopes that are asked for (RFC 6749, section 3.3): all of them if none is named, and none beyond them.
pub fn narrowed(has: Scopes, asked: Option<&str>) -> Result<Scopes, ApiError> {
    let Some(asked) = asked else { return Ok(has) };
    let scopes = asked
        .split(' ')
        .map(|word| word.parse::<Scope>().ok().filter(|scope| has.contain(*scope)));
    scopes.collect::<Option<Scopes>>().ok_or_else(|| {
        let message =
            "`scope` names something that this service account is not good for; leave it out for all that it is.";
        ApiError::Invalid(Problem::new("invalid_scope", message).at("scope"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_reads_what_was_encoded_before_and_nothing_else() {
        let line = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        let read = |line: &str| basic(line).map(|shown| shown.id);
        assert_eq!(read(&line("svc_1:a")).as_deref(), Some("svc_1"));
        assert_eq!(read(&line("a%3Ab+c:d")).as_deref(), Some("a:b c"));
        assert_eq!(read(&line("a").replace("Basic", "bASIC")), None);
        for bad in ["Bearer abc", "Basic", "Basic ???", "Basic /w==", ""] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_scope_is_asked_for_within_what_there_is() {
        let has: Scopes = [Scope::JobsRead, Scope::Batches].into_iter().collect();
        assert_eq!(narrowed(has, None).unwrap(), has);
        assert_eq!(
            narrowed(has, Some("batches")).unwrap().iter().collect::<Vec<_>>(),
            [Scope::Batches]
        );
        for bad in ["admin", "jobs:read admin", "", "jobs:read  batches", "everything"] {
            assert!(narrowed(has, Some(bad)).is_err(), "{bad}");
        }
    }
}
