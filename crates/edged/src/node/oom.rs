//! Tells when the machine itself ran out of memory: the kernel writes it to its log, `/dev/kmsg`.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use podlife::system_oom::{Victim, victim};
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use crate::events::{EventType, Recorder};

const KERNEL_LOG: &str = "/dev/kmsg";
/// The kernel gives one record at a time, and none longer than this.
const RECORD: usize = 8 << 10;
/// After the records that were there: however much the kernel writes, it is read once in so long.
const PAUSE: Duration = Duration::from_secs(1);

/// Records the event `SystemOOM` for each process that the kernel ends for want of memory, until cancelled. Where there is no
/// kernel log, or it may not be read, it only waits.
pub async fn watch(recorder: Recorder, stop: CancellationToken) {
    let work = async {
        match open(Path::new(KERNEL_LOG)) {
            Ok(log) => {
                let tell = |victim: Victim| recorder.node(EventType::Warning, "SystemOOM", victim.message());
                if let Err(error) = follow(log, tell).await {
                    tracing::warn!(%error, "the kernel's log cannot be read any more: no SystemOOM events");
                }
            }
            Err(error) => tracing::debug!(%error, "no kernel log: no SystemOOM events"),
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// The log from now on.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

/// Reads records as they come; returns only with an error.
async fn follow(log: File, tell: impl Fn(Victim)) -> io::Result<()> {
    #[allow(deprecated, reason = "its successor is unsafe for types that may change their descriptor; a File does not")]
    let log = AsyncFd::new(log)?;
    let mut record = vec![0; RECORD];
    loop {
        let mut ready = log.readable().await?;
        loop {
            match log.get_ref().read(&mut record) {
                Ok(length) => {
                    if let Some(victim) = victim(&String::from_utf8_lossy(&record[..length])) {
                        tracing::warn!(process = victim.process, pid = victim.pid, "the machine ran out of memory");
                        tell(victim);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Records were overwritten before they were read: the next read goes on behind them.
                Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        ready.clear_ready();
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn each_victim_is_told_as_it_comes() {
        // Like the kernel's log, it gives a record at a time.
        let (kernel, log) = UnixDatagram::pair().unwrap();
        log.set_nonblocking(true).unwrap();
        let (sender, mut told) = mpsc::channel(2);
        let following = follow(File::from(OwnedFd::from(log)), |victim| sender.try_send(victim.pid).unwrap());
        let test = async {
            kernel.send(b"6,1,1,-;eth0: link up").unwrap();
            kernel.send(b"3,2,1,-;Out of memory: Killed process 7 (hog) total-vm:1kB").unwrap();
            assert_eq!(told.recv().await, Some(7));
            kernel.send(b"3,3,1,-;\xff\xfe").unwrap();
            kernel.send(b"3,4,1,-;Out of memory: Killed process 8 (hog) total-vm:1kB").unwrap();
            assert_eq!(told.recv().await, Some(8));
        };
        tokio::select! {
            ended = following => panic!("{ended:?}"),
            () = test => {}
        }
    }

    #[test]
    fn a_log_that_is_not_there_is_an_error_to_live_with() {
        assert_eq!(open(Path::new("/none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
