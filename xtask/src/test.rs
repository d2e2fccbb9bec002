//! `cargo xtask test`: every test, with all that they need.

use anyhow::Result;

use crate::packages;
use crate::workspace::{cargo, has_program, run};

/// Installs what real containers need, builds the programs that the end-to-end tests start, and runs all
/// tests. `filter` goes to the test runner.
pub fn all(filter: &[String]) -> Result<()> {
    packages::ensure()?;
    run(cargo().args(["build", "--quiet", "--package", "cloudcore", "--package", "edgecore", "--package", "keadm"]))?;
    if has_program("cargo-nextest") {
        run(cargo().args(["nextest", "run", "--workspace", "--no-fail-fast"]).args(filter))
    } else {
        run(cargo().args(["test", "--workspace", "--no-fail-fast"]).args(filter))
    }
}
