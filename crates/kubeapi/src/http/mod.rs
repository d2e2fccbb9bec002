//! The API over HTTP. `target` reads paths and queries, `answer` writes JSON, tables and errors, `stream` writes watches,
//! `handle` joins them.

mod answer;
mod handle;
mod stream;
pub(crate) mod target;

pub(crate) use handle::MAX_BODY;
pub use handle::{Identity, Server};
