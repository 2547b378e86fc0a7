//! All integration tests in one binary; each module is one part of the promise.

mod faults;
mod http_accounts;
mod http_again;
mod http_face;
mod http_intake;
mod http_jobs;
mod http_operators;
mod http_outage;
mod http_sent_twice;
mod http_slow;
mod http_waiting;
mod hub;
mod identity_keys;
mod identity_routes;
mod model_files;
mod parity;
mod plans;
mod precision;
mod receipts;
mod same_answer;
mod store;
mod store_guards;
mod store_shares;
mod store_time;
mod store_walk;
