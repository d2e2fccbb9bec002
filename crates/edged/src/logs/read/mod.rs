//! What a container has written, from the files of its log: the last lines, those of a time, and those to come.
//!
//! `line` knows the format, `parts` the files, `reader` puts both together, one small step at a time on a thread for blocking
//! work, and `follow` makes a stream of it that sleeps until the kernel or the runtime tells of a change. Memory: a block per
//! step; nothing while there is nothing to read.

mod follow;
mod line;
mod parts;
mod reader;

use jiff::Timestamp;

pub use follow::{Follow, LogStream, open};

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    /// The last so many lines, from rotated files too.
    pub tail: Option<u64>,
    /// Lines from this time on.
    pub since: Option<Timestamp>,
    /// Each line with its time.
    pub timestamps: bool,
    /// No more than so many bytes.
    pub limit_bytes: Option<u64>,
    /// Go on with what is written later, until the container ends.
    pub follow: bool,
}
