//! Joins two byte streams until one ends or both are silent for too long.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep};

/// Bytes copied in one go, for each direction.
pub const BUFFER: usize = 16 << 10;

/// How long a side may take what was sent to it before its end.
const FAREWELL: Duration = Duration::from_secs(5);

/// When something was last sent or received.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Activity {
    /// Something moves.
    pub fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Relaxed);
    }

    /// Resolves when nothing has moved for so long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let quiet = self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Relaxed)));
            if quiet >= limit {
                return;
            }
            sleep(limit - quiet).await;
        }
    }
}

/// Copies in both directions. When either side ends the other is closed: a client that is gone ends what it has opened, and
/// everything that the runtime has sent before its end is delivered.
pub async fn splice<A, B>(client: A, runtime: B, idle: Duration)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let activity = Activity::default();
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let ended = tokio::select! {
        ended = copy(&mut from_client, &mut to_runtime, &activity) => ended,
        ended = copy(&mut from_runtime, &mut to_client, &activity) => ended,
        () = activity.idle(idle) => {
            tracing::info!(seconds = idle.as_secs(), "a stream was closed: nothing moved for too long");
            Ok(())
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a stream broke");
    }
    // Either may be gone already, or not read: neither keeps the other open.
    let closing = async { tokio::join!(to_runtime.shutdown(), to_client.shutdown()) };
    let _ = tokio::time::timeout(FAREWELL, closing).await;
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        activity.touch();
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        activity.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_bytes_keep_it() {
        let (mut client, a) = tokio::io::duplex(64);
        let (mut runtime, b) = tokio::io::duplex(64);
        let begun = Instant::now();
        let talk = async {
            for _ in 0..5 {
                sleep(Duration::from_secs(8)).await;
                client.write_all(b"x").await.unwrap();
                assert_eq!(runtime.read_u8().await.unwrap(), b'x');
            }
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        };
        tokio::join!(splice(a, b, Duration::from_secs(10)), talk);
        assert_eq!(begun.elapsed().as_secs(), 50);
    }

    #[tokio::test]
    async fn what_the_runtime_sent_last_arrives() {
        let (mut client, a) = tokio::io::duplex(1 << 20);
        let (mut runtime, b) = tokio::io::duplex(1 << 20);
        runtime.write_all(&[7; 100_000]).await.unwrap();
        drop(runtime);
        splice(a, b, Duration::MAX).await;
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 100_000);
    }
}
