//! Reading JSON objects. Refusals name the field and what it takes, and never repeat a value: a text may hold a secret or a
//! megabyte.

use serde::de::DeserializeOwned;

use super::Problem;

const SHOWN_NAME_MAX: usize = 64;

/// The text of `raw`, or where it stops being UTF-8.
pub fn utf8<'raw>(raw: &'raw [u8], what: &str) -> Result<&'raw str, Problem> {
    std::str::from_utf8(raw).map_err(|error| {
        let message = format!("{what} is not UTF-8: byte {} is wrong.", error.valid_up_to());
        Problem::new("invalid_utf8", message)
    })
}

/// Reads one JSON object that fills all of `raw`; `what` is what messages call it ("The request body").
pub fn parse<T: DeserializeOwned>(raw: &[u8], what: &str) -> Result<T, Problem> {
    let text = utf8(raw, what)?;
    if text.trim().is_empty() {
        return Err(Problem::new(
            "invalid_json",
            format!("{what} is empty; send a JSON object."),
        ));
    }
    // serde would also read an object's fields from an array, in their order.
    if text.trim_start().starts_with('[') {
        return Err(Problem::new("invalid_value", format!("{what} must be a JSON object.")));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| explain(&error.path().to_string(), error.inner(), what))?;
    reader.end().map_err(|error| malformed(&error, what))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error, what: &str) -> Problem {
    Problem::new("invalid_json", format!("{what} is not valid JSON: {error}."))
}

/// Puts serde's words into ours, without the value that it quotes.
fn explain(path: &str, error: &serde_json::Error, what: &str) -> Problem {
    if error.classify() != serde_json::error::Category::Data {
        return malformed(error, what);
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(said, _)| said);
    if let Some(rest) = text.strip_prefix("unknown field `") {
        // Split at the end, where no caller's text stands.
        let (name, known) = rest.rsplit_once("`, expected ").unwrap_or((rest, ""));
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let (name, known) = (shortened(name), known.join(", "));
        return Problem::new(
            "unknown_field",
            format!("`{name}` is not a field here; known fields: {known}."),
        )
        .at(name);
    }
    if let Some(name) = quoted(text, "missing field `") {
        let name = within(path, name);
        return Problem::new("missing_field", format!("`{name}` is required.")).at(name);
    }
    if let Some(name) = quoted(text, "duplicate field `") {
        let name = within(path, name);
        return Problem::new("duplicate_field", format!("`{name}` is given twice.")).at(name);
    }
    let wanted = text
        .rsplit_once(", expected ")
        .map_or_else(|| text.to_owned(), |(_, expected)| format!("must be {expected}"));
    if path == "." {
        return Problem::new("invalid_value", format!("{what} {wanted}."));
    }
    let path = shortened(path);
    Problem::new("invalid_value", format!("`{path}` {wanted}.")).at(path)
}

fn quoted<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix('`')
}

/// serde blames the object that lacks the field.
fn within(path: &str, name: &str) -> String {
    if path == "." {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= SHOWN_NAME_MAX {
        return name.to_owned();
    }
    name.chars().take(SHOWN_NAME_MAX).chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, expecting = "a JSON object")]
    #[allow(dead_code)]
    struct Sample {
        name: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, expecting = "a JSON object")]
    #[allow(dead_code)]
    struct Inner {
        count: u8,
    }

    fn refused(body: impl AsRef<[u8]>) -> Problem {
        parse::<Sample>(body.as_ref(), "The request body").expect_err("refused")
    }

    #[test]
    fn text_that_is_not_json_is_told_so_with_its_place() {
        for bad in [
            "{",
            "{\"name\" 1}",
            "nul",
            "{} {}",
            "{\"name\": \"\\ud800\"}",
            "{'name': 1}",
        ] {
            let problem = refused(bad);
            assert!(
                ["invalid_json", "missing_field"].contains(&problem.code),
                "{bad}: {problem:?}"
            );
        }
        assert!(refused("{\"name\" 1}").message.contains("line 1"));
        assert!(refused("").message.contains("empty"));
        assert_eq!(
            refused("[".repeat(100_000)).code,
            "invalid_value",
            "deep nesting is refused, not followed"
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_told_so_with_their_place() {
        let problem = refused(b"{\"name\": \"\xff\"}");
        assert_eq!(problem.code, "invalid_utf8");
        assert!(problem.message.contains("byte 10"), "{}", problem.message);
    }

    #[test]
    fn something_other_than_an_object_is_told_so() {
        for bad in ["[]", "[\"x\", null]", " [1", "17", "\"x\"", "null", "true"] {
            assert_eq!(refused(bad).message, "The request body must be a JSON object.", "{bad}");
        }
    }

    #[test]
    fn an_unknown_field_is_named_with_the_known_ones() {
        let problem = refused(r#"{"name": "x", "nmae": 1}"#);
        assert_eq!(problem.param.as_deref(), Some("nmae"));
        assert_eq!(
            problem.message,
            "`nmae` is not a field here; known fields: name, inner."
        );
    }

    #[test]
    fn a_field_within_a_field_is_named_by_its_path() {
        assert_eq!(
            refused(r#"{"name": "x", "inner": {"count": -1}}"#).param.as_deref(),
            Some("inner.count")
        );
        assert_eq!(
            refused(r#"{"name": "x", "inner": {}}"#).param.as_deref(),
            Some("inner.count")
        );
    }

    #[test]
    fn a_value_is_never_echoed() {
        let secret = "s3cret".repeat(10_000);
        for body in [
            format!(r#"{{"name": {{"{secret}": 1}}}}"#),
            format!(r#"{{"name": "x", "inner": "{secret}"}}"#),
            format!(r#"{{"name": "x", "inner": {{"count": "{secret}"}}}}"#),
        ] {
            assert!(!refused(&body).message.contains("s3cret"), "{body:.60}");
        }
        assert!(
            refused(format!(r#"{{"{secret}": 1}}"#)).message.len() < 200,
            "a long name is cut"
        );
    }

    #[test]
    fn a_crafted_field_name_cannot_change_the_message() {
        let problem = refused(r#"{"name": "x", "a`, expected one of `b": 1}"#);
        assert!(
            problem.message.ends_with("known fields: name, inner."),
            "{}",
            problem.message
        );
    }
}
