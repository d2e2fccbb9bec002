//! Who has which devices, in a file that outlives the agent. One that cannot be read is ignored with an error, as the kubelet
//! does: pods that run go on, and new ones get devices that seem to be free.

use std::path::Path;

use link::files::{FileError, read_bounded, write_private};

use super::state::{Document, State};

/// The file beside the sockets (name as the kubelet's, content our own).
const FILE: &str = "kubelet_internal_checkpoint";
/// Longest file that is read.
const MAX_BYTES: u64 = 64 << 20;

pub(super) fn read(dir: &Path) -> State {
    let path = dir.join(FILE);
    if !path.exists() {
        return State::default();
    }
    let text = read_bounded(&path, MAX_BYTES).map_err(|error| error.to_string());
    let document = text.and_then(|text| serde_json::from_slice::<Document>(&text).map_err(|error| error.to_string()));
    document.map(State::of).unwrap_or_else(|error| {
        tracing::error!(file = %path.display(), error, "who has which devices cannot be read; devices of running pods may be given twice: restart pods that use devices");
        State::default()
    })
}

/// Replaces the file; durable when it returns.
pub(super) fn write(dir: &Path, document: &Document) -> Result<(), FileError> {
    // Texts and lists alone: they can always be written.
    write_private(&dir.join(FILE), &serde_json::to_vec(document).unwrap_or_default())
}
