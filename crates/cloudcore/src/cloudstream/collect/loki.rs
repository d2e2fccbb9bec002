//! Loki: its push API in JSON (`POST /loki/api/v1/push`, Grafana Loki 2 and 3).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use api::cloudcore::Loki as Settings;
use serde::Serialize;

use super::push::Push;
use super::{Chunk, Counters, Output, OutputError};

/// The output.
pub(super) struct Loki {
    push: Push,
    tenant: String,
}

#[derive(Serialize)]
struct Message<'a> {
    streams: Vec<Stream<'a>>,
}

#[derive(Serialize)]
struct Stream<'a> {
    stream: Labels<'a>,
    /// Nanoseconds since 1970 and the line.
    values: Vec<(String, Cow<'a, str>)>,
}

#[derive(Serialize)]
struct Labels<'a> {
    namespace: &'a str,
    pod: &'a str,
    container: &'a str,
    node: &'a str,
}

impl Loki {
    pub(super) fn new(settings: &Settings) -> impl FnOnce(Arc<Counters>) -> Self {
        let Settings { url, tenant } = settings.clone();
        move |counters| Self { push: Push::new(&url, "/loki/api/v1/push", "application/json", counters), tenant }
    }
}

impl Output for Loki {
    const NAME: &'static str = "loki";

    async fn take(&mut self, chunks: &[Chunk]) -> (usize, Result<(), OutputError>) {
        let Some((text, lines)) = message(chunks) else { return (chunks.len(), Ok(())) };
        match self.push.send(text, &self.tenant, lines).await {
            Ok(()) => (chunks.len(), Ok(())),
            Err(error) => (0, Err(error)),
        }
    }

    async fn settle(&mut self) -> Result<(), OutputError> {
        Ok(())
    }
}

/// A message, and how many lines it has; `None` without any.
fn message(chunks: &[Chunk]) -> Option<(Vec<u8>, usize)> {
    let mut streams = Vec::<Stream<'_>>::new();
    let mut places = HashMap::new();
    let mut lines = 0;
    for chunk in chunks.iter().filter(|chunk| !chunk.lines.is_empty()) {
        let source = &*chunk.source;
        let place = *places.entry(source).or_insert_with(|| {
            let stream = Labels {
                namespace: &source.namespace,
                pod: &source.pod,
                container: &source.container,
                node: &source.node,
            };
            streams.push(Stream { stream, values: Vec::new() });
            streams.len() - 1
        });
        let values =
            chunk.lines.iter().map(|line| (line.time.as_nanosecond().to_string(), String::from_utf8_lossy(&line.text)));
        lines += chunk.lines.len();
        streams[place].values.extend(values);
    }
    // Texts and numbers can always be written.
    let text = serde_json::to_vec(&Message { streams }).unwrap_or_default();
    (lines > 0).then_some((text, lines))
}
