//! OpenTelemetry: OTLP/HTTP 1.x with protobuf (`POST /v1/logs`). The messages are what is needed of
//! `opentelemetry/proto/collector/logs/v1/logs_service.proto` and what that imports, with its numbers.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use prost::Message;

use super::push::Push;
use super::{Chunk, Counters, Line, Output, OutputError, Source};

/// The output.
pub(super) struct Otlp {
    push: Push,
}

#[derive(Message)]
struct ExportLogsServiceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_logs: Vec<ResourceLogs>,
}

#[derive(Message)]
struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_logs: Vec<ScopeLogs>,
}

#[derive(Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

/// Of a union the member `string_value`.
#[derive(Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    string_value: Option<String>,
}

#[derive(Message)]
struct ScopeLogs {
    #[prost(message, repeated, tag = "2")]
    log_records: Vec<LogRecord>,
}

#[derive(Message)]
struct LogRecord {
    #[prost(fixed64, tag = "1")]
    time_unix_nano: u64,
    #[prost(message, optional, tag = "5")]
    body: Option<AnyValue>,
    #[prost(fixed64, tag = "11")]
    observed_time_unix_nano: u64,
}

impl Otlp {
    pub(super) fn new(url: &str) -> impl FnOnce(Arc<Counters>) -> Self {
        let url = url.to_owned();
        move |counters| Self { push: Push::new(&url, "/v1/logs", "application/x-protobuf", counters) }
    }
}

impl Output for Otlp {
    const NAME: &'static str = "otlp";

    async fn take(&mut self, chunks: &[Chunk]) -> (usize, Result<(), OutputError>) {
        let lines = chunks.iter().map(|chunk| chunk.lines.len()).sum();
        if lines == 0 {
            return (chunks.len(), Ok(()));
        }
        match self.push.send(request(chunks, Timestamp::now()).encode_to_vec(), "", lines).await {
            Ok(()) => (chunks.len(), Ok(())),
            Err(error) => (0, Err(error)),
        }
    }

    async fn settle(&mut self) -> Result<(), OutputError> {
        Ok(())
    }
}

fn request(chunks: &[Chunk], now: Timestamp) -> ExportLogsServiceRequest {
    let mut resource_logs = Vec::<ResourceLogs>::new();
    let mut places = HashMap::new();
    for chunk in chunks.iter().filter(|chunk| !chunk.lines.is_empty()) {
        let place = *places.entry(&*chunk.source).or_insert_with(|| {
            let scope_logs = vec![ScopeLogs { log_records: Vec::new() }];
            resource_logs.push(ResourceLogs { resource: Some(resource(&chunk.source)), scope_logs });
            resource_logs.len() - 1
        });
        let records = chunk.lines.iter().map(|line| record(line, now));
        resource_logs[place].scope_logs[0].log_records.extend(records);
    }
    ExportLogsServiceRequest { resource_logs }
}

/// OpenTelemetry's names for what Kubernetes has.
fn resource(source: &Source) -> Resource {
    let attributes = [
        ("k8s.namespace.name", &source.namespace),
        ("k8s.pod.name", &source.pod),
        ("k8s.pod.uid", &source.uid),
        ("k8s.container.name", &source.container),
        ("k8s.node.name", &source.node),
    ];
    let attributes = attributes.map(|(key, value)| KeyValue { key: key.to_owned(), value: Some(text(value.clone())) });
    Resource { attributes: attributes.into() }
}

fn record(line: &Line, now: Timestamp) -> LogRecord {
    let nanoseconds = |time: Timestamp| u64::try_from(time.as_nanosecond()).unwrap_or_default();
    LogRecord {
        time_unix_nano: nanoseconds(line.time),
        body: Some(text(String::from_utf8_lossy(&line.text).into_owned())),
        observed_time_unix_nano: nanoseconds(now),
    }
}

fn text(text: String) -> AnyValue {
    AnyValue { string_value: Some(text) }
}
