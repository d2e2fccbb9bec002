//! Files: `DIRECTORY/NAMESPACE/POD/CONTAINER.log`, each line with its time.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::cloudcore::Files as Settings;

use super::{Chunk, Counters, Output, OutputError, Source};

/// Files that are open at once.
const MAX_OPEN: usize = 256;
/// No line is longer, with its time.
const MAX_LINE: u64 = 300 << 10;

/// The output.
pub(super) struct Files(Arc<Mutex<Writer>>);

struct Writer {
    settings: Settings,
    open: HashMap<PathBuf, Open>,
}

struct Open {
    file: File,
    length: u64,
    /// Something may not be on the disk yet.
    unsettled: bool,
}

impl Files {
    /// Below the directory; that is made with the first line.
    pub(super) fn new(settings: &Settings) -> impl FnOnce(Arc<Counters>) -> Self {
        let writer = Writer { settings: settings.clone(), open: HashMap::new() };
        move |_| Self(Arc::new(Mutex::new(writer)))
    }

    /// Disks may be slow: not on the threads that serve nodes.
    async fn blocking<T: Send + 'static>(&self, f: impl FnOnce(&mut Writer) -> T + Send + 'static) -> Option<T> {
        let writer = self.0.clone();
        let done = tokio::task::spawn_blocking(move || f(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await.ok()
    }
}

impl Output for Files {
    const NAME: &'static str = "files";

    async fn take(&mut self, chunks: &[Chunk]) -> (usize, Result<(), OutputError>) {
        let chunks = chunks.to_vec();
        let taken = self.blocking(move |writer| {
            for (index, chunk) in chunks.iter().enumerate() {
                if let Err(error) = writer.write(chunk) {
                    return (index, Err(error));
                }
            }
            (chunks.len(), Ok(()))
        });
        taken.await.unwrap_or((0, Err(OutputError::Stopping)))
    }

    async fn settle(&mut self) -> Result<(), OutputError> {
        self.blocking(Writer::settle).await.unwrap_or(Err(OutputError::Stopping))
    }
}

impl Writer {
    /// All lines or none.
    fn write(&mut self, chunk: &Chunk) -> Result<(), OutputError> {
        if chunk.lines.is_empty() {
            return Ok(());
        }
        let path = self.path(&chunk.source);
        let fail = |error| OutputError::File(path.clone(), error);
        let mut text = Vec::with_capacity(chunk.bytes + chunk.lines.len() * 32);
        for line in chunk.lines.iter() {
            text.extend_from_slice(line.time.to_string().as_bytes());
            text.push(b' ');
            text.extend_from_slice(&line.text);
            text.push(b'\n');
        }
        if self.open.get(&path).is_some_and(|open| open.is_gone(&path)) {
            self.open.remove(&path);
        }
        if !self.open.contains_key(&path) {
            if self.open.len() >= MAX_OPEN {
                self.settle()?;
                self.open.clear();
            }
            self.open.insert(path.clone(), Open::at(&path).map_err(fail)?);
        }
        let added = text.len() as u64;
        if self.open.get(&path).is_some_and(|open| open.length > 0 && open.length + added > self.settings.max_size) {
            self.rotate(&path).map_err(fail)?;
        }
        let Some(open) = self.open.get_mut(&path) else { return Ok(()) };
        open.unsettled = true;
        if let Err(error) = open.file.write_all(&text) {
            // The lines come again as a whole. Where this fails too, the file is repaired when it is opened.
            let _ = open.file.set_len(open.length);
            self.open.remove(&path);
            return Err(fail(error));
        }
        open.length += added;
        Ok(())
    }

    /// Names were checked when the pod was read.
    fn path(&self, source: &Source) -> PathBuf {
        self.settings.directory.join(&source.namespace).join(&source.pod).join(format!("{}.log", source.container))
    }

    /// Puts the file aside as `.1`, that as `.2`, and so on; the oldest goes.
    fn rotate(&mut self, path: &Path) -> io::Result<()> {
        if let Some(open) = self.open.remove(path) {
            open.file.sync_data()?;
        }
        let numbered = |number: u64| match number {
            0 => path.to_path_buf(),
            _ => path.with_extension(format!("log.{number}")),
        };
        let last = self.settings.max_files - 1;
        if last == 0 {
            std::fs::remove_file(path)?;
        }
        for number in (0..last).rev().filter(|number| numbered(*number).exists()) {
            std::fs::rename(numbered(number), numbered(number + 1))?;
        }
        self.open.insert(path.to_path_buf(), Open::at(path)?);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), OutputError> {
        for (path, open) in self.open.iter_mut().filter(|(_, open)| open.unsettled) {
            open.file.sync_data().map_err(|error| OutputError::File(path.clone(), error))?;
            open.unsettled = false;
        }
        Ok(())
    }
}

impl Open {
    /// Opens it; a line that a crash has left half written is taken away, for it comes again.
    fn at(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut length = file.metadata()?.len();
        let mut end = vec![0; usize::try_from(length.min(MAX_LINE)).unwrap_or_default()];
        let begin = length - end.len() as u64;
        file.read_exact_at(&mut end, begin)?;
        if end.last().is_some_and(|byte| *byte != b'\n') {
            let half = end.iter().rev().position(|byte| *byte == b'\n').unwrap_or(end.len());
            length -= half as u64;
            file.set_len(length)?;
        }
        Ok(Self { file, length, unsettled: false })
    }

    /// Somebody has removed it or put it aside.
    fn is_gone(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let (here, there) = (self.file.metadata().ok(), std::fs::metadata(path).ok());
        here.zip(there).is_none_or(|(here, there)| here.ino() != there.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudstream::collect::{Line, Position};
    use std::os::unix::fs::PermissionsExt;

    fn chunk(texts: &[&str]) -> Chunk {
        let name = |name: &str| name.to_owned();
        let source =
            Source { uid: name("u"), namespace: name("ns"), pod: name("p"), container: name("c"), node: name("n") };
        let time = jiff::Timestamp::from_second(1).expect("a time");
        let lines: Vec<Line> = texts.iter().map(|text| Line { time, text: text.to_string().into() }).collect();
        let position = Some(Position { time, count: 1 });
        let bytes = texts.iter().map(|text| text.len()).sum();
        Chunk { source: source.into(), lines: lines.into(), position, bytes }
    }

    fn writer(directory: &Path, max_size: u64) -> Writer {
        Writer { settings: Settings { directory: directory.into(), max_size, max_files: 3 }, open: HashMap::new() }
    }

    #[test]
    fn files_rotate_and_are_private() {
        let dir = tempfile::tempdir().expect("folder");
        let mut writer = writer(dir.path(), 60);
        for number in 0..7 {
            writer.write(&chunk(&[&format!("line {number}")])).expect("written");
        }
        writer.settle().expect("durable");
        let log = dir.path().join("ns/p/c.log");
        let read = |path: &Path| std::fs::read_to_string(path).expect("there");
        let line = |number: u32| format!("1970-01-01T00:00:01Z line {number}\n");
        assert_eq!(read(&log), line(6));
        assert_eq!(read(&log.with_extension("log.1")), line(4) + &line(5));
        assert_eq!(read(&log.with_extension("log.2")), line(2) + &line(3));
        assert_eq!(std::fs::read_dir(log.parent().expect("folder")).expect("read").count(), 3);
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&log), mode(log.parent().expect("folder"))), (0o600, 0o700));
    }

    #[test]
    fn half_a_line_goes_and_a_removed_file_is_made_anew() {
        let dir = tempfile::tempdir().expect("folder");
        let log = dir.path().join("ns/p/c.log");
        std::fs::create_dir_all(log.parent().expect("folder")).expect("made");
        std::fs::write(&log, "whole\nhal").expect("written");
        let mut writer = writer(dir.path(), 1 << 20);
        writer.write(&chunk(&["a"])).expect("written");
        assert_eq!(std::fs::read_to_string(&log).expect("there"), "whole\n1970-01-01T00:00:01Z a\n");
        std::fs::remove_file(&log).expect("removed");
        writer.write(&chunk(&["b"])).expect("written");
        assert_eq!(std::fs::read_to_string(&log).expect("there"), "1970-01-01T00:00:01Z b\n");
    }
}
