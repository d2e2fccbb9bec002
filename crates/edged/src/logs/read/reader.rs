//! Reads a log from its files, step by step: blocking, one small piece at a time.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;

use super::LogOptions;
use super::line::Lines;
use super::parts::{self, Part, Rotated};

/// Bytes read in one go.
const BLOCK: usize = 64 << 10;
/// Bytes looked through in one step that finds nothing to show.
const MAX_SCAN: usize = 4 << 20;
/// Looks at a folder in which a rotation is just going on.
const MAX_LOOKS: usize = 5;

/// What a step came to.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// This was written.
    Data(Bytes),
    /// Nothing to show yet, but there is more to read.
    Again,
    /// Everything is read; more may be written.
    CaughtUp,
    /// Everything is read, and the runtime has begun another file: the old one may still get its last lines.
    Replaced,
    /// Nothing more will come.
    Done,
}

/// A log that is being read.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    part: Part,
    /// Parts after this one, the current file last.
    queue: VecDeque<Part>,
    /// The newest rotated file that came before the current one.
    passed: Option<String>,
    skip_lines: u64,
    lines: Lines,
    /// Bytes that may still be shown.
    left: Option<u64>,
    follow: bool,
}

impl LogReader {
    /// Opens the log that the runtime writes to this path.
    ///
    /// # Errors
    /// The current file is not there or cannot be read.
    pub fn open(path: &Path, options: &LogOptions) -> io::Result<Self> {
        let (mut current, rotated) = open_stable(path)?;
        let mut queue = VecDeque::new();
        let mut skip_lines = 0;
        if let Some(tail) = options.tail {
            let mut missing = parts::seek_tail(&mut current, tail)?;
            for rotated in rotated.iter().rev() {
                if missing == 0 {
                    break;
                }
                // One that is compressed or removed at this moment is looked for once more under its other name.
                let Some(path) = there(rotated) else { continue };
                let mut part = Part::open(&path)?;
                match &mut part {
                    Part::Plain(file) => missing = parts::seek_tail(file, missing)?,
                    Part::Compressed(_) => {
                        let lines = parts::count_lines(&mut part);
                        skip_lines = lines.saturating_sub(missing);
                        missing = missing.saturating_sub(lines);
                        part = Part::open(&path)?;
                    }
                }
                queue.push_front(part);
            }
        } else if let Some(since) = options.since {
            let since = SystemTime::from(since);
            let recent = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).is_ok_and(|at| at >= since);
            for path in rotated.iter().filter_map(there).filter(|path| recent(path)) {
                queue.push_back(Part::open(&path)?);
            }
        }
        queue.push_back(Part::Plain(current));
        let part = queue.pop_front().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            path: path.to_owned(),
            part,
            queue,
            passed: rotated.into_iter().next_back().map(|rotated| rotated.name),
            skip_lines,
            lines: Lines::new(options.since, options.timestamps),
            left: options.limit_bytes,
            follow: options.follow,
        })
    }

    /// Reads on. `settled`: a file that was replaced gets no more lines.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn step(&mut self, settled: bool) -> io::Result<Step> {
        if self.left == Some(0) {
            return Ok(Step::Done);
        }
        let mut block = vec![0; BLOCK];
        let mut out = Vec::new();
        let mut scanned = 0;
        while out.is_empty() {
            let read = match self.part.read(&mut block) {
                // A rotated file that was cut short by a power failure ends where it ends.
                Err(error) if matches!(self.part, Part::Compressed(_)) => {
                    tracing::warn!(log = %self.path.display(), %error, "a rotated log is damaged; the rest of it is left out");
                    0
                }
                read => read?,
            };
            if read == 0 {
                match self.queue.pop_front() {
                    Some(next) => {
                        self.lines.next_file();
                        self.part = next;
                        continue;
                    }
                    None => return self.end_of_file(settled),
                }
            }
            let input = self.skip(&block[..read]);
            self.lines.feed(input, &mut out);
            scanned += read;
            if out.is_empty() && scanned >= MAX_SCAN {
                return Ok(Step::Again);
            }
        }
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        Ok(Step::Data(out.into()))
    }

    /// Leaves out lines that the tail does not reach.
    fn skip<'a>(&mut self, mut input: &'a [u8]) -> &'a [u8] {
        while self.skip_lines > 0 && !input.is_empty() {
            match input.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.skip_lines -= 1;
                    input = &input[end + 1..];
                }
                None => input = &[],
            }
        }
        input
    }

    fn end_of_file(&mut self, settled: bool) -> io::Result<Step> {
        if !self.follow {
            if self.lines.malformed() > 0 {
                tracing::info!(log = %self.path.display(), lines = self.lines.malformed(), "lines that are no log lines were left out");
            }
            return Ok(Step::Done);
        }
        if self.part.is_replaced(&self.path) == Some(true) {
            // What is compressed is complete.
            if !settled && matches!(self.part, Part::Plain(_)) {
                return Ok(Step::Replaced);
            }
            return Ok(if self.next_part()? { Step::Again } else { Step::Replaced });
        }
        // Somebody may have emptied the file.
        if let Part::Plain(file) = &mut self.part
            && file.stream_position()? > file.metadata()?.len()
        {
            file.seek(SeekFrom::Start(0))?;
            return Ok(Step::Again);
        }
        Ok(Step::CaughtUp)
    }

    /// Goes on with the file that was begun after this one: a rotated one when there was more than one rotation meanwhile.
    /// False when it is not there yet.
    fn next_part(&mut self) -> io::Result<bool> {
        for _ in 0..MAX_LOOKS {
            let later = self.later();
            let next = match later.get(1) {
                Some(rotated) => there(rotated).map(|path| Part::open(&path)),
                None => Some(File::open(&self.path).map(Part::Plain)),
            };
            let part = match next {
                Some(Ok(part)) => part,
                Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(false),
            };
            // Rotated once more between the look and the opening: look again.
            if later.len() < 2 && self.later().len() > later.len() {
                continue;
            }
            if let Some(own) = later.into_iter().next() {
                self.passed = Some(own.name);
            }
            self.lines.next_file();
            self.part = part;
            return Ok(true);
        }
        Ok(false)
    }

    /// Rotated files that were current after the one that was passed: the first is the one being read.
    fn later(&self) -> Vec<Rotated> {
        let mut rotated = parts::rotated(&self.path);
        rotated.retain(|rotated| self.passed.as_ref().is_none_or(|passed| rotated.name > *passed));
        rotated
    }
}

/// The path of a rotated file, which may have been compressed meanwhile.
fn there(rotated: &Rotated) -> Option<PathBuf> {
    if rotated.path.exists() {
        return Some(rotated.path.clone());
    }
    let compressed = rotated.path.with_file_name(format!("{}.gz", rotated.name));
    compressed.exists().then_some(compressed)
}

/// The current file, and the rotated ones before it.
fn open_stable(path: &Path) -> io::Result<(File, Vec<Rotated>)> {
    for _ in 0..MAX_LOOKS {
        let before = parts::rotated(path);
        let file = File::open(path)?;
        let part = Part::Plain(file);
        let replaced = part.is_replaced(path) != Some(false);
        let names = |rotated: &[Rotated]| rotated.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        if !replaced && names(&before) == names(&parts::rotated(path)) {
            let Part::Plain(file) = part else { continue };
            return Ok((file, before));
        }
    }
    Ok((File::open(path)?, parts::rotated(path)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::logs::rotate;

    fn line(text: &str) -> String {
        format!("2026-01-02T15:04:05.1Z stdout F {text}\n")
    }

    /// Everything up to the end, or to where a follower has to wait.
    fn rest(reader: &mut LogReader, settled: bool) -> (String, Step) {
        let mut text = String::new();
        loop {
            match reader.step(settled).unwrap() {
                Step::Data(bytes) => {
                    assert!(bytes.len() <= 2 * BLOCK);
                    text.push_str(std::str::from_utf8(&bytes).unwrap());
                }
                Step::Again => {}
                step => return (text, step),
            }
        }
    }

    #[test]
    fn the_tail_of_a_gigabyte_is_near() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut file = File::create(&path).unwrap();
        // A hole takes no room.
        file.seek(SeekFrom::Start(1 << 30)).unwrap();
        write!(file, "\n{}{}{}", line("a"), line(&"b".repeat(10 << 20)), line("c")).unwrap();
        for (tail, expected) in [(1, 2), (2, (10 << 20) + 3), (3, (10 << 20) + 5)] {
            let options = LogOptions { tail: Some(tail), ..Default::default() };
            let (text, step) = rest(&mut LogReader::open(&path, &options).unwrap(), false);
            assert_eq!((text.len(), step), (expected, Step::Done));
        }
        let options = LogOptions { tail: Some(2), limit_bytes: Some(70_000), ..Default::default() };
        assert_eq!(rest(&mut LogReader::open(&path, &options).unwrap(), false).0, "b".repeat(70_000));
    }

    #[test]
    fn a_slow_follower_reads_what_was_rotated_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let at = |second: i64| jiff::Timestamp::from_second(1_800_000_000 + second).unwrap();
        fs::write(&path, line("zero")).unwrap();
        rotate::rotate(&path, 10, at(0)).unwrap();
        fs::write(&path, line("one")).unwrap();
        let options = LogOptions { follow: true, ..Default::default() };
        let mut reader = LogReader::open(&path, &options).unwrap();
        assert_eq!(rest(&mut reader, false), ("one\n".into(), Step::CaughtUp));
        // What the runtime writes between the renaming and its opening of another file.
        let rotated = rotate::rotate(&path, 10, at(10)).unwrap();
        assert_eq!(rest(&mut reader, false).1, Step::CaughtUp);
        fs::OpenOptions::new().append(true).open(&rotated).unwrap().write_all(line("late").as_bytes()).unwrap();
        fs::write(&path, line("two")).unwrap();
        assert_eq!(rest(&mut reader, false), ("late\n".into(), Step::Replaced));
        for second in [20, 30, 40] {
            rotate::rotate(&path, 10, at(second)).unwrap();
            fs::write(&path, line(&format!("after {second}"))).unwrap();
        }
        assert_eq!(rest(&mut reader, true), ("two\nafter 20\nafter 30\nafter 40\n".into(), Step::CaughtUp));
        // Emptied by somebody else.
        fs::write(&path, "").unwrap();
        assert_eq!(rest(&mut reader, true).1, Step::CaughtUp);
        fs::write(&path, line("again")).unwrap();
        assert_eq!(rest(&mut reader, true), ("again\n".into(), Step::CaughtUp));
    }

    #[test]
    fn times_reach_into_rotated_files_and_damaged_ones_hold_nothing_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, line("old")).unwrap();
        rotate::rotate(&path, 10, "2026-01-02T15:05:00Z".parse().unwrap()).unwrap();
        fs::write(&path, line("new")).unwrap();
        let since = |time: &str| LogOptions { since: Some(time.parse().unwrap()), ..Default::default() };
        let read = |options: &LogOptions| rest(&mut LogReader::open(&path, options).unwrap(), false).0;
        assert_eq!(read(&since("2026-01-02T15:04:00Z")), "old\nnew\n");
        assert_eq!(read(&since("2026-01-02T15:04:06Z")), "");
        assert_eq!(read(&LogOptions::default()), "new\n");
        fs::write(directory.path().join("0.log.20250101-000000.gz"), "no gzip").unwrap();
        assert_eq!(read(&since("2026-01-02T15:04:00Z")), "old\nnew\n");
        assert_eq!(read(&LogOptions { tail: Some(9), ..Default::default() }), "old\nnew\n");
        assert!(LogReader::open(&directory.path().join("none"), &LogOptions::default()).is_err());
    }
}
