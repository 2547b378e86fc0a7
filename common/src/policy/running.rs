//! What of a running text may be shown, before it is known how it goes on.
//!
//! Nothing is shown that may be the beginning of something that a rule takes out: each place near the end of the text is asked
//! whether a match could still begin there. The automaton for that knows no word boundaries and anchors, so it holds back
//! rather more than less.

use std::sync::{Mutex, PoisonError};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::{Anchored, Input, MatchKind};
use regex_syntax::hir::{Capture, Hir, HirKind, Repetition};

/// So many bytes are held back at most: of a longer match, the bytes before them are shown until it is whole.
pub(super) const HELD_MAX: usize = 256;

/// Knows where matches may begin.
#[derive(Debug)]
pub(super) struct Beginnings {
    dfa: DFA,
    cache: Mutex<Cache>,
}

impl Beginnings {
    /// For these expressions, of which one matches. `None` if they make too large an automaton.
    pub(super) fn new<'e>(expressions: impl Iterator<Item = &'e str>) -> Option<Self> {
        let hirs: Vec<Hir> = expressions
            .map(|expression| Some(without_looks(&regex_syntax::parse(expression).ok()?)))
            .collect::<Option<_>>()?;
        let nfa = thompson::Compiler::new().build_many_from_hir(&hirs).ok()?;
        // A rule that has matched must not hide that another one still may.
        let config = DFA::config().match_kind(MatchKind::All);
        let dfa = DFA::builder().configure(config).build_from_nfa(nfa).ok()?;
        let cache = Mutex::new(dfa.create_cache());
        Some(Self { dfa, cache })
    }

    /// The first place among the last [`HELD_MAX`] bytes from which the text to its end may become a match.
    pub(super) fn earliest(&self, text: &str) -> usize {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let first = text.ceil_char_boundary(text.len().saturating_sub(HELD_MAX));
        let mut places = text[first..].char_indices().map(|(place, _)| first + place);
        places
            .find(|place| self.may_begin(&mut cache, text, *place))
            .unwrap_or(text.len())
    }

    fn may_begin(&self, cache: &mut Cache, text: &str, place: usize) -> bool {
        let input = Input::new(text).span(place..text.len()).anchored(Anchored::Yes);
        let Ok(mut state) = self.dfa.start_state_forward(cache, &input) else {
            return true;
        };
        for byte in &text.as_bytes()[place..] {
            match self.dfa.next_state(cache, state, *byte) {
                Ok(next) if next.is_dead() => return false,
                Ok(next) => state = next,
                Err(_) => return true,
            }
        }
        true
    }
}

/// The expression without what looks around: it matches all that it matched before, and more.
fn without_looks(hir: &Hir) -> Hir {
    let all = |parts: &[Hir]| parts.iter().map(without_looks).collect();
    match hir.kind() {
        HirKind::Look(_) => Hir::empty(),
        HirKind::Repetition(repetition) => Hir::repetition(Repetition {
            sub: Box::new(without_looks(&repetition.sub)),
            ..repetition.clone()
        }),
        HirKind::Capture(capture) => Hir::capture(Capture {
            sub: Box::new(without_looks(&capture.sub)),
            ..capture.clone()
        }),
        HirKind::Concat(parts) => Hir::concat(all(parts)),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => hir.clone(),
    }
}
