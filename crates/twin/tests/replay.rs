//! Requests that were recorded with the Go edgecore get its answers here. Where they differ on purpose stands in [`answers`].

use std::collections::HashMap;

use serde_json::{Value, json};
use twin::payload::Request;
use twin::topic::Topic;
use twin::twin::{Outcome, Twin};

const RECORDED: &str = include_str!("golden/mqtt.txt");

#[test]
fn requests_get_the_recorded_answers() {
    let lines: Vec<(&str, &str)> = RECORDED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect();
    let mut twins: HashMap<String, Twin> = HashMap::new();
    let mut compared = 0;
    let mut at = 0;
    while let Some((topic, payload)) = lines.get(at).copied() {
        if is_answer(topic) && is_refusal(payload) {
            // Of a mapper's report, which nobody saw.
            at += 1;
            continue;
        }
        let told = |line: &&(&str, &str)| is_answer(line.0) && !line.0.ends_with("/result");
        let (request, first) = match is_answer(topic) {
            // A mapper's report is not on MQTT: its result says what it was.
            true => ((topic.trim_end_matches("/result").to_owned(), payload.to_owned()), at),
            false => ((topic.to_owned(), payload.to_owned()), at + 1),
        };
        let more = lines[first..].iter().take(1).chain(lines[first..].iter().skip(1).take_while(told));
        let recorded: Vec<Value> = match lines.get(first) {
            Some(line) if is_answer(line.0) => more.map(|line| normal(line.0, line.1)).collect(),
            _ => Vec::new(),
        };
        let expected: Vec<Value> = recorded.into_iter().map(as_ours).collect();
        let given = answers(&mut twins, &request.0, &request.1);
        assert_eq!(given, expected, "{} {}", request.0, request.1);
        compared += expected.len();
        at = first + expected.len();
    }
    assert!(compared > 100, "{compared}");
}

/// What a device hears, in its order. On purpose differs from the recording: a refusal always goes to the device's own topic, with the
/// request's id where it has one, and its text says what is wrong.
fn answers(twins: &mut HashMap<String, Twin>, topic: &str, payload: &str) -> Vec<Value> {
    let refused = |code: u16| vec![json!({"code": code})];
    let parsed = Topic::parse(topic).expect("a topic of a device");
    let (Topic::TwinUpdate(id) | Topic::CloudUpdated(id) | Topic::TwinGet(id)) = &parsed else {
        unreachable!("{topic} is not of a twin");
    };
    let request = match Request::parse(payload.as_bytes()) {
        Ok(request) => request,
        Err(refusal) => return refused(refusal.code()),
    };
    if id.name == "nobody" {
        return refused(404);
    }
    let twin = twins.entry(id.to_string()).or_default();
    let event = request.event_id.as_str();
    let outcome = match &parsed {
        Topic::TwinGet(_) => return vec![json!({"event_id": event, "timestamp": 0, "twin": twin.get()})],
        Topic::CloudUpdated(_) => request.entries().and_then(|entries| twin.sync(entries, 0)),
        _ => request.entries().and_then(|entries| twin.update(entries, 0)),
    };
    let Outcome { result, document, delta, .. } = match outcome {
        Ok(outcome) => outcome,
        Err(refusal) => return refused(refusal.code()),
    };
    let mut told = Vec::new();
    if matches!(parsed, Topic::TwinUpdate(_)) {
        told.push(json!({"event_id": event, "timestamp": 0, "twin": result}));
    }
    if !document.is_empty() {
        told.push(json!({"event_id": event, "timestamp": 0, "twin": document}));
    }
    if let Some(delta) = delta {
        told.push(json!({"event_id": "", "timestamp": 0, "twin": delta.twin, "delta": delta.delta}));
    }
    told
}

fn is_answer(topic: &str) -> bool {
    ["/result", "/document", "/delta"].iter().any(|end| topic.ends_with(end))
}

fn is_refusal(payload: &str) -> bool {
    payload.contains(r#""code":"#)
}

/// Without what differs from run to run.
fn normal(topic: &str, payload: &str) -> Value {
    let mut value: Value = serde_json::from_str(payload).expect("JSON");
    zero_timestamps(&mut value);
    if topic.ends_with("/delta") {
        value["event_id"] = "".into();
    }
    value
}

fn as_ours(recorded: Value) -> Value {
    match recorded.get("code") {
        Some(code) => json!({"code": code}),
        None => recorded,
    }
}

fn zero_timestamps(value: &mut Value) {
    if let Value::Object(fields) = value {
        for (name, field) in fields {
            match name.as_str() {
                "timestamp" => *field = 0.into(),
                _ => zero_timestamps(field),
            }
        }
    }
}
