//! Memory of results that nobody needs any more, for the results of the next kernels.
//!
//! A step makes what the last one made, and asking the device's thread for memory costs about as much as starting a small kernel.
//! A device does in order what it is told by one thread, so what is written next is written after all that still reads it. One model's
//! steps may come from one thread after the other, if the last step of the one was read back before the first of the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cubecl::prelude::*;
use cubecl::server::Handle;

/// What is there, by its size in bytes: powers of two, so that steps of all sizes leave few of them.
#[derive(Default)]
pub(super) struct Spare(Mutex<HashMap<usize, Vec<Handle>>>);

/// Memory of a result, and where it goes when the last who has it lets go.
pub(super) struct Lent {
    pub(super) handle: Handle,
    back: Option<(usize, Arc<Spare>)>,
}

impl Spare {
    /// At least so many bytes, whatever stands there.
    pub(super) fn lend<R: Runtime>(self: &Arc<Self>, client: &ComputeClient<R>, bytes: usize) -> Lent {
        let bytes = bytes.next_power_of_two();
        let there = self.shelf().get_mut(&bytes).and_then(Vec::pop);
        Lent {
            handle: there.unwrap_or_else(|| client.empty(bytes)),
            back: Some((bytes, Arc::clone(self))),
        }
    }

    pub(super) fn clear(&self) {
        self.shelf().clear();
    }

    fn shelf(&self) -> MutexGuard<'_, HashMap<usize, Vec<Handle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Handle> for Lent {
    /// Memory that stays where it is.
    fn from(handle: Handle) -> Self {
        Self { handle, back: None }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some((bytes, spare)) = self.back.take() {
            spare.shelf().entry(bytes).or_default().push(self.handle.clone());
        }
    }
}
