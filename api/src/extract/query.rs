//! Query parameters: unknown and repeated ones are refused by name. Values arrive as text; the route parses them.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::error::{ApiError, Problem};

/// The query's parameters, all of them known to the route and each at most once.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// A parameter's text, read by `parse`, whose error reads on from the parameter's name.
    pub fn get<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, ApiError> {
        let Some((_, text)) = self.0.iter().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        let value = parse(text).map_err(|wrong| ApiError::invalid(name, format!("`{name}` {wrong}.")))?;
        Ok(Some(value))
    }

    /// Refuses parameters other than these.
    pub fn only(self, known: &[&str]) -> Result<Self, ApiError> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(self),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                let message = if known.is_empty() {
                    format!("`{name}` is not a parameter here; there are none.")
                } else {
                    format!(
                        "`{name}` is not a parameter here; known parameters: {}.",
                        known.join(", ")
                    )
                };
                Err(ApiError::Invalid(Problem::new("unknown_parameter", message).at(name)))
            }
        }
    }

    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut seen = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if seen.0.iter().any(|(known, _)| *known == name) {
                let name: String = name.chars().take(64).collect();
                let problem = Problem::new("duplicate_parameter", format!("`{name}` is given twice.")).at(name);
                return Err(ApiError::Invalid(problem));
            }
            seen.0.push((name.into_owned(), value.into_owned()));
        }
        Ok(seen)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::number;

    #[test]
    fn a_known_parameter_is_read_and_a_bad_one_is_named() {
        let query = Query::parse("limit=5&wait=x")
            .unwrap()
            .only(&["limit", "wait"])
            .unwrap();
        assert_eq!(
            query.get("limit", |text| number::from_text(text, 1..=9)).unwrap(),
            Some(5)
        );
        assert_eq!(query.get("after", |text| number::from_text(text, 1..=9)).unwrap(), None);
        let error = query.get("wait", |text| number::from_text(text, 0..=60)).unwrap_err();
        assert!(matches!(error, ApiError::Invalid(problem)
            if problem.param.as_deref() == Some("wait") && problem.message.contains("0 to 60")));
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused_by_name() {
        let unknown = Query::parse("limt=5").unwrap().only(&["limit"]).unwrap_err();
        assert!(matches!(unknown, ApiError::Invalid(problem) if problem.message.contains("`limt`")));
        assert!(Query::parse("a=1&a=2").is_err());
    }
}
