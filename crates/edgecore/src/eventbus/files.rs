//! Files of the broker inside edgecore, which may be replaced while it runs.

use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

/// How often is looked whether a file was replaced.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 10_000 });

/// Files that are read together, as they were when that was done last.
pub(super) struct Files {
    paths: Vec<PathBuf>,
    read: Vec<Option<State>>,
}

/// What changes when a file is replaced, written to, or given other rights.
#[derive(PartialEq, Eq)]
struct State {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Files {
    /// To be called before they are read for the first time.
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let read = states(&paths);
        Self { paths, read }
    }

    /// Has them read again when one of them is another. What cannot be used may be half written: it is told once, and tried again.
    pub(super) async fn follow<E: Error>(mut self, what: &str, mut take: impl FnMut() -> Result<(), E>) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = states(&self.paths);
            if now == self.read {
                continue;
            }
            match take() {
                Ok(()) => {
                    self.read = now;
                    told.clear();
                    info!(what, "files of the MQTT broker were replaced, and count from now on");
                }
                Err(error) => {
                    let (error, cause) = (error.to_string(), causes(&error));
                    if error != told {
                        warn!(
                            what,
                            error,
                            cause,
                            "replaced files of the MQTT broker cannot be used, it goes on with what it has; tried again"
                        );
                        told = error;
                    }
                }
            }
        }
    }
}

/// Why an error is one, in one line.
pub(super) fn causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |error: &&dyn Error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn states(paths: &[PathBuf]) -> Vec<Option<State>> {
    let one = |path: &PathBuf| {
        let of = std::fs::metadata(Path::new(path)).ok()?;
        Some(State { inode: of.ino(), bytes: of.len(), changed: (of.ctime(), of.ctime_nsec()) })
    };
    paths.iter().map(one).collect()
}
