//! Lines of a container's log: `time SP stream SP tags SP content` as CRI has it, and the JSON lines that Docker wrote.
//!
//! A line may be cut anywhere between two reads, and may be longer than any buffer: content is passed on as it comes, only
//! the head of a line is kept.

use jiff::Timestamp;
use serde::Deserialize;

/// The longest head of a line: time, stream and tags.
const MAX_HEAD: usize = 128;
/// The longest JSON line: Docker cut content at 16 KiB, every byte of which may take six.
const MAX_JSON: usize = 128 << 10;

/// Turns lines of a log into what the container wrote.
#[derive(Debug, Default)]
pub struct Lines {
    since: Option<Timestamp>,
    timestamps: bool,
    state: State,
    /// The head or the JSON so far.
    kept: Vec<u8>,
    /// Standard output and standard error: whether the last line was a part, so that the next one continues it.
    continued: [bool; 2],
    /// Lines that are none.
    malformed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Head,
    Json,
    /// Content that is passed on; ends with a line end unless it is a part.
    Content {
        whole: bool,
    },
    /// Content that nobody wants.
    Skip,
}

#[derive(Deserialize)]
struct JsonLine<'a> {
    log: String,
    stream: &'a str,
    time: &'a str,
}

impl Lines {
    /// Lines from this time on, each with its time in front if wanted.
    pub fn new(since: Option<Timestamp>, timestamps: bool) -> Self {
        Self { since, timestamps, ..Self::default() }
    }

    /// How many lines could not be read.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Another file begins: what was cut off before does not continue in it.
    pub fn next_file(&mut self) {
        if matches!(self.state, State::Head | State::Json) && !self.kept.is_empty() {
            self.malformed += 1;
        }
        self.kept.clear();
        self.state = State::Head;
    }

    /// Reads on; appends to `out` what the container wrote.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            input = match self.state {
                State::Head => self.head(input, out),
                State::Json => self.json(input, out),
                State::Content { whole } => {
                    let (content, end) = split_line(input);
                    out.extend_from_slice(content);
                    if let Some(rest) = end {
                        if whole {
                            out.push(b'\n');
                        }
                        self.state = State::Head;
                        rest
                    } else {
                        &[]
                    }
                }
                State::Skip => match split_line(input) {
                    (_, Some(rest)) => {
                        self.state = State::Head;
                        rest
                    }
                    _ => &[],
                },
            };
        }
    }

    /// Takes bytes until the third space.
    fn head<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        if self.kept.is_empty() && input[0] == b'{' {
            self.state = State::Json;
            return input;
        }
        let mut spaces = self.kept.iter().filter(|byte| **byte == b' ').count();
        for (index, byte) in input.iter().enumerate() {
            match byte {
                b'\n' => {
                    // An empty line may end with its tags.
                    self.kept.extend_from_slice(&input[..index]);
                    if spaces == 2 {
                        self.begin(out);
                    } else {
                        self.malformed += 1;
                        self.state = State::Skip;
                    }
                    self.kept.clear();
                    return &input[index..];
                }
                b' ' => spaces += 1,
                _ => {}
            }
            let too_long = self.kept.len() + index >= MAX_HEAD;
            if spaces == 3 || too_long {
                self.kept.extend_from_slice(&input[..index]);
                if spaces == 3 {
                    self.begin(out);
                } else {
                    self.malformed += 1;
                    self.state = State::Skip;
                }
                self.kept.clear();
                return &input[index + 1..];
            }
        }
        self.kept.extend_from_slice(input);
        &[]
    }

    /// The head is complete.
    fn begin(&mut self, out: &mut Vec<u8>) {
        let head = std::mem::take(&mut self.kept);
        let parsed = std::str::from_utf8(&head).ok().and_then(|head| {
            let mut words = head.split(' ');
            let (time, stream, tags) = (words.next()?, words.next()?, words.next()?);
            let whole = match tags.split(':').next()? {
                "F" => true,
                "P" => false,
                _ => return None,
            };
            Some((time, stream_index(stream)?, whole))
        });
        self.state = match parsed.and_then(|(time, stream, whole)| Some((self.line(time, stream, whole, out)?, whole)))
        {
            Some((true, whole)) => State::Content { whole },
            Some((false, _)) => State::Skip,
            None => {
                self.malformed += 1;
                State::Skip
            }
        };
        self.kept = head;
    }

    /// A line begins: whether it is wanted; `None` when its time is none.
    fn line(&mut self, time: &str, stream: usize, whole: bool, out: &mut Vec<u8>) -> Option<bool> {
        if let Some(since) = self.since {
            if time.parse::<Timestamp>().ok()? < since {
                return Some(false);
            }
        } else if !time.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let continues = std::mem::replace(&mut self.continued[stream], !whole);
        if self.timestamps && !continues {
            push_time(time, out);
        }
        Some(true)
    }

    fn json<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let (part, end) = split_line(input);
        if self.kept.len() + part.len() > MAX_JSON {
            self.malformed += 1;
            self.kept = Vec::new();
            self.state = State::Skip;
            return input;
        }
        self.kept.extend_from_slice(part);
        let Some(rest) = end else { return &[] };
        let line = std::mem::take(&mut self.kept);
        self.state = State::Head;
        let wanted = serde_json::from_slice::<JsonLine<'_>>(&line).ok().and_then(|line| {
            let stream = stream_index(line.stream)?;
            let wanted = self.line(line.time, stream, line.log.ends_with('\n'), out)?;
            Some(wanted.then_some(line.log))
        });
        match wanted {
            Some(Some(content)) => out.extend_from_slice(content.as_bytes()),
            Some(None) => {}
            None => self.malformed += 1,
        }
        rest
    }
}

/// The line without its end, and what follows the end.
fn split_line(input: &[u8]) -> (&[u8], Option<&[u8]>) {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], Some(&input[end + 1..])),
        None => (input, None),
    }
}

fn stream_index(name: &str) -> Option<usize> {
    match name {
        "stdout" => Some(0),
        "stderr" => Some(1),
        _ => None,
    }
}

/// The time with nine digits behind the point, and a space.
fn push_time(time: &str, out: &mut Vec<u8>) {
    const DIGITS: usize = 9;
    let zone = time.rfind(['Z', '+']).or_else(|| time.rfind('-').filter(|at| *at > 10)).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone);
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let fraction = &fraction[..fraction.floor_char_boundary(DIGITS)];
    out.extend_from_slice(seconds.as_bytes());
    out.push(b'.');
    out.extend_from_slice(fraction.as_bytes());
    out.extend(std::iter::repeat_n(b'0', DIGITS - fraction.len()));
    out.extend_from_slice(zone.as_bytes());
    out.push(b' ');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &mut Lines, text: &str, step: usize) -> String {
        let mut out = Vec::new();
        text.as_bytes().chunks(step).for_each(|part| lines.feed(part, &mut out));
        String::from_utf8(out).unwrap()
    }

    const LOG: &str = "2024-05-01T10:00:00.1Z stdout F one\n\
        2024-05-01T10:00:01.123456789Z stdout P lo\n\
        2024-05-01T10:00:01.2Z stderr F err or\n\
        2024-05-01T10:00:02+02:00 stdout P:x ng \n\
        2024-05-01T10:00:03.5Z stdout F line\n\
        nonsense\n\
        2024-05-01T10:00:03.5Z stdin F x\n\
        2024-05-01T10:00:03.5Z stdout F\n\
        2024-05-01T10:00:04.5Z stdout F \n\
        2024-05-01T10:00:05.5Z stdout F end";

    #[test]
    fn parts_are_joined_wherever_the_reads_cut() {
        for step in [1, 2, 3, 7, 64, 4096] {
            let mut lines = Lines::new(None, false);
            assert_eq!(read(&mut lines, LOG, step), "one\nloerr or\nng line\n\n\nend", "{step}");
            assert_eq!(lines.malformed(), 2);
        }
    }

    #[test]
    fn times_have_nine_digits_and_stand_once_a_line() {
        let text = read(&mut Lines::new(None, true), LOG, 5);
        let expected = "2024-05-01T10:00:00.100000000Z one\n2024-05-01T10:00:01.123456789Z lo\
            2024-05-01T10:00:01.200000000Z err or\nng line\n\
            2024-05-01T10:00:03.500000000Z \n2024-05-01T10:00:04.500000000Z \n2024-05-01T10:00:05.500000000Z end";
        assert_eq!(text, expected);
        let mut out = Vec::new();
        push_time("2024-05-01T10:00:02-07:00", &mut out);
        assert_eq!(out, b"2024-05-01T10:00:02.000000000-07:00 ");
    }

    #[test]
    fn earlier_lines_are_left_out() {
        let since = "2024-05-01T10:00:03Z".parse().unwrap();
        assert_eq!(read(&mut Lines::new(Some(since), false), LOG, 11), "line\n\n\nend");
    }

    #[test]
    fn dockers_lines() {
        let log = "{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"2024-05-01T10:00:00.1Z\"}\n\
            {\"log\":\"b\",\"stream\":\"stderr\",\"time\":\"2024-05-01T10:00:01Z\"}\n\
            {\"log\":\"c\\n\",\"stream\":\"stderr\",\"time\":\"2024-05-01T10:00:01Z\"}\n{}\n";
        for step in [1, 10, 1000] {
            let mut lines = Lines::new(None, true);
            let expected = "2024-05-01T10:00:00.100000000Z a\n2024-05-01T10:00:01.000000000Z bc\n";
            assert_eq!((read(&mut lines, log, step).as_str(), lines.malformed()), (expected, 1));
        }
    }

    #[test]
    fn no_line_fills_the_memory() {
        let mut lines = Lines::new(None, false);
        let mut out = Vec::new();
        lines.feed(b"2024-05-01T10:00:00.1Z stdout F ", &mut out);
        for _ in 0..1000 {
            lines.feed(&[b'x'; 10_000], &mut out);
            assert_eq!(out.len(), 10_000);
            out.clear();
        }
        lines.feed(b"\n", &mut out);
        for long in [&b"y"[..], b"{"] {
            for _ in 0..100 {
                lines.feed(&long.repeat(10_000), &mut out);
            }
            assert!(out == b"\n" && lines.kept.capacity() <= MAX_JSON, "{}", lines.kept.capacity());
            lines.feed(b"\n", &mut out);
        }
        assert_eq!(lines.malformed(), 2);
        lines.feed(b"2024-05-01T10:00:00.1Z stdout F ok\n", &mut out);
        assert_eq!(out, b"\nok\n");
    }
}
