//! Images that are only there to take room, with busybox so that they run.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::Builder;

use super::images::{add_file, layer};

/// Writes an archive with one image of this name: busybox, and a file of so many bytes that no other name has.
pub(super) fn write_archive(path: &Path, name: &str, bytes: usize) -> Result<()> {
    let base = layer(None)?;
    let mut top = Builder::new(Vec::new());
    add_file(&mut top, "filler", &filler(name, bytes), 0o644)?;
    let top = top.into_inner()?;
    let digest = |layer: &[u8]| format!("sha256:{}", hex::encode(Sha256::digest(layer)));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&base), digest(&top)]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["base.tar", "top.tar"]}]);
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut archive = Builder::new(file);
    add_file(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    add_file(&mut archive, "config.json", config.to_string().as_bytes(), 0o644)?;
    add_file(&mut archive, "base.tar", &base, 0o644)?;
    add_file(&mut archive, "top.tar", &top, 0o644)?;
    archive.into_inner()?.sync_all()?;
    Ok(())
}

/// Bytes that do not compress and that only this name has.
fn filler(name: &str, bytes: usize) -> Vec<u8> {
    // Knuth's generator is random enough, and quick without optimization.
    let mut state = name.bytes().fold(1_u64, |state, byte| state.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}
