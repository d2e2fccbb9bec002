//! A log as a stream that can wait for more.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::LogOptions;
use super::reader::{LogReader, Step};
use crate::logs::watch::{Changes, FolderWatch};

/// How long a file that was replaced may get lines, unless the runtime closes it before.
const SETTLE: Duration = Duration::from_secs(1);
/// After so long without a change the log of a container that has ended is complete.
const QUIET: Duration = Duration::from_millis(100);
/// For a file that is not there for the moment of a rotation.
const OPEN_PAUSES: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(200)];

/// What a container has written, in pieces.
pub type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Tells about the container whose log is followed.
pub trait Follow: Send + 'static {
    /// Resolves when the container has ended.
    fn ended(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

struct Reading<F> {
    reader: Option<LogReader>,
    following: Option<Following<F>>,
}

struct Following<F> {
    folder: FolderWatch,
    container: F,
    has_ended: bool,
    /// Since when the file that is read is not the current one.
    replaced: Option<Instant>,
    /// Changes when the file was begun.
    begun: Changes,
}

/// Opens a log; with `following` the stream goes on until the container has ended.
///
/// # Errors
/// There is no such file, or it cannot be read.
pub async fn open<F: Follow>(
    path: &Path,
    options: LogOptions,
    following: Option<(FolderWatch, F)>,
) -> io::Result<LogStream> {
    let following = following.map(|(mut folder, container)| {
        let begun = folder.seen();
        Following { folder, container, has_ended: false, replaced: None, begun }
    });
    let mut pauses = OPEN_PAUSES.into_iter();
    let reader = loop {
        let (path, options) = (path.to_owned(), options.clone());
        let opened = spawn_blocking(move || LogReader::open(&path, &options)).await.map_err(io::Error::other)?;
        match (opened, pauses.next()) {
            (Err(error), Some(pause)) if error.kind() == io::ErrorKind::NotFound => sleep(pause).await,
            (opened, _) => break opened?,
        }
    };
    let reading = Reading { reader: Some(reader), following };
    Ok(Box::pin(stream::unfold(reading, |mut reading| async {
        let piece = reading.next().await.transpose()?;
        Some((piece, reading))
    })))
}

impl<F: Follow> Reading<F> {
    /// The next piece; `None` at the end, and after an error.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let Some(mut reader) = self.reader.take() else { return Ok(None) };
            let settled = self.following.as_mut().is_some_and(Following::before_step);
            let step = spawn_blocking(move || reader.step(settled).map(|step| (reader, step)));
            let (reader, step) = step.await.map_err(io::Error::other)??;
            match (step, &mut self.following) {
                (Step::Data(bytes), _) => {
                    self.reader = Some(reader);
                    return Ok(Some(bytes));
                }
                (Step::Again, following) => {
                    if let Some(following) = following {
                        following.next_file();
                    }
                }
                (Step::CaughtUp, Some(following)) => {
                    following.replaced = None;
                    if following.is_complete().await {
                        return Ok(None);
                    }
                }
                (Step::Replaced, Some(following)) => following.settle().await,
                _ => return Ok(None),
            }
            self.reader = Some(reader);
        }
    }
}

impl<F: Follow> Following<F> {
    /// Remembers what has changed up to now: what changes during the step is new. True when a replaced file is complete.
    fn before_step(&mut self) -> bool {
        let seen = self.folder.seen();
        self.replaced.is_some_and(|at| seen.closed != self.begun.closed || at.elapsed() >= SETTLE || self.has_ended)
    }

    fn next_file(&mut self) {
        if self.replaced.take().is_some() {
            self.begun = self.folder.seen();
        }
    }

    /// Waits for more to read; true when there will be no more.
    async fn is_complete(&mut self) -> bool {
        if self.has_ended {
            // The runtime may still be writing its last lines.
            return tokio::time::timeout(QUIET, self.folder.changed()).await.is_err();
        }
        tokio::select! {
            () = self.folder.changed() => {}
            () = self.container.ended() => self.has_ended = true,
        }
        false
    }

    async fn settle(&mut self) {
        let since = *self.replaced.get_or_insert_with(Instant::now);
        tokio::select! {
            () = self.folder.changed() => {}
            () = sleep_until(since + SETTLE) => {}
            () = self.container.ended(), if !self.has_ended => self.has_ended = true,
        }
    }
}
