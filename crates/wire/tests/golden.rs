//! Every recorded frame of the Go binaries is read, and written again as equal JSON.

use std::path::Path;

use serde_json::Value;
use wire::Message;

fn recorded() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/golden");
    let mut frames = Vec::new();
    for entry in std::fs::read_dir(dir).expect("recordings") {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        if !name.starts_with("wire-") {
            continue;
        }
        for (number, line) in std::fs::read_to_string(&path).expect("file").lines().enumerate() {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            frames.push((format!("{name}:{}", number + 1), line["frame"].as_str().expect("frame").to_owned()));
        }
    }
    frames
}

#[test]
fn every_frame_is_read_and_written_again() {
    let frames = recorded();
    assert!(frames.len() > 800, "only {} frames found", frames.len());
    for (place, frame) in frames {
        let message = Message::parse(frame.as_bytes()).unwrap_or_else(|error| panic!("{place}: {error}"));
        let again: Value = serde_json::from_slice(&message.to_json()).unwrap_or_else(|e| panic!("{place}: {e}"));
        let original: Value = serde_json::from_str(&frame).expect("recorded JSON");
        assert_eq!(again, original, "{place}");
    }
}

#[test]
fn headers_and_routes_are_written_byte_for_byte() {
    for (place, frame) in recorded() {
        let message = Message::parse(frame.as_bytes()).expect("recorded frame");
        let end = frame.find(",\"content\":").expect("content");
        let written = message.to_json();
        assert_eq!(&written[..end], &frame.as_bytes()[..end], "{place}");
    }
}

#[test]
fn the_content_stays_as_it_was_sent() {
    for (place, frame) in recorded() {
        let message = Message::parse(frame.as_bytes()).expect("recorded frame");
        assert!(frame.as_bytes().windows(message.content.raw().len()).any(|w| w == message.content.raw()), "{place}");
    }
}
