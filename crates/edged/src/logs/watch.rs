//! Tells followers that a folder of logs has changed: one inotify instance for all of them, nothing to poll.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between looks when the kernel gives no watch.
const POLL: Duration = Duration::from_secs(1);
/// Events read in one go: each has 16 bytes and a name.
const BUFFER: usize = 4 << 10;

/// How often something has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Anything.
    pub all: u64,
    /// A file that was written to has been closed.
    pub closed: u64,
}

/// Watches folders for their followers.
#[derive(Debug, Default)]
pub struct LogWatch {
    inotify: Option<AsyncFd<OwnedFd>>,
    folders: Mutex<HashMap<i32, Folder>>,
}

#[derive(Debug)]
struct Folder {
    followers: usize,
    changes: watch::Sender<Changes>,
}

/// A follower's view of a folder.
#[derive(Debug)]
pub struct FolderWatch {
    watch: Arc<LogWatch>,
    descriptor: Option<i32>,
    changes: watch::Receiver<Changes>,
}

impl LogWatch {
    /// A watch; must be made within the async runtime. Where the kernel has no inotify left, followers look every second.
    pub fn new() -> Arc<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(io::Error::from);
        #[allow(
            deprecated,
            reason = "its successor is unsafe for types that may change their descriptor; an OwnedFd does not"
        )]
        let inotify = inotify.and_then(AsyncFd::new);
        if let Err(error) = &inotify {
            tracing::warn!(%error, "no inotify; followed logs are looked at every second (fs.inotify.max_user_instances)");
        }
        Arc::new(Self { inotify: inotify.ok(), folders: Mutex::default() })
    }

    /// Hands on what the kernel tells, until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(inotify) = &self.inotify else { return stop.cancelled().await };
        loop {
            let ready = tokio::select! {
                () = stop.cancelled() => return,
                ready = inotify.readable() => ready,
            };
            let Ok(mut ready) = ready else { return stop.cancelled().await };
            self.read(ready.get_inner());
            ready.clear_ready();
        }
    }

    /// Watches a folder.
    pub fn folder(self: &Arc<Self>, path: &Path) -> FolderWatch {
        let flags = WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        // Taken before the watch is added: a folder that another follower gives up at this moment stays watched.
        let mut folders = self.folders();
        let added = self.inotify.as_ref().map(|inotify| inotify::add_watch(inotify, path, flags));
        if let Some(Err(error)) = &added {
            tracing::debug!(path = %path.display(), %error, "folder not watched; it is looked at every second");
        }
        let descriptor = added.and_then(Result::ok);
        let changes = match descriptor {
            Some(descriptor) => {
                let folder = folders
                    .entry(descriptor)
                    .or_insert_with(|| Folder { followers: 0, changes: watch::Sender::new(Changes::default()) });
                folder.followers += 1;
                folder.changes.subscribe()
            }
            None => watch::Sender::new(Changes::default()).subscribe(),
        };
        FolderWatch { watch: Arc::clone(self), descriptor, changes }
    }

    fn read(&self, inotify: &OwnedFd) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        let mut folders = self.folders();
        while let Ok(event) = events.next() {
            let flags = event.events();
            let compressing = event.file_name().is_some_and(|name| {
                let name = name.to_bytes();
                name.ends_with(b".tmp") || name.ends_with(b".gz")
            });
            let closed = u64::from(flags.contains(ReadFlags::CLOSE_WRITE) && !compressing);
            let tell = |folder: &Folder| {
                folder.changes.send_modify(|changes| {
                    changes.all += 1;
                    changes.closed += closed;
                });
            };
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                folders.values().for_each(tell);
            } else if flags.contains(ReadFlags::IGNORED) {
                // The folder is gone, and its number may be used again.
                folders.remove(&event.wd());
            } else if let Some(folder) = folders.get(&event.wd()) {
                tell(folder);
            }
        }
    }

    fn folders(&self) -> MutexGuard<'_, HashMap<i32, Folder>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FolderWatch {
    /// What has changed so far; [`FolderWatch::changed`] waits for more than this.
    pub fn seen(&mut self) -> Changes {
        *self.changes.borrow_and_update()
    }

    /// Waits for a change.
    pub async fn changed(&mut self) {
        if self.descriptor.is_none() || self.changes.changed().await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        let mut folders = self.watch.folders();
        let Some(descriptor) = self.descriptor else { return };
        // Another folder may have got the number meanwhile.
        let Some(folder) =
            folders.get_mut(&descriptor).filter(|folder| self.changes.same_channel(&folder.changes.subscribe()))
        else {
            return;
        };
        folder.followers -= 1;
        if folder.followers == 0 {
            folders.remove(&descriptor);
            if let Some(inotify) = &self.watch.inotify {
                // A folder that is gone is not watched any more.
                let _ = inotify::remove_watch(inotify, descriptor);
            }
        }
    }
}
