//! `cargo xtask test`: every test, with all that they need; `cargo xtask e2e`: those against real containers alone.

use anyhow::Result;

use crate::packages;
use crate::workspace::{cargo, has_program, run, target_dir};

/// Tests that run real programs and containers: packages and what to choose of them.
const END_TO_END: &[&str] = &[
    "--package",
    "edged",
    "--package",
    "testkit",
    "--test",
    "scenarios",
    "--test",
    "crashes",
    "--test",
    "bad_link",
    "--test",
    "stream_soak",
    "--test",
    "stream_limits",
];
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

/// Runs the tests against real programs and containers; with `slow` instead those that take over a minute, which
/// `cargo xtask test` leaves out.
pub fn end_to_end(slow: bool, filter: &[String]) -> Result<()> {
    prepare()?;
    let chosen = |filter: &[String], harness: &[&str]| {
        let mut command = cargo();
        match has_program("cargo-nextest") {
            true => command.args(["nextest", "run"]),
            false => command.arg("test"),
        };
        command.arg("--no-fail-fast").args(END_TO_END).args(filter).arg("--").args(harness);
        command
    };
    if !slow {
        return run(&mut chosen(filter, &[]));
    }
    if !filter.is_empty() {
        return run(&mut chosen(filter, &["--ignored"]));
    }
    let mut together = chosen(&[], &["--ignored", "--skip", ALONE]);
    let together = run(together.envs(["NEXTEST_TEST_THREADS", "RUST_TEST_THREADS"].map(|name| (name, SLOW_THREADS))));
    together.and(run(&mut chosen(&[ALONE.to_owned()], &["--ignored"])))
}

fn prepare() -> Result<()> {
    packages::ensure_for_tests()?;
    packages::fetch_old_kubectl(&target_dir().join("debian-kubectl"))?;
    let mut build = cargo();
    build.args(["build", "--quiet"]);
    build.args(["cloudcore", "edgecore", "keadm", "mapper"].iter().flat_map(|program| ["--package", program]));
    run(&mut build)
}
