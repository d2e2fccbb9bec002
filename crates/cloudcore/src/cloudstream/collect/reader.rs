//! Reading one container's log: what was missed of the instance before, then the log as it grows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use link::http_server::Body;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::{Chunk, Counters, Line, Position, Source};
use crate::cloudstream::tunnels::{Answer, TunnelError, Tunnels};

/// A longer line is cut.
const MAX_LINE: usize = 256 << 10;
/// What is put at the end of it.
const CUT: &[u8] = b" [cut at 256 KiB]";
/// The time before a line, at most: `2026-01-02T03:04:05.000000006+00:00 `.
const MAX_TIME: usize = 40;
/// An output that has no room for so long is not waited for with a stream open: the log is asked for again when it has.
const HOLD: Duration = Duration::from_secs(5);
/// A stream ends after so long when others wait for their turn.
const TURN: Duration = Duration::from_secs(60);

/// Reads one log for one output.
pub(super) struct Reader {
    pub(super) source: Arc<Source>,
    pub(super) tunnels: Tunnels,
    pub(super) to: mpsc::Sender<Chunk>,
    pub(super) turns: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
    /// The last line that was handed over.
    pub(super) position: Option<Position>,
}

/// Why reading ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The node said that this is all.
    Complete,
    /// The stream was cut, or the node is not connected.
    Cut(String),
    /// The node gives no log.
    Refused(String),
    /// Others are waiting, or the output had no room: go on at once.
    Paused,
}

impl Reader {
    /// Reads until the log or the stream ends; also how far it came.
    pub(super) async fn run(mut self) -> (Option<Position>, End) {
        // It is never closed.
        let Ok(turn) = self.turns.clone().acquire_owned().await else { return (self.position, End::Paused) };
        let deadline = Instant::now() + TURN;
        let mut end = self.read(false, deadline).await;
        if matches!(end, End::Complete | End::Refused(_)) {
            end = self.read(true, deadline).await;
        }
        drop(turn);
        (self.position, end)
    }

    /// The log of the instance before this one, or of this one as it grows.
    async fn read(&mut self, follow: bool, deadline: Instant) -> End {
        let body = match self.ask(follow).await {
            Ok(Ok(body)) => body,
            Ok(Err(refusal)) => return End::Refused(refusal),
            Err(error) => return End::Cut(error.to_string()),
        };
        let mut body = Some(body);
        let mut lines = Lines::default();
        let mut resume = Resume { position: self.position, seen: 0, last: None };
        while let Some(open) = &mut body {
            let arrived = match tokio::time::timeout_at(deadline, open.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().ok(),
                Ok(Some(Err(error))) => return End::Cut(error.to_string()),
                Ok(None) => {
                    body = None;
                    None
                }
                Err(_) if self.turns.available_permits() == 0 => return End::Paused,
                // Nobody waits, so it goes on until something comes, or somebody does.
                Err(_) => match tokio::time::timeout(TURN, open.frame()).await {
                    Err(_) => None,
                    Ok(Some(Ok(frame))) => frame.into_data().ok(),
                    Ok(Some(Err(error))) => return End::Cut(error.to_string()),
                    Ok(None) => {
                        body = None;
                        None
                    }
                },
            };
            match arrived {
                Some(bytes) => lines.push(&bytes),
                None if body.is_none() => lines.end(),
                None => continue,
            }
            self.counters.cut.fetch_add(std::mem::take(&mut lines.cut), Ordering::Relaxed);
            let Some(chunk) = self.chunk(&mut lines.whole, &mut resume) else {
                return End::Refused("the node's answer is no log with times".to_owned());
            };
            let Some(chunk) = chunk else { continue };
            match tokio::time::timeout(HOLD, self.to.reserve()).await {
                Ok(Ok(place)) => place.send(chunk),
                Ok(Err(_)) => return End::Paused,
                Err(_) => {
                    drop(body.take());
                    // The output ends only with cloudcore.
                    let _ = self.to.send(chunk).await;
                    return End::Paused;
                }
            }
        }
        End::Complete
    }

    async fn ask(&self, follow: bool) -> Result<Result<Body, String>, TunnelError> {
        let Source { namespace, pod, container, node, .. } = &*self.source;
        let which = if follow { "follow=true" } else { "previous=true" };
        let mut path = format!("/containerLogs/{namespace}/{pod}/{container}?{which}&timestamps=true");
        if let Some(position) = self.position {
            // The whole second: what was already handed over of it is left out here.
            path.push_str(&position.time.strftime("&sinceTime=%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        let Ok(request) = Request::get(path).body(Full::<Bytes>::default()) else {
            return Ok(Err("the container's name is no part of a path".to_owned()));
        };
        match self.tunnels.open(node).await?.ask(request).await? {
            Answer::Plain(answer) if answer.status() == StatusCode::OK => Ok(Ok(answer.into_body())),
            Answer::Plain(answer) => Ok(Err(format!("the node answers {}", answer.status()))),
            Answer::Upgraded(..) => Ok(Err("the node answers with a stream of another kind".to_owned())),
        }
    }

    /// What is new of these lines; `None` when they do not begin with times.
    fn chunk(&mut self, whole: &mut Vec<Vec<u8>>, resume: &mut Resume) -> Option<Option<Chunk>> {
        let mut new = Vec::new();
        let mut length = 0;
        for text in whole.drain(..) {
            let (time, text) = match split(&text) {
                Some((time, at)) => (time, Bytes::from(text).slice(at..)),
                // A line that goes on after the stream has begun properly.
                None => (resume.last?, Bytes::from(text)),
            };
            resume.last = Some(time);
            if !resume.is_new(time) {
                continue;
            }
            self.position = Some(match self.position {
                Some(Position { time: same, count }) if same == time => {
                    Position { time, count: count.saturating_add(1) }
                }
                _ => Position { time, count: 1 },
            });
            length += text.len();
            new.push(Line { time, text });
        }
        if new.is_empty() {
            return Some(None);
        }
        let lines: Arc<[Line]> = new.into();
        Some(Some(Chunk { source: self.source.clone(), lines, position: self.position, bytes: length }))
    }
}

/// The time of a line, and where its text begins.
fn split(line: &[u8]) -> Option<(Timestamp, usize)> {
    let head = &line[..line.len().min(MAX_TIME)];
    let end = head.iter().position(|byte| *byte == b' ').unwrap_or(head.len());
    let time = std::str::from_utf8(&head[..end]).ok()?.parse().ok()?;
    Some((time, (end + 1).min(line.len())))
}

/// Leaves out what was handed over before.
struct Resume {
    /// Until the first new line.
    position: Option<Position>,
    /// Lines of the position's time so far.
    seen: u32,
    /// The time of the last line of this stream.
    last: Option<Timestamp>,
}

impl Resume {
    fn is_new(&mut self, time: Timestamp) -> bool {
        let Some(position) = self.position else { return true };
        if time < position.time {
            return false;
        }
        if time == position.time && self.seen < position.count {
            self.seen += 1;
            return false;
        }
        self.position = None;
        true
    }
}

/// Bytes into lines.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
    whole: Vec<Vec<u8>>,
    /// Lines that were too long.
    cut: u64,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.add(&bytes[..end]);
            self.end();
            bytes = &bytes[end + 1..];
        }
        self.add(bytes);
    }

    fn add(&mut self, bytes: &[u8]) {
        // One byte more tells that there was more.
        let room = (MAX_LINE + MAX_TIME + 1).saturating_sub(self.begun.len());
        self.begun.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(&mut self) {
        let mut line = std::mem::take(&mut self.begun);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.len() > MAX_LINE + MAX_TIME {
            line.truncate(MAX_LINE);
            line.extend_from_slice(CUT);
            self.cut += 1;
        }
        if !line.is_empty() {
            self.whole.push(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanoseconds: i128) -> Timestamp {
        Timestamp::from_nanosecond(nanoseconds).expect("a time")
    }

    #[test]
    fn what_was_handed_over_is_left_out_and_nothing_else() {
        let mut resume = Resume { position: Some(Position { time: at(5), count: 2 }), seen: 0, last: None };
        let new: Vec<bool> = [3, 5, 5, 5, 4, 6].map(|time| resume.is_new(at(time))).to_vec();
        assert_eq!(new, [false, false, false, true, true, true], "after the first new line the node's order counts");
        let mut resume = Resume { position: Some(Position { time: at(5), count: 9 }), seen: 0, last: None };
        assert_eq!([5, 6, 6].map(|time| resume.is_new(at(time))), [false, true, true]);
        let mut resume = Resume { position: None, seen: 0, last: None };
        assert!(resume.is_new(at(0)));
    }

    #[test]
    fn lines_are_whole_and_bounded() {
        let mut lines = Lines::default();
        for piece in ["a", "b\nc\r\n\nd", "\ne"] {
            lines.push(piece.as_bytes());
        }
        assert_eq!(lines.whole, [b"ab".to_vec(), b"c".to_vec(), b"d".to_vec()]);
        lines.end();
        assert_eq!(lines.whole[3], b"e");
        for _ in 0..100 {
            lines.push(&vec![b'x'; 10_000]);
        }
        assert!(lines.begun.capacity() <= 2 * (MAX_LINE + MAX_TIME + 1), "{}", lines.begun.capacity());
        lines.push(b"\nafter\n");
        assert_eq!((lines.whole[4].len(), lines.cut), (MAX_LINE + CUT.len(), 1));
        assert_eq!(lines.whole[5], b"after");
    }

    #[test]
    fn times_and_texts() {
        assert_eq!(split(b"1970-01-01T00:00:00.000000005Z a b"), Some((at(5), 31)));
        assert_eq!(split(b"1970-01-01T01:00:00.000000005+01:00 "), Some((at(5), 36)));
        assert_eq!(split(b"1970-01-01T00:00:00Z"), Some((at(0), 20)));
        assert_eq!((split(b"container not found"), split(b"")), (None, None));
    }
}
