//! What the models of a process may take of its memory together: who rests is unloaded for who works.
//!
//! Owns the limit and the turns. Whoever wants to work and is not in memory waits in line; the first of the line has models
//! unloaded that rest, the least recently used first, as soon as that makes room enough. Must never load a model. Next:
//! `unloadable.rs`.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The memory of all models. `T` is what rests in it.
pub struct ModelMemory<T> {
    /// In bytes.
    limit: u64,
    state: Mutex<State<T>>,
    changed: Condvar,
}

/// A model that would never have room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it takes {} MiB with its keys and values, and all models together may take {} MiB: raise \
     CLAIMCHECK_MODEL_MEMORY_MIB, or lower CLAIMCHECK_KV_CACHE_MIB or the dtype",
    bytes.div_ceil(1 << 20),
    limit >> 20
)]
pub struct TooLarge {
    bytes: u64,
    limit: u64,
}

/// What whoever wants to work finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered<T> {
    /// Its model, as it was left.
    Found(T),
    /// Room for its model, which has been unloaded since or was never there.
    Room,
    /// Others have the memory, and know now that they are waited for.
    NotYet,
}

struct State<T> {
    next: u64,
    /// Bytes of models that work or rest.
    used: u64,
    /// The least recently used first.
    resting: Vec<Resting<T>>,
    /// In the order of their coming.
    line: VecDeque<u64>,
}

struct Resting<T> {
    id: u64,
    bytes: u64,
    model: T,
}

/// One model's place in the memory. Dropped, it leaves its room to others.
pub struct Place<T> {
    memory: Arc<ModelMemory<T>>,
    id: u64,
    bytes: u64,
    works: bool,
}

impl<T> ModelMemory<T> {
    /// No more than `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                next: 0,
                used: 0,
                resting: Vec::new(),
                line: VecDeque::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// A place for a model of so many bytes, which is not there yet.
    pub fn place(self: &Arc<Self>, bytes: u64) -> Result<Place<T>, TooLarge> {
        let limit = self.limit;
        if bytes > limit {
            return Err(TooLarge { bytes, limit });
        }
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        drop(state);
        Ok(Place {
            memory: self.clone(),
            id,
            bytes,
            works: false,
        })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// Takes the first of the line in, if there is room or can be made. Answers what it finds, and who has to go for it.
    fn admit(&mut self, limit: u64, bytes: u64) -> Option<(Entered<T>, Vec<Resting<T>>)> {
        let id = *self.line.front()?;
        let (found, unloaded) = if let Some(at) = self.resting.iter().position(|resting| resting.id == id) {
            (Entered::Found(self.resting.remove(at).model), Vec::new())
        } else {
            let unloaded = self.make_room(limit, bytes)?;
            self.used += bytes;
            (Entered::Room, unloaded)
        };
        self.line.pop_front();
        Some((found, unloaded))
    }

    /// Nobody goes unless it is enough.
    fn make_room(&mut self, limit: u64, bytes: u64) -> Option<Vec<Resting<T>>> {
        let (mut used, mut goes) = (self.used, 0);
        while used + bytes > limit {
            used -= self.resting.get(goes)?.bytes;
            goes += 1;
        }
        self.used = used;
        Some(self.resting.drain(..goes).collect())
    }
}

impl<T> Place<T> {
    /// Enters, or waits in line to enter for no longer than `patience`, to be asked again if that was too short. Blocks.
    pub fn enter(&mut self, patience: Duration) -> Entered<T> {
        debug_assert!(!self.works, "who works has entered");
        let mut state = self.memory.state();
        if !state.line.contains(&self.id) {
            state.line.push_back(self.id);
        }
        let first = |state: &State<T>| state.line.front() == Some(&self.id);
        let mut waited = false;
        loop {
            if first(&state)
                && let Some((found, unloaded)) = state.admit(self.memory.limit, self.bytes)
            {
                self.works = true;
                drop(state);
                self.memory.changed.notify_all();
                // Freed before anything is loaded.
                drop(unloaded);
                return found;
            }
            if waited {
                return Entered::NotYet;
            }
            let changed = &self.memory.changed;
            let (after, timeout) = changed
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner);
            (state, waited) = (after, timeout.timed_out());
        }
    }

    /// Leaves the model where it may be unloaded.
    pub fn rest(&mut self, model: T) {
        debug_assert!(self.works, "who rests has worked");
        self.works = false;
        self.memory.state().resting.push(Resting {
            id: self.id,
            bytes: self.bytes,
            model,
        });
        self.memory.changed.notify_all();
    }

    /// Leaves the line: there is no work any more.
    pub fn give_up(&mut self) {
        self.memory.state().line.retain(|id| *id != self.id);
        self.memory.changed.notify_all();
    }

    /// Whether somebody waits in line: whoever works is to come to an end.
    pub fn wanted(&self) -> bool {
        !self.memory.state().line.is_empty()
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        state.line.retain(|id| *id != self.id);
        let at = state.resting.iter().position(|resting| resting.id == self.id);
        let rested = at.map(|at| state.resting.remove(at));
        if self.works || rested.is_some() {
            state.used -= self.bytes;
        }
        drop(state);
        drop(rested);
        self.memory.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    fn memory(limit: u64) -> Arc<ModelMemory<&'static str>> {
        Arc::new(ModelMemory::new(limit))
    }

    #[test]
    fn what_rests_is_found_again_while_nobody_needs_its_room() {
        let memory = memory(10);
        let (mut first, mut second) = (memory.place(5).unwrap(), memory.place(5).unwrap());
        assert_eq!(first.enter(AT_ONCE), Entered::Room);
        first.rest("first");
        assert_eq!(second.enter(AT_ONCE), Entered::Room);
        assert_eq!(first.enter(AT_ONCE), Entered::Found("first"));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_are_needed() {
        let memory = memory(10);
        let mut places = [(); 4].map(|()| memory.place(4).unwrap());
        let [a, b, c, d] = &mut places;
        assert_eq!(a.enter(AT_ONCE), Entered::Room);
        a.rest("a");
        assert_eq!(b.enter(AT_ONCE), Entered::Room);
        b.rest("b");
        assert_eq!(a.enter(AT_ONCE), Entered::Found("a"));
        a.rest("a");
        assert_eq!(c.enter(AT_ONCE), Entered::Room, "in the room of b");
        c.rest("c");
        assert_eq!(a.enter(AT_ONCE), Entered::Found("a"));
        assert_eq!(d.enter(AT_ONCE), Entered::Room, "in the room of c");
        assert_eq!(b.enter(AT_ONCE), Entered::NotYet);
    }

    #[test]
    fn who_works_is_told_that_others_wait_and_those_come_in_turn() {
        let memory = memory(10);
        let mut places = [8, 8, 2].map(|bytes| memory.place(bytes).unwrap());
        let [large, other, small] = &mut places;
        assert_eq!(large.enter(AT_ONCE), Entered::Room);
        assert!(!large.wanted());
        assert_eq!(other.enter(AT_ONCE), Entered::NotYet);
        assert!(large.wanted());
        assert_eq!(small.enter(AT_ONCE), Entered::NotYet, "the line is kept");
        large.rest("large");
        assert_eq!(large.enter(AT_ONCE), Entered::NotYet, "also by who was there");
        assert_eq!(other.enter(AT_ONCE), Entered::Room);
        assert_eq!(small.enter(AT_ONCE), Entered::Room);
        assert!(small.wanted(), "by the one that was unloaded");
    }

    #[test]
    fn who_waits_is_woken_when_another_rests() {
        let memory = memory(1);
        let (mut first, mut second) = (memory.place(1).unwrap(), memory.place(1).unwrap());
        assert_eq!(first.enter(AT_ONCE), Entered::Room);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || second.enter(Duration::MAX));
            while !first.wanted() {
                std::thread::yield_now();
            }
            first.rest("first");
            assert_eq!(waiting.join().unwrap(), Entered::Room);
        });
    }

    #[test]
    fn whoever_leaves_gives_its_room_and_its_turn_to_others() {
        let memory = memory(1);
        let mut places = [(); 4].map(|()| memory.place(1).unwrap());
        let [works, waits, rests, last] = &mut places;
        assert_eq!(works.enter(AT_ONCE), Entered::Room);
        assert_eq!(waits.enter(AT_ONCE), Entered::NotYet);
        let leave = |place: &mut Place<_>| drop(std::mem::replace(place, memory.place(1).unwrap()));
        leave(works);
        leave(waits);
        assert_eq!(rests.enter(AT_ONCE), Entered::Room);
        rests.rest("rests");
        leave(rests);
        assert_eq!(last.enter(AT_ONCE), Entered::Room);
    }

    #[test]
    fn whoever_has_no_work_any_more_holds_up_nobody() {
        let memory = memory(2);
        let mut places = [1, 2, 1].map(|bytes| memory.place(bytes).unwrap());
        let [works, waits, last] = &mut places;
        assert_eq!(works.enter(AT_ONCE), Entered::Room);
        assert_eq!(waits.enter(AT_ONCE), Entered::NotYet);
        assert_eq!(last.enter(AT_ONCE), Entered::NotYet);
        waits.give_up();
        assert_eq!(last.enter(AT_ONCE), Entered::Room);
        assert!(!works.wanted());
    }

    #[test]
    fn a_model_that_would_never_have_room_is_refused() {
        let refused = memory(3 << 20).place((3 << 20) + 1).err().unwrap().to_string();
        assert!(
            refused.contains("takes 4 MiB") && refused.contains("take 3 MiB"),
            "{refused}"
        );
    }
}
