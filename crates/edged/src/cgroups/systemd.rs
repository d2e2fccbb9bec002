//! Slices, asked of systemd over its bus by `busctl`, which comes with it.

use std::io;
use std::process::{Command, Output};

use super::values::{Limits, properties};

const MANAGER: [&str; 3] =
    ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];

/// Makes a slice with these limits, or gives them to the one that is there.
pub(super) fn set(slice: &str, limits: &Limits, unified: bool) -> io::Result<()> {
    let started = call(&start(slice, limits, unified))?;
    if started.status.success() {
        return Ok(());
    }
    let changed = call(&change(slice, limits, unified))?;
    if changed.status.success() {
        return Ok(());
    }
    let text = |output: &Output| String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{}; {}", text(&started), text(&changed))))
}

/// Ends a slice; one that is not there is fine.
pub(super) fn stop(slice: &str) -> io::Result<()> {
    call(&["StopUnit".to_owned(), "ss".to_owned(), slice.to_owned(), "replace".to_owned()]).map(drop)
}

fn call(words: &[String]) -> io::Result<Output> {
    Command::new("busctl").args(["--system", "--quiet", "--timeout=10", "call"]).args(MANAGER).args(words).output()
}

fn start(slice: &str, limits: &Limits, unified: bool) -> Vec<String> {
    let fixed = [
        ["Description", "s", "pods of the node agent"],
        ["DefaultDependencies", "b", "false"],
        ["CPUAccounting", "b", "true"],
        ["MemoryAccounting", "b", "true"],
        ["TasksAccounting", "b", "true"],
    ];
    let all: Vec<[String; 3]> =
        fixed.map(|words| words.map(str::to_owned)).into_iter().chain(properties(limits, unified)).collect();
    let mut words = vec!["StartTransientUnit".to_owned(), "ssa(sv)a(sa(sv))".to_owned()];
    words.extend([slice.to_owned(), "replace".to_owned(), all.len().to_string()]);
    words.extend(all.into_iter().flatten());
    words.push("0".to_owned());
    words
}

fn change(slice: &str, limits: &Limits, unified: bool) -> Vec<String> {
    let all = properties(limits, unified);
    let mut words = vec!["SetUnitProperties".to_owned(), "sba(sv)".to_owned()];
    words.extend([slice.to_owned(), "true".to_owned(), all.len().to_string()]);
    words.extend(all.into_iter().flatten());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_calls() {
        let limits = Limits { cpu_shares: 2, ..Default::default() };
        let words = start("kubepods-poda.slice", &limits, true);
        assert_eq!(words[..5], ["StartTransientUnit", "ssa(sv)a(sa(sv))", "kubepods-poda.slice", "replace", "9"]);
        assert_eq!(words.len(), 5 + 9 * 3 + 1);
        let words = change("kubepods-poda.slice", &limits, false);
        assert_eq!(words[..5], ["SetUnitProperties", "sba(sv)", "kubepods-poda.slice", "true", "4"]);
        assert_eq!(words[5..8], ["CPUShares", "t", "2"]);
    }
}
