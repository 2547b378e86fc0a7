//! Form bodies (`application/x-www-form-urlencoded`), as OAuth 2 sends them.
//!
//! RFC 6749 asks to ignore parameters that are not known and to refuse those that are given twice.

use axum::extract::{FromRequest, Request};
use claimcheck_common::validate::json;

use super::body;
use crate::error::{ApiError, Problem};

const LIMIT: usize = 16 << 10;

/// The form's parameters, each at most once.
#[derive(Debug, Default)]
pub struct Form(Vec<(String, String)>);

impl Form {
    /// Takes a parameter out; an empty one counts as absent (RFC 6749, section 3.2).
    pub fn take(&mut self, name: &str) -> Option<String> {
        let place = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(place).1).filter(|value| !value.is_empty())
    }

    fn parse(raw: &[u8]) -> Result<Self, ApiError> {
        json::utf8(raw, "The request body")?;
        let mut form = Self::default();
        for (name, value) in url::form_urlencoded::parse(raw) {
            if form.0.iter().any(|(known, _)| *known == name) {
                let name: String = name.chars().take(64).collect();
                return Err(ApiError::Invalid(
                    Problem::new("invalid_request", format!("`{name}` is given twice.")).at(name),
                ));
            }
            form.0.push((name.into_owned(), value.into_owned()));
        }
        Ok(form)
    }
}

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        Self::parse(&body::read(request, "application/x-www-form-urlencoded", LIMIT).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_an_empty_one_is_absent() {
        let mut form = Form::parse(b"username=ada&password=a%20b%2Bc+d&scope=&other=1").unwrap();
        assert_eq!(form.take("password").as_deref(), Some("a b+c d"));
        assert_eq!(form.take("scope"), None);
        assert_eq!(form.take("absent"), None);
    }

    #[test]
    fn a_repeated_parameter_is_refused() {
        assert!(Form::parse(b"username=a&username=b").is_err());
    }
}
