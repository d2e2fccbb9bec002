//! What the tools tell. A terminal that is gone must not end a command that has programs to stop: nothing here fails.

use std::fmt::Display;
use std::io::Write;

/// A line on standard output.
pub fn say(text: impl Display) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

/// One line of progress.
pub fn step(text: impl Display) {
    say(format_args!("• {text}"));
}

/// A line on standard error.
pub fn complain(text: impl Display) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}
