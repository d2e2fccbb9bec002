//! Stand-ins for receivers of logs, which hold messages to their contracts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::task::JoinSet;

/// A receiver: what it was sent, and what it answers.
pub struct Receiver {
    /// Where it is.
    pub url: String,
    /// What it has taken.
    pub got: Arc<Mutex<Vec<Sent>>>,
    answers: Arc<Mutex<u16>>,
    _tasks: JoinSet<()>,
}

pub struct Sent {
    path: String,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Receiver {
    pub async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (got, answers) = (Arc::<Mutex<Vec<Sent>>>::default(), Arc::new(Mutex::new(204)));
        let (sent, status) = (got.clone(), answers.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (sent, status) = (sent.clone(), status.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (sent, status) = (sent.clone(), status.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let status = *status.lock().expect("lock");
                        // What was refused for a time is not kept: it comes again.
                        if status < 300 {
                            let path = head.uri.path().to_owned();
                            sent.lock().expect("lock").push(Sent { path, headers: head.headers, body });
                        }
                        let answer = Response::builder().status(status).body(Empty::<Bytes>::new());
                        Ok::<_, anyhow::Error>(answer?)
                    }
                });
                connections.spawn(async move {
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        Ok(Self { url, got, answers, _tasks: tasks })
    }

    pub fn answer(&self, status: u16) {
        *self.answers.lock().expect("lock") = status;
    }
}

/// A Loki's part: the lines of all messages, each of which keeps to its contract.
pub fn loki_lines(sent: &[Sent]) -> Result<String> {
    let mut text = String::new();
    for Sent { path, headers, body } in sent {
        ensure!(path == "/loki/api/v1/push" && headers["content-type"] == "application/json");
        ensure!(headers["x-scope-orgid"] == "edge" && body.len() <= 2 << 20);
        let message: serde_json::Value = serde_json::from_slice(body)?;
        for stream in message["streams"].as_array().context("no streams")? {
            let labels = json!({"namespace": "default", "pod": "web", "container": "main", "node": "n1"});
            ensure!(stream["stream"] == labels, "{stream}");
            for value in stream["values"].as_array().context("no values")? {
                ensure!(value.as_array().is_some_and(|value| value.len() == 2), "{value}");
                let time: i128 = value[0].as_str().context("a time is a text")?.parse()?;
                text.push_str(&format!("{time} {}\n", value[1].as_str().context("no line")?));
            }
        }
    }
    Ok(text)
}

/// The fields of a protobuf message: number and bytes; of fixed ones the eight bytes.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, &[u8])>> {
    fn varint(bytes: &mut &[u8]) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().context("it ends too early")?;
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        anyhow::bail!("a number that is too long")
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let length = match tag & 7 {
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?)?,
            other => anyhow::bail!("no field of wire type {other} is expected"),
        };
        let (field, rest) = bytes.split_at_checked(length).context("it ends too early")?;
        found.push((tag >> 3, field));
        bytes = rest;
    }
    Ok(found)
}

fn all(bytes: &[u8], number: u64) -> Result<Vec<&[u8]>> {
    Ok(fields(bytes)?.into_iter().filter(|(found, _)| *found == number).map(|(_, field)| field).collect())
}

fn one(bytes: &[u8], number: u64) -> Result<&[u8]> {
    all(bytes, number)?.first().copied().with_context(|| format!("no field {number}"))
}

/// A collector's part, by the numbers of opentelemetry-proto 1.x.
pub fn otlp_lines(sent: &[Sent]) -> Result<String> {
    let mut text = String::new();
    for Sent { path, headers, body } in sent {
        ensure!(path == "/v1/logs" && headers["content-type"] == "application/x-protobuf");
        for resource_logs in all(body, 1)? {
            let mut attributes = HashMap::new();
            for attribute in all(one(resource_logs, 1)?, 1)? {
                let value = one(one(attribute, 2)?, 1)?;
                attributes.insert(std::str::from_utf8(one(attribute, 1)?)?, std::str::from_utf8(value)?);
            }
            let names = ["k8s.namespace.name", "k8s.pod.name", "k8s.container.name", "k8s.node.name"];
            ensure!(names.map(|name| attributes[name]) == ["default", "web", "main", "n1"], "{attributes:?}");
            for scope_logs in all(resource_logs, 2)? {
                for record in all(scope_logs, 2)? {
                    let time = u64::from_le_bytes(one(record, 1)?.try_into()?);
                    ensure!(u64::from_le_bytes(one(record, 11)?.try_into()?) > 1 << 60, "when it was seen");
                    text.push_str(&format!("{time} {}\n", std::str::from_utf8(one(one(record, 5)?, 1)?)?));
                }
            }
        }
    }
    Ok(text)
}
