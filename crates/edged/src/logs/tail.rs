//! The end of a log in CRI's format: `time SP stream SP tags SP content`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Lines that the fallback for termination messages takes.
const LINES: usize = 80;
/// Bytes of text that it takes.
const BYTES: usize = 2048;
/// Bytes of the file that are looked at; each line carries about 40 more than its text.
const WINDOW: u64 = 16 << 10;

/// The last lines of a log, without times, at most 80 lines and 2048 bytes.
pub(super) fn last_words(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A window that starts within the file starts within a line.
    let lines = text.lines().skip(usize::from(start > 0));
    let lines: Vec<String> = lines.filter_map(content).collect();
    let mut words = lines[lines.len().saturating_sub(LINES)..].concat();
    if words.len() > BYTES {
        let cut = (words.len() - BYTES..=words.len()).find(|at| words.is_char_boundary(*at)).unwrap_or_default();
        words.drain(..cut);
    }
    Ok(words)
}

/// The text of a line; a partial line keeps no line end. `None` for a malformed line.
fn content(line: &str) -> Option<String> {
    let mut parts = line.splitn(4, ' ');
    let (_time, _stream, tags, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let partial = tags.split(':').next() == Some("P");
    Some(if partial { text.to_owned() } else { format!("{text}\n") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_partial_lines_and_cuts() {
        assert_eq!(content("2024-05-01T10:00:00.1Z stdout F a b").as_deref(), Some("a b\n"));
        assert_eq!(content("2024-05-01T10:00:00.1Z stderr P a ").as_deref(), Some("a "));
        assert_eq!(content("nonsense"), None);
    }
}
