//! The files of one log: the one that the runtime writes to, and those that rotation has put aside, plain or compressed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

/// Bytes looked at in one go when lines are counted.
const BLOCK: usize = 64 << 10;

/// A file that is being read.
#[derive(Debug)]
pub enum Part {
    /// As it was written.
    Plain(File),
    /// Compressed after rotation.
    Compressed(Box<MultiGzDecoder<BufReader<File>>>),
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Part::Plain(file) => file.read(into),
            Part::Compressed(file) => file.read(into),
        }
    }
}

impl Part {
    /// Opens a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(if path.extension() == Some(OsStr::new("gz")) {
            Part::Compressed(Box::new(MultiGzDecoder::new(BufReader::new(file))))
        } else {
            Part::Plain(file)
        })
    }

    /// Whether the runtime has begun another file in the place of this one; `None` when there is none at the moment.
    pub fn is_replaced(&self, path: &Path) -> Option<bool> {
        let Part::Plain(file) = self else { return Some(true) };
        let (own, other) = (file.metadata().ok()?, fs::metadata(path).ok()?);
        Some((own.dev(), own.ino()) != (other.dev(), other.ino()))
    }
}

/// A rotated file: its name without `.gz` tells its place in time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotated {
    /// `0.log.20240501-100000`.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
}

/// The rotated files of a log, oldest first. One that is just being compressed counts once.
pub fn rotated(log: &Path) -> Vec<Rotated> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(OsStr::to_str)) else { return Vec::new() };
    let prefix = format!("{name}.");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<Rotated> = names
        .filter(|name| name.starts_with(&prefix) && !name.ends_with(".tmp"))
        .map(|name| Rotated { path: dir.join(&name), name: name.strip_suffix(".gz").unwrap_or(&name).to_owned() })
        .collect();
    // The compressed one is complete when both are there, and stays.
    found.sort_by(|a, b| (&a.name, b.path.as_os_str().len()).cmp(&(&b.name, a.path.as_os_str().len())));
    found.dedup_by(|later, first| later.name == first.name);
    found
}

/// How many lines a file has, a last one without end included. One that is damaged ends there.
pub fn count_lines(part: &mut Part) -> u64 {
    let mut block = vec![0; BLOCK];
    let (mut lines, mut open) = (0, false);
    while let Ok(read @ 1..) = part.read(&mut block) {
        lines += ends(&block[..read]);
        open = block[read - 1] != b'\n';
    }
    lines + u64::from(open)
}

/// Puts the file to the start of its last lines; returns how many of them it has not.
pub fn seek_tail(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut block = vec![0; BLOCK];
    let (mut end, mut found) = (length, 0);
    while end > 0 && lines > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let size = usize::try_from(end - start).unwrap_or(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..size])?;
        for index in (0..size).rev() {
            let at = start + index as u64;
            // A line end that closes the file begins no line.
            if block[index] == b'\n' && at + 1 < length {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(at + 1))?;
                    return Ok(0);
                }
            }
        }
        end = start;
    }
    if lines == 0 {
        file.seek(SeekFrom::End(0))?;
        return Ok(0);
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(lines - found - u64::from(length > 0))
}

/// Line ends in a block.
fn ends(block: &[u8]) -> u64 {
    block.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn the_last_lines_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for (text, lines, tail, missing) in [
            ("a\nb\nc\n", 2, "b\nc\n", 0),
            ("a\nb\nc", 2, "b\nc", 0),
            ("a\nb\n", 2, "a\nb\n", 0),
            ("a\nb\n", 5, "a\nb\n", 3),
            ("a\n", 0, "", 0),
            ("", 3, "", 3),
            ("\n\n\n", 2, "\n\n", 0),
        ] {
            fs::write(&path, text).unwrap();
            let mut file = File::open(&path).unwrap();
            assert_eq!(seek_tail(&mut file, lines).unwrap(), missing, "{text:?}");
            let mut rest = String::new();
            file.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, tail, "{text:?} {lines}");
        }
        let long = format!("{}\n", "x".repeat(50_000)).repeat(10);
        fs::write(&path, &long).unwrap();
        let mut file = File::open(&path).unwrap();
        seek_tail(&mut file, 3).unwrap();
        assert_eq!(file.stream_position().unwrap(), 7 * 50_001);
        assert_eq!(count_lines(&mut Part::open(&path).unwrap()), 10);
    }

    #[test]
    fn rotated_files_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for name in ["0.log", "0.log.2", "0.log.1", "0.log.1.tmp", "1.log.0", "0.log.3.gz"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let mut gz = GzEncoder::new(File::create(directory.path().join("0.log.1.gz")).unwrap(), Compression::fast());
        gz.write_all(b"a\nb").unwrap();
        gz.finish().unwrap();
        let found = rotated(&log);
        let names: Vec<_> = found.iter().map(|part| part.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["0.log.1.gz", "0.log.2", "0.log.3.gz"]);
        assert_eq!(count_lines(&mut Part::open(&found[0].path).unwrap()), 2);
    }
}
