//! Pages of lists: `limit` and `after` as every list takes them, and whether there is a next page.

use std::str::FromStr;

use crate::error::ApiError;
use crate::extract::Query;
use crate::validate::number::from_text;

/// Most on a page, where a list has no limit of its own.
pub(super) const LIMIT_MAX: u32 = 100;
const LIMIT_DEFAULT: u32 = 20;

/// How many a page may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit(u32);

impl Limit {
    /// What `limit` asks for.
    pub(super) fn of(query: &Query, most: u32) -> Result<Self, ApiError> {
        let asked = query.get("limit", |text| from_text(text, 1..=most))?;
        Ok(Self(asked.unwrap_or(LIMIT_DEFAULT)))
    }

    /// How many to look for: one more than asked for tells whether there is a next page.
    pub(super) const fn look_for(self) -> u32 {
        self.0 + 1
    }

    /// Leaves what fits on the page; answers whether there is a next one.
    pub(super) fn cut<T>(self, found: &mut Vec<T>) -> bool {
        let has_more = found.len() > self.0 as usize;
        found.truncate(self.0 as usize);
        has_more
    }
}

/// The last of the page before, by what `after` says; `of` is whose id it has to be.
pub(super) fn after<I: FromStr>(query: &Query, of: &str) -> Result<Option<I>, ApiError> {
    query.get("after", |text| {
        text.parse()
            .map_err(|_| format!("must be {of}'s id, as `last_id` of the page before"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_what_was_asked_for_and_tells_of_more() {
        let limit = Limit(2);
        for (found, has_more) in [(0, false), (2, false), (3, true)] {
            let mut found: Vec<u32> = (0..found).collect();
            assert_eq!(limit.cut(&mut found), has_more);
            assert!(found.len() <= 2);
        }
        assert_eq!(limit.look_for(), 3);
    }
}
