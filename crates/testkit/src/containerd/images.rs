//! An image archive made of the machine's busybox, in the layout of `docker save`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{BUSYBOX_IMAGE, PAUSE_IMAGE};

const BUSYBOX: &str = "/bin/busybox";
/// About as long as a 32-bit counter of seconds lasts.
const FOREVER: &str = "2147483647";

/// Writes an archive with [`BUSYBOX_IMAGE`] and [`PAUSE_IMAGE`].
pub(super) fn write_archive(path: &Path) -> Result<()> {
    let layer = layer(None)?;
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
    let busybox = config(&json!({"Env": env, "Cmd": ["sh"]}), &diff_id);
    let pause = config(&json!({"Env": env, "Entrypoint": ["/bin/sleep", FOREVER]}), &diff_id);
    let manifest = json!([
        {"Config": "busybox.json", "RepoTags": [BUSYBOX_IMAGE], "Layers": ["layer.tar"]},
        {"Config": "pause.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]},
    ]);

    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut archive = Builder::new(file);
    add_file(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    add_file(&mut archive, "busybox.json", busybox.as_bytes(), 0o644)?;
    add_file(&mut archive, "pause.json", pause.as_bytes(), 0o644)?;
    add_file(&mut archive, "layer.tar", &layer, 0o644)?;
    archive.into_inner()?.sync_all()?;
    Ok(())
}

/// The configuration of an image with one layer.
pub(crate) fn config(command: &serde_json::Value, diff_id: &str) -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": command,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "busybox of this machine"}],
    })
    .to_string()
}

/// The root file system: busybox, a link for each of its commands, and the few files that programs expect. A mark makes it
/// differ from all others.
pub(crate) fn layer(mark: Option<&str>) -> Result<Vec<u8>> {
    let busybox = std::fs::read(BUSYBOX).with_context(|| format!("{BUSYBOX}: install the package busybox-static"))?;
    // A dynamic program names its loader, which the image does not hold.
    if [&b"/lib64/ld-linux"[..], b"/lib/ld-"].iter().any(|loader| contains(&busybox, loader)) {
        bail!("{BUSYBOX} is not static; install the package busybox-static");
    }
    let commands = Command::new(BUSYBOX).arg("--list").output().with_context(|| BUSYBOX.to_owned())?;
    let mut layer = Builder::new(Vec::new());
    for (directory, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("var", 0o755),
    ] {
        add_entry(&mut layer, EntryType::Directory, &format!("{directory}/"), mode)?;
    }
    add_file(&mut layer, "bin/busybox", &busybox, 0o755)?;
    for command in String::from_utf8_lossy(&commands.stdout).lines().filter(|name| *name != "busybox") {
        let mut header = header(EntryType::Symlink, 0o777);
        layer.append_link(&mut header, format!("bin/{command}"), "busybox")?;
    }
    add_file(
        &mut layer,
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        0o644,
    )?;
    add_file(&mut layer, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    if let Some(mark) = mark {
        add_file(&mut layer, "etc/mark", mark.as_bytes(), 0o644)?;
    }
    Ok(layer.into_inner()?)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn add_entry<W: Write>(archive: &mut Builder<W>, kind: EntryType, path: &str, mode: u32) -> Result<()> {
    let mut header = header(kind, mode);
    Ok(archive.append_data(&mut header, path, std::io::empty())?)
}

pub(super) fn add_file<W: Write>(archive: &mut Builder<W>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, mode);
    header.set_size(u64::try_from(bytes.len())?);
    Ok(archive.append_data(&mut header, path, bytes)?)
}
