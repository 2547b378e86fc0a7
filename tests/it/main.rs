//! All integration tests in one binary; each module is one part of the promise.

mod store;
