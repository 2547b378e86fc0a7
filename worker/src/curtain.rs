//! Before running texts: of what the engine tells, only that is published which the content policy will let out.
//!
//! A text's end is not known here. What was held back at its end comes to its followers with the stored output, as does the
//! whole where the two differ (a match longer than is held back): then they are told to begin anew.

use std::collections::HashMap;

use claimcheck_common::deltas::Delta;
use claimcheck_common::domain::JobKey;
use claimcheck_common::policy::Policy;

/// The texts of followed jobs, and what of them was published.
#[derive(Debug, Default)]
pub(crate) struct Curtain {
    texts: HashMap<(JobKey, u32), Running>,
}

#[derive(Debug, Default)]
struct Running {
    text: String,
    shown: String,
    /// Nothing more is published: it is rejected, or what was published is not its beginning any more.
    closed: bool,
}

impl Curtain {
    /// What of a piece may be published, with what was held back before.
    pub(crate) fn lift(&mut self, policy: &Policy, piece: &Delta) -> Option<Delta> {
        let running = self.texts.entry((piece.key, piece.choice)).or_default();
        if piece.offset == 0 {
            // All is told again, for somebody who has none of it.
            *running = Running::default();
        }
        if piece.offset != running.text.len() || running.closed {
            return None;
        }
        running.text.push_str(&piece.text);
        let shown = policy.shown(&running.text);
        let Some(new) = shown
            .as_deref()
            .and_then(|shown| shown.strip_prefix(running.shown.as_str()))
        else {
            running.closed = true;
            return None;
        };
        if new.is_empty() {
            return None;
        }
        let lifted = Delta {
            offset: running.shown.len(),
            text: new.to_owned(),
            ..piece.clone()
        };
        running.shown.push_str(new);
        Some(lifted)
    }

    /// Forgets the texts of all other jobs.
    pub(crate) fn keep(&mut self, is_followed: impl Fn(JobKey) -> bool) {
        self.texts.retain(|(key, _), _| is_followed(*key));
    }
}

#[cfg(test)]
mod tests {
    use claimcheck_common::domain::JobId;

    use super::*;

    const RULES: &str = r#"
        [[rules]]
        name = "names"
        category = "privacy"
        action = "redact"
        words = ["jane"]

        [[rules]]
        name = "forbidden"
        category = "abuse"
        action = "reject"
        words = ["poison"]
    "#;

    fn told(pieces: &[&str]) -> Vec<Option<(usize, String)>> {
        let policy = Policy::parse(RULES).unwrap();
        let key = JobKey {
            id: JobId::new(),
            fence: 1,
        };
        let (mut curtain, mut offset) = (Curtain::default(), 0);
        let lift = |text: &&str| {
            let piece = Delta {
                key,
                choice: 0,
                offset,
                text: (*text).to_owned(),
            };
            offset += text.len();
            curtain.lift(&policy, &piece).map(|lifted| (lifted.offset, lifted.text))
        };
        pieces.iter().map(lift).collect()
    }

    #[test]
    fn pieces_add_up_to_the_redacted_text_and_begin_where_the_last_one_ended() {
        assert_eq!(
            told(&["dear j", "ane", ", dear", " reader"]),
            [
                Some((0, "dear ".to_owned())),
                None,
                Some((5, "[redacted], dear".to_owned())),
                Some((21, " reader".to_owned())),
            ]
        );
    }

    #[test]
    fn after_a_rejection_nothing_more_is_told() {
        assert_eq!(
            told(&["a po", "ison", " of old"]),
            [Some((0, "a ".to_owned())), None, None]
        );
    }

    #[test]
    fn who_comes_later_is_told_all_from_the_beginning_and_a_gap_is_left_to_the_end() {
        let policy = Policy::parse(RULES).unwrap();
        let key = JobKey {
            id: JobId::new(),
            fence: 1,
        };
        let mut curtain = Curtain::default();
        let mut lift = |offset: usize, text: &str| {
            let piece = Delta {
                key,
                choice: 0,
                offset,
                text: text.to_owned(),
            };
            curtain.lift(&policy, &piece).map(|lifted| lifted.offset)
        };
        assert_eq!(lift(0, "dear "), Some(0));
        assert_eq!(lift(0, "dear reader"), Some(0));
        assert_eq!(lift(17, "gap"), None);
        curtain.keep(|_| false);
        assert!(curtain.texts.is_empty());
    }
}
