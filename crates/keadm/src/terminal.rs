//! What the user reads: results on stdout, warnings and errors on stderr, and a question.

use std::io::{BufRead, Write};

/// A result. A reader that went away is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A warning or an error.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Asks for a yes; everything else, also the end of the input, is a no.
pub fn confirm(question: &str) -> bool {
    {
        let mut out = std::io::stdout().lock();
        let _ = write!(out, "{question} [y/N]: ");
        let _ = out.flush();
    }
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}
