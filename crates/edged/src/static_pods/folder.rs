//! Files of a folder, and when they change.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Largest manifest (Kubernetes).
const MAX_BYTES: u64 = 10 << 20;
/// Most files that are read.
const MAX_FILES: usize = 1024;

/// The plain files of a folder by name; those whose name begins with a dot are not meant. A folder that is not there has none.
pub(super) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Follows links: tools that deploy files work with them.
        if !hidden && fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file()) && files.len() < MAX_FILES {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The YAML or JSON of a file.
pub(super) fn document(path: &Path) -> Result<serde_json::Value, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if read as u64 > MAX_BYTES {
        return Err(format!("the file has more than {MAX_BYTES} bytes"));
    }
    ::api::document::parse(&text)
}

/// Tells of changes in a folder, as far as the kernel gives a watch.
pub(super) struct FolderWatch {
    inotify: Option<AsyncFd<OwnedFd>>,
    watching: bool,
}

impl FolderWatch {
    /// A watch of nothing; must be made within the async runtime.
    pub fn new() -> Self {
        let made = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(io::Error::from);
        #[allow(
            deprecated,
            reason = "its successor is unsafe for types that may change their descriptor; an OwnedFd does not"
        )]
        let made = made.and_then(AsyncFd::new);
        if let Err(error) = &made {
            tracing::debug!(%error, "no inotify; manifests are looked at from time to time");
        }
        Self { inotify: made.ok(), watching: false }
    }

    /// Watches the folder if it is there; one that was made anew gets a new watch.
    pub fn renew(&mut self, folder: &Path) {
        let wanted = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::ATTRIB;
        let Some(inotify) = &self.inotify else { return };
        self.watching = inotify::add_watch(inotify.get_ref(), folder, wanted).is_ok();
    }

    /// Resolves when something has changed; never where there is no watch.
    pub async fn changed(&self) {
        let Some(inotify) = self.inotify.as_ref().filter(|_| self.watching) else {
            return std::future::pending().await;
        };
        let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
        let mut buffer = [0_u8; 4096];
        // What it says does not matter: the folder is read anew.
        while rustix::io::read(ready.get_inner(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
    }
}
