//! `cargo xtask tidy`: formatting, lints, file lengths, forbidden dependencies, stray names.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, has_program, read, root, run, sources};

/// A file longer than this in non-test lines is named as a warning.
const WARN_LINES: usize = 400;
/// A file longer than this in non-test lines fails the check.
const MAX_LINES: usize = 700;
/// Crates that must never enter the build: a second TLS stack or crypto provider.
const FORBIDDEN_CRATES: &[&str] = &["aws-lc-rs", "aws-lc-sys", "openssl-sys", "native-tls", "serde_yaml"];

/// Everything, clippy included.
pub fn all() -> Result<()> {
    quick()?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    if has_program("cargo-deny") {
        run(cargo().args(["deny", "--log-level", "error", "check"]))?;
    } else {
        eprintln!("tidy: cargo-deny is not installed; licences were not checked");
    }
    Ok(())
}

/// What needs no build.
pub fn quick() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    let mut faults = Vec::new();
    for path in sources("rs")? {
        check_source(&path, &mut faults)?;
    }
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).context("Cargo.lock")?;
    for name in FORBIDDEN_CRATES {
        if lock.contains(&format!("name = \"{name}\"\n")) {
            faults.push(format!("Cargo.lock: {name} must not be in the build (`cargo tree -i {name}`)"));
        }
    }
    check_edge_rings(&mut faults)?;
    if !faults.is_empty() {
        bail!("tidy:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

fn check_source(path: &Path, faults: &mut Vec<String>) -> Result<()> {
    let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| shown.clone())?;
    let is_test = shown.contains("/tests/") || shown.ends_with("tests.rs");
    let body = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    if !is_test && body > MAX_LINES {
        faults.push(format!("{shown}: {body} non-test lines, at most {MAX_LINES}; split it by idea"));
    } else if !is_test && body > WARN_LINES {
        eprintln!("tidy: {shown}: {body} non-test lines; aim at 100 to 250");
    }
    for (number, line) in text.lines().enumerate() {
        let open_end = ["TO", "DO"].concat();
        if line.contains(&open_end) && !line.contains('#') {
            faults.push(format!("{shown}:{}: an open end needs an issue's number", number + 1));
        }
    }
    Ok(())
}

/// The edge binary links neither a Kubernetes client nor the control plane.
fn check_edge_rings(faults: &mut Vec<String>) -> Result<()> {
    let tree = read(cargo().args(["tree", "--package", "edgecore", "--edges", "normal", "--prefix", "none"]))?;
    for line in tree.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        if ["kube", "kube-client", "controlplane", "kubeapi", "cloudcore"].contains(&name) {
            faults.push(format!("edgecore depends on {name}: the edge does not link the cloud"));
        }
    }
    Ok(())
}
