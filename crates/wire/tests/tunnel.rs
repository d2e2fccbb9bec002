//! The tunnel's frames as the Go binaries send them.

use bytes::Bytes;
use wire::tunnel::{Connect, Frame, Kind};

/// Who sent it, and the frame.
fn recorded() -> Vec<(&'static str, Bytes)> {
    let lines = include_str!("tunnel.txt").lines().filter(|line| !line.starts_with('#'));
    let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).expect("ASCII"), 16).expect("digits");
    lines
        .map(|line| line.split_once(' ').expect("two words"))
        .map(|(from, digits)| (from, digits.as_bytes().chunks(2).map(byte).collect()))
        .collect()
}

#[test]
fn frames_are_read_and_written_byte_for_byte() {
    let mut seen = Vec::new();
    for (from, bytes) in recorded() {
        let frame = Frame::decode(&bytes).expect("recorded");
        assert_eq!(frame.encode().expect("sendable"), bytes);
        if !seen.contains(&(from, frame.kind)) {
            seen.push((from, frame.kind));
        }
    }
    let both = [Kind::Data, Kind::Remove].into_iter().flat_map(|kind| [("cloud", kind), ("edge", kind)]);
    let asks = [Kind::Logs, Kind::Exec, Kind::Metrics, Kind::Attach].map(|kind| ("cloud", kind));
    for kind in both.chain(asks) {
        assert!(seen.contains(&kind), "{kind:?} is not among the recordings");
    }
}

#[test]
fn requests_are_read_and_written_byte_for_byte() {
    let frames = recorded().into_iter().map(|(_, bytes)| Frame::decode(&bytes).expect("recorded"));
    let requests: Vec<Frame> = frames.filter(|frame| frame.kind.connects()).collect();
    assert!(requests.len() >= 20, "only {} requests", requests.len());
    for frame in requests {
        let connect = Connect::parse(&frame.data).expect("recorded");
        assert_eq!(connect.id, frame.id);
        assert_eq!(connect.method.is_some(), matches!(frame.kind, Kind::Exec | Kind::Attach));
        assert_eq!(connect.to_json(), frame.data);
    }
}

#[test]
fn what_a_request_says() {
    let frames = recorded().into_iter().map(|(_, bytes)| Frame::decode(&bytes).expect("recorded"));
    let exec = frames.into_iter().find(|frame| frame.kind == Kind::Exec).expect("exec");
    let connect = Connect::parse(&exec.data).expect("recorded");
    let command = "command=sh&command=-c&command=echo+exec-ok%3B+hostname&error=1&output=1";
    assert_eq!(connect.target(), format!("/exec/default/conf-pod/main?{command}"));
    assert_eq!(connect.method.as_deref(), Some("POST"));
    assert_eq!(connect.headers["Upgrade"], ["SPDY/3.1"]);
    assert_eq!(connect.headers["X-Stream-Protocol-Version"].len(), 5);
}

/// A fuzz target that also runs as a plain test: no input panics, and what was read is read again alike.
#[test]
fn fuzz_decode() {
    bolero::check!().for_each(|input: &[u8]| {
        if let Ok(frame) = Frame::decode(&Bytes::copy_from_slice(input))
            && let Ok(bytes) = frame.encode()
        {
            assert_eq!(Frame::decode(&bytes), Ok(frame));
        }
        if let Ok(connect) = Connect::parse(input) {
            assert_eq!(Connect::parse(&connect.to_json()).expect("written by us").target(), connect.target());
        }
    });
}
