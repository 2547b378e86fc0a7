//! Numbers on the command line that clap has no range for.

/// A finite number from 0 to 2.
pub(super) fn temperature(text: &str) -> Result<f32, String> {
    between(text, 2.0)
}

/// A finite number from 0 to 1.
pub(super) fn probability(text: &str) -> Result<f32, String> {
    between(text, 1.0)
}

fn between(text: &str, most: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=most).contains(&value) => Ok(value),
        _ => Err(format!("a number from 0 to {most} is wanted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_in_range_are_taken() {
        assert_eq!(temperature("0.7"), Ok(0.7));
        assert_eq!(probability("1"), Ok(1.0));
        for text in ["-0.1", "2.1", "nan", "inf", "", "warm"] {
            assert!(temperature(text).is_err(), "{text}");
        }
        assert!(probability("1.5").is_err());
    }
}
