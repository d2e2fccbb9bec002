//! `cargo xtask test`: every test, with all that they need; `cargo xtask e2e`: those against real containers alone.

use anyhow::Result;

use crate::packages;
use crate::workspace::{cargo, has_program, run, target_dir};

/// Tests that run real programs and containers: packages and what to choose of them.
const END_TO_END: &[&str] =
    &["--package", "edged", "--package", "testkit", "--test", "scenarios", "--test", "crashes", "--test", "bad_link"];
/// A scenario that needs the machine's memory for itself.
const ALONE: &str = "t73_";
/// Slow scenarios wait most of the time: more of them than processors run side by side.
const SLOW_THREADS: &str = "6";

/// Installs what real containers need, builds the programs that the end-to-end tests start, and runs all
/// tests. `filter` goes to the test runner.
pub fn all(filter: &[String]) -> Result<()> {
    prepare()?;
    let mut command = cargo();
    match has_program("cargo-nextest") {
        true => command.args(["nextest", "run", "--workspace", "--no-fail-fast"]),
        false => command.args(["test", "--workspace", "--no-fail-fast"]),
    };
    run(command.args(filter))
}

/// Runs the scenarios of the node agent on real containers; with `slow` also those that take over a minute, which
/// `cargo xtask test` leaves out.
pub fn end_to_end(slow: bool, filter: &[String]) -> Result<()> {
    prepare()?;
    let mut command = cargo();
    if has_program("cargo-nextest") {
        command.args(["nextest", "run", "--no-fail-fast"]).args(END_TO_END);
        if !slow {
            return run(command.args(filter));
        }
        command.args(["--run-ignored", "all", "--test-threads", SLOW_THREADS]);
        if !filter.is_empty() {
            return run(command.args(filter));
        }
        let side_by_side = run(command.args(["-E", &format!("not test({ALONE})")]));
        let mut alone = cargo();
        alone.args(["nextest", "run", "--no-fail-fast"]).args(END_TO_END).args(["--run-ignored", "all"]);
        return side_by_side.and(run(alone.args(["-E", &format!("test({ALONE})")])));
    }
    command.args(["test", "--no-fail-fast"]).args(END_TO_END).args(filter).arg("--");
    if slow {
        command.args(["--include-ignored", "--test-threads", SLOW_THREADS]);
    }
    run(&mut command)
}

fn prepare() -> Result<()> {
    packages::ensure_for_tests()?;
    packages::fetch_old_kubectl(&target_dir().join("debian-kubectl"))?;
    run(cargo().args(["build", "--quiet", "--package", "cloudcore", "--package", "edgecore", "--package", "keadm"]))
}
