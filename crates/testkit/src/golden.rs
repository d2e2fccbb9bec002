//! The recordings of `golden/` as data: frames of the message channel and exchanges of the certificate endpoint.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

/// Who sent a recorded frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Direction {
    /// edgecore.
    #[serde(rename = "edge2cloud")]
    FromEdge,
    /// cloudcore.
    #[serde(rename = "cloud2edge")]
    FromCloud,
}

/// One message of a recording.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Who sent it.
    pub direction: Direction,
    /// Since the recording began; zero where it was not noted.
    pub at: Duration,
    /// Counts the connections of a recording, from 1; 0 where it was not noted.
    pub connection: u32,
    /// What was done just before, where it was noted.
    pub step: String,
    /// The text of the WebSocket message without its trailing newline.
    pub text: String,
    /// The same, parsed.
    pub message: Value,
}

/// One request to the certificate endpoint and its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What is special about it.
    pub note: String,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The request's headers, as written.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Vec<u8>,
    /// Subject and validity of the client's certificate, if it showed one.
    pub client_certificate: Option<String>,
    /// The status; `None` when the connection ended without an answer.
    pub status: Option<u16>,
    /// The answer's headers.
    pub answer_headers: Vec<(String, String)>,
    /// The answer's body.
    pub answer: Vec<u8>,
    /// Where it was sent.
    pub port: u16,
}

impl Frame {
    /// One part of the route, empty when it is not there.
    pub fn route(&self, part: &str) -> &str {
        self.message["route"][part].as_str().unwrap_or_default()
    }

    /// The message's id.
    pub fn id(&self) -> &str {
        self.message["header"]["msg_id"].as_str().unwrap_or_default()
    }

    /// The id of the message that this one answers, empty when it answers none.
    pub fn parent(&self) -> &str {
        self.message["header"]["parent_msg_id"].as_str().unwrap_or_default()
    }
}

/// The messages of a recording, for example `wire-fresh-node`. Frames whose JSON is broken have the value null.
///
/// # Errors
/// There is no such recording, or it cannot be read.
pub fn frames(recording: &str) -> Result<Vec<Frame>> {
    #[derive(Deserialize)]
    struct Line {
        direction: Direction,
        #[serde(default)]
        t_ms: u64,
        #[serde(default)]
        connection: u32,
        #[serde(default)]
        step: String,
        frame: String,
    }
    let frame = |line: Line| Frame {
        direction: line.direction,
        at: Duration::from_millis(line.t_ms),
        connection: line.connection,
        step: line.step,
        message: serde_json::from_str(&line.frame).unwrap_or_default(),
        text: line.frame,
    };
    Ok(lines(recording)?.into_iter().map(frame).collect())
}

/// The exchanges with the certificate endpoint.
///
/// # Errors
/// The recording cannot be read.
pub fn exchanges() -> Result<Vec<Exchange>> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        note: String,
        port: u16,
        method: String,
        path: String,
        request_headers: Vec<(String, String)>,
        #[serde(default)]
        request_body_base64: String,
        client_certificate: Option<String>,
        status: Option<u16>,
        #[serde(default)]
        response_headers: Vec<(String, String)>,
        #[serde(default)]
        response_body_base64: String,
    }
    let decode = |text: &str| STANDARD.decode(text).with_context(|| format!("no base64: {text}"));
    let exchange = |line: Line| -> Result<Exchange> {
        Ok(Exchange {
            body: decode(&line.request_body_base64)?,
            answer: decode(&line.response_body_base64)?,
            note: line.note,
            method: line.method,
            path: line.path,
            headers: line.request_headers,
            client_certificate: line.client_certificate,
            status: line.status,
            answer_headers: line.response_headers,
            port: line.port,
        })
    };
    lines("https-registration")?.into_iter().map(exchange).collect()
}

fn lines<T: for<'a> Deserialize<'a>>(recording: &str) -> Result<Vec<T>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{recording}.jsonl"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let parse = |line| serde_json::from_str(line).with_context(|| format!("{}: {line:.80}", path.display()));
    text.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_are_read_whole() {
        let frames = frames("wire-fresh-node").expect("recording");
        assert_eq!(frames.len(), 50);
        assert_eq!(frames[0].direction, Direction::FromEdge);
        assert_eq!((frames[0].route("operation"), frames[3].parent()), ("keepalive", frames[2].id()));
        let exchanges = exchanges().expect("recording");
        assert!(exchanges.iter().any(|exchange| exchange.path == "/edge.crt" && exchange.status == Some(200)));
    }
}
