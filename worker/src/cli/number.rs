//! Numbers on the command line that clap has no range for.

/// A finite number from 0 to 2.
pub(super) fn temperature(text: &str) -> Result<f32, String> {
    between(text, 0.0, 2.0)
}

/// A finite number from 0 to 1.
pub(super) fn probability(text: &str) -> Result<f32, String> {
    between(text, 0.0, 1.0)
}

/// A finite number from -2 to 2.
pub(super) fn penalty(text: &str) -> Result<f32, String> {
    between(text, -2.0, 2.0)
}

/// A finite number from 0.01 to 10.
pub(super) fn repetition(text: &str) -> Result<f32, String> {
    between(text, 0.01, 10.0)
}

/// A token id and a finite number from -100 to 100, as `50256=-100`.
pub(super) fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, value) = text.split_once('=').ok_or("a token id, `=` and a number are wanted")?;
    let id = id.parse().map_err(|_| format!("`{id}` is no token id"))?;
    Ok((id, between(value, -100.0, 100.0)?))
}

fn between(text: &str, least: f32, most: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("a number from {least} to {most} is wanted")),
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
        assert_eq!(penalty("-2"), Ok(-2.0));
        assert!(penalty("-2.1").is_err() && repetition("0").is_err());
        assert_eq!(bias("50256=-100"), Ok((50_256, -100.0)));
        for text in ["5", "5=101", "x=1", "-1=1", "5=nan"] {
            assert!(bias(text).is_err(), "{text}");
        }
    }
}
