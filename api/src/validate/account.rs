//! What an account may be called, and how long a password must be.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use utoipa::ToSchema;

use super::text::Text;
use crate::error::{ApiError, Problem};

/// Below, a password is guessable (OWASP ASVS 5.0, 6.2.1).
const PASSWORD_MIN: usize = 8;
/// Above, hashing would read without bound. ASVS asks for at least 64.
const PASSWORD_MAX: usize = 128;
const EMAIL_MAX: usize = 254;

/// The 3,000 most used passwords that are long enough, in lower case (ASVS 5.0, 6.2.4). Counted by the zxcvbn project (MIT
/// licence) in published leaks.
const COMMON: &str = include_str!("common_passwords.txt");

/// The body of `POST /v1/auth/register`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct Registration {
    /// 3 to 50 characters of `A-Z a-z 0-9 _ . -`.
    #[schema(value_type = String, min_length = 3, max_length = 50, pattern = "^[A-Za-z0-9_.-]+$", example = "ada")]
    pub username: Username,
    /// An address with one `@`, at most 254 characters.
    #[schema(value_type = String, format = "email", max_length = 254, example = "ada@example.org")]
    pub email: Email,
    /// 8 to 128 characters of any kind; not one of the most used, nor the username or the address.
    #[schema(value_type = String, format = "password", min_length = 8, max_length = 128)]
    pub password: NewPassword,
}

/// The body of `POST /v1/auth/password`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct PasswordChange {
    /// The one that holds.
    #[schema(value_type = String, format = "password", max_length = 128)]
    pub current_password: PresentPassword,
    /// 8 to 128 characters of any kind; not one of the most used, nor the username or the address.
    #[schema(value_type = String, format = "password", min_length = 8, max_length = 128)]
    pub new_password: NewPassword,
}

/// A name that an account can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Username(String);

impl Username {
    /// Checks a name; the error reads on from the field's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = Text::<3, 50>::parse(text)?.into_string();
        if text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        {
            Ok(Self(text))
        } else {
            Err("may only contain A-Z, a-z, 0-9, `_`, `.` and `-`".to_owned())
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Username {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::<3, 50>::deserialize(deserializer)?;
        Self::parse(text.as_str()).map_err(D::Error::custom)
    }
}

/// A plausible address. Whether it exists, only a message to it could tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Checks an address; the error reads on from the field's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "must be an e-mail address such as name@example.org".to_owned();
        if text.len() > EMAIL_MAX {
            return Err(format!("must have at most {EMAIL_MAX} characters"));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(wrong());
        }
        let (local, domain) = text.rsplit_once('@').ok_or_else(wrong)?;
        let labels_hold = domain
            .split('.')
            .all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'));
        let domain_holds = domain.contains('.') && labels_hold && domain.chars().all(is_domain_char);
        let local_holds = (1..=64).contains(&local.len()) && !local.contains('@');
        if domain_holds && local_holds {
            Ok(Self(text.to_owned()))
        } else {
            Err(wrong())
        }
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_domain_char(c: char) -> bool {
    c.is_alphanumeric() || c == '-' || c == '.'
}

impl<'de> Deserialize<'de> for Email {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::<3, EMAIL_MAX>::deserialize(deserializer)?;
        Self::parse(text.as_str()).map_err(D::Error::custom)
    }
}

/// A password that a new account may have.
#[derive(Debug)]
pub struct NewPassword(SecretString);

impl NewPassword {
    /// Refuses what anybody would try first for this account. The kinds of characters do not matter (ASVS 5.0, 6.2.5).
    pub fn fits(&self, param: &str, username: &str, email: &str) -> Result<(), ApiError> {
        let lower = self.0.expose_secret().to_lowercase();
        let local = email.rsplit_once('@').map_or(email, |(local, _)| local);
        let own = [username, email, local, "claimcheck"].map(str::to_lowercase);
        if own.contains(&lower) || COMMON.lines().any(|common| common == lower) {
            let message = "This password is one of those that are tried first; take a longer or less usual one.";
            return Err(ApiError::Invalid(Problem::new("common_password", message).at(param)));
        }
        Ok(())
    }

    /// The password.
    pub fn into_secret(self) -> SecretString {
        self.0
    }
}

impl<'de> Deserialize<'de> for NewPassword {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secret = SecretString::deserialize(deserializer).map_err(|_| {
            D::Error::custom(format!(
                "must be a string of {PASSWORD_MIN} to {PASSWORD_MAX} characters"
            ))
        })?;
        super::text::check(secret.expose_secret(), PASSWORD_MIN, PASSWORD_MAX).map_err(D::Error::custom)?;
        Ok(Self(secret))
    }
}

/// A password that is to be compared with the one that holds: of any kind, within the longest.
#[derive(Debug)]
pub struct PresentPassword(SecretString);

impl PresentPassword {
    /// The password.
    pub fn into_secret(self) -> SecretString {
        self.0
    }
}

impl<'de> Deserialize<'de> for PresentPassword {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secret = SecretString::deserialize(deserializer)
            .map_err(|_| D::Error::custom(format!("must be a string of at most {PASSWORD_MAX} characters")))?;
        super::text::check(secret.expose_secret(), 1, PASSWORD_MAX).map_err(D::Error::custom)?;
        Ok(Self(secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_first_is_refused_in_any_case_and_other_passwords_of_one_kind_are_not() {
        let password = |text: &str| serde_json::from_str::<NewPassword>(&format!("\"{text}\"")).unwrap();
        for bad in [
            "password",
            "PassWord",
            "12345678",
            "iloveyou",
            "ada.lovelace",
            "Ada@Example.org",
            "claimcheck",
        ] {
            assert!(
                password(bad)
                    .fits("password", "ada.lovelace", "ada@example.org")
                    .is_err(),
                "{bad}"
            );
        }
        for good in ["correct horse", "zzzzyyyyxxxx", "83649274612"] {
            assert!(
                password(good).fits("password", "ada", "ada@example.org").is_ok(),
                "{good}"
            );
        }
        assert_eq!(COMMON.lines().count(), 3000);
        assert!(
            COMMON
                .lines()
                .all(|line| line.len() >= PASSWORD_MIN && line == line.to_lowercase())
        );
    }

    #[test]
    fn usernames_keep_to_their_alphabet_and_length() {
        for good in ["ada", "a.b-c_d", "A23", &"x".repeat(50)] {
            assert!(Username::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "ab", "with space", "ümlaut", "a@b", "nul\0", &"x".repeat(51)] {
            assert!(Username::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_need_one_at_sign_and_a_dotted_domain() {
        for good in ["a@b.co", "first.last+tag@mail.example.org", "ö@exämple.org"] {
            assert!(Email::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "", "a", "@b.co", "a@", "a@b", "a@@b.co", "a b@c.de", "a@b..c", "a@-b.co", "a\0@b.co", "a@b.co\n",
        ] {
            assert!(Email::parse(bad).is_err(), "{bad}");
        }
        assert!(Email::parse(&format!("{}@b.co", "x".repeat(65))).is_err());
    }

    #[test]
    fn a_password_of_the_wrong_length_or_type_is_refused_without_being_shown() {
        for bad in [r#""short""#, "12345678", &format!("\"{}\"", "x".repeat(129))] {
            let error = serde_json::from_str::<NewPassword>(bad).unwrap_err().to_string();
            assert!(error.contains("8 to 128"), "{error}");
            assert!(!error.contains("12345678") && !error.contains("short"), "{error}");
        }
        assert!(serde_json::from_str::<NewPassword>(r#""correct horse""#).is_ok());
    }
}
