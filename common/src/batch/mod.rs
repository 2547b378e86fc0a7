//! The lines of a batch, as OpenAI writes them: what comes in and what goes out.
//!
//! Knows neither files nor tables. The API and the worker read and write lines by this one code.

pub mod input;
pub mod output;

/// The endpoint that lines may be for.
pub const ENDPOINT: &str = "/v1/completions";
/// Most lines of a batch.
pub const LINES_MAX: u32 = 50_000;
/// Most bytes of a line: as much as a submit's body may have.
pub const LINE_BYTES_MAX: usize = 1 << 20;
