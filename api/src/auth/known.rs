//! What this process has learned of credentials from the database, and may go by as long as nothing has changed.
//!
//! What is known is never trusted by itself: each request asks Redis, in the call that counts it, whether the marks of the account
//! and the project are still those under which it was learned (`limits/shared.rs`). Whoever takes access away deletes the mark after
//! the commit and before the answer, so that what is revoked is out with the next request, at every process. The marks are read
//! before the database is, so that what is kept is never older than they say.
//!
//! Where no mark is deleted (a crash right after the commit, Redis away for the process that revokes, somebody at the database's own
//! console) the database tells by itself: what it names is forgotten with the commit. And all is forgotten after [`LIFE`].
//! While Redis is away every request asks the database.
//!
//! Must never hold a credential itself, and never what no look into the database has found.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claimcheck_common::domain::{ProjectId, Role, UserId};
use claimcheck_common::store::audit::Origin;
use claimcheck_common::store::sessions::Place;
use uuid::Uuid;

use crate::extract::caller::{Caller, Credential};
use crate::limits::Marks;
use crate::middleware::RequestNotes;

/// How long something is known.
const LIFE: Duration = Duration::from_secs(30);
/// Credentials that are known; beyond them first those whose time is over are forgotten, then all.
const MOST: usize = 1 << 14;

/// A credential by its digest, and the project that was named with it.
pub(super) type Shown = ([u8; 32], Option<ProjectId>);

/// Whom a credential stands for, and how far.
#[derive(Debug, Clone)]
pub(super) struct Who {
    pub(super) user_id: UserId,
    pub(super) place: Place,
    pub(super) is_in_first_project: bool,
    pub(super) is_at_home: bool,
    pub(super) role: Role,
    pub(super) credential: Credential,
    /// The session or the key.
    pub(super) credential_id: Uuid,
    /// How much longer the credential is good.
    pub(super) left: Duration,
    /// Which keys were good when its signature was (`TokenIssuer::generation`).
    pub(super) keys: u64,
}

impl Who {
    /// The account and the project, whose marks tell whether anything has changed.
    pub(super) const fn whose(&self) -> [Uuid; 2] {
        [self.user_id.uuid(), self.place.project_id.uuid()]
    }

    /// Them as the caller of a request.
    pub(super) fn caller(&self) -> Caller {
        Caller {
            user_id: self.user_id,
            tenant_id: self.place.tenant_id,
            project_id: self.place.project_id,
            is_in_first_project: self.is_in_first_project,
            is_at_home: self.is_at_home,
            role: self.role,
            credential: self.credential.clone(),
            origin: Origin::default(),
            notes: RequestNotes::default(),
        }
    }
}

/// What is known of a credential.
#[derive(Debug, Clone)]
pub(super) enum Knowledge {
    /// Whose marks to read before the next look into the database.
    Whose([Uuid; 2]),
    /// Everything, under these marks.
    Who(Arc<Who>, Marks),
}

#[derive(Debug)]
struct Entry {
    knowledge: Knowledge,
    rests_on: [Uuid; 3],
    until: Instant,
}

/// How much had been heard of changes at a moment; see [`Known::moment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    at: Instant,
    heard: u64,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Shown, Entry>,
    heard: u64,
}

/// The credentials that are known. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<Mutex<Table>>);

impl Known {
    pub(super) fn find(&self, shown: &Shown) -> Option<Knowledge> {
        let table = self.lock();
        let entry = table.entries.get(shown)?;
        (Instant::now() < entry.until).then(|| entry.knowledge.clone())
    }

    /// To be taken before the database is read.
    pub(super) fn moment(&self) -> Moment {
        Moment {
            at: Instant::now(),
            heard: self.lock().heard,
        }
    }

    /// Keeps what was read since `moment`, under the marks that its account and project had before. At the first time nobody knew
    /// whose marks to read, so that alone is kept; and nothing is if anything has changed meanwhile.
    pub(super) fn keep(&self, shown: Shown, who: &Arc<Who>, marks: Option<Marks>, moment: Moment) {
        let knowledge = match marks {
            Some(marks) => Knowledge::Who(who.clone(), marks),
            None => Knowledge::Whose(who.whose()),
        };
        let [user, project] = who.whose();
        let entry = Entry {
            knowledge,
            rests_on: [user, project, who.credential_id],
            until: moment.at + LIFE.min(who.left),
        };
        let mut table = self.lock();
        if table.heard != moment.heard {
            return;
        }
        if table.entries.len() >= MOST {
            let now = Instant::now();
            table.entries.retain(|_, entry| now < entry.until);
        }
        if table.entries.len() >= MOST {
            table.entries.clear();
        }
        table.entries.insert(shown, entry);
    }

    /// Forgets what rests on an account, a project, a session or a key; `None`: all.
    pub(super) fn forget(&self, whose: Option<Uuid>) {
        let mut table = self.lock();
        table.heard += 1;
        match whose {
            Some(id) => table.entries.retain(|_, entry| !entry.rests_on.contains(&id)),
            None => table.entries.clear(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claimcheck_common::domain::{SessionId, TenantId};

    fn somebody(left: Duration) -> Arc<Who> {
        let session = SessionId::new();
        Arc::new(Who {
            user_id: UserId::new(),
            place: Place {
                tenant_id: TenantId::new(),
                project_id: ProjectId::new(),
            },
            is_in_first_project: true,
            is_at_home: true,
            role: Role::User,
            credential: Credential::Token(session),
            credential_id: session.uuid(),
            left,
            keys: 0,
        })
    }

    fn shown(number: usize) -> Shown {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        (digest, None)
    }

    const MARKS: Option<Marks> = Some([1, 2]);

    #[test]
    fn what_was_read_without_marks_is_only_whose_it_is() {
        let (known, who) = (Known::default(), somebody(LIFE));
        known.keep(shown(1), &who, None, known.moment());
        assert!(matches!(known.find(&shown(1)), Some(Knowledge::Whose(whose)) if whose == who.whose()));
        known.keep(shown(1), &who, MARKS, known.moment());
        assert!(matches!(known.find(&shown(1)), Some(Knowledge::Who(_, [1, 2]))));
        assert!(known.find(&shown(2)).is_none());
    }

    #[test]
    fn a_change_of_anything_that_it_rests_on_ends_it_and_a_change_of_another_does_not() {
        let known = Known::default();
        let who = somebody(LIFE);
        let [user, project] = who.whose();
        for id in [Some(user), Some(project), Some(who.credential_id), None] {
            known.keep(shown(1), &who, MARKS, known.moment());
            known.forget(Some(Uuid::now_v7()));
            assert!(known.find(&shown(1)).is_some());
            known.forget(id);
            assert!(known.find(&shown(1)).is_none(), "{id:?}");
        }
    }

    #[test]
    fn what_was_read_before_a_change_and_comes_after_it_is_not_kept() {
        let (known, who) = (Known::default(), somebody(LIFE));
        let before = known.moment();
        known.forget(Some(who.user_id.uuid()));
        known.keep(shown(1), &who, MARKS, before);
        assert!(known.find(&shown(1)).is_none());
    }

    #[test]
    fn nothing_is_known_for_longer_than_the_credential_is_good_and_of_no_more_than_so_many() {
        let known = Known::default();
        known.keep(shown(0), &somebody(Duration::ZERO), MARKS, known.moment());
        assert!(known.find(&shown(0)).is_none());
        let who = somebody(LIFE);
        for number in 0..MOST + 10 {
            known.keep(shown(number), &who, MARKS, known.moment());
        }
        assert!(known.lock().entries.len() <= MOST);
        assert!(known.find(&shown(MOST + 9)).is_some());
    }
}
