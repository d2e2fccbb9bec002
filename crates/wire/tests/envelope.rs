//! The envelope's rules, one by one, and under random input.

use bytes::Bytes;
use proptest::prelude::*;
use wire::{AnswerError, Content, EdgeResource, Message, ParseError, Route, node_of, strip_node, with_node};

fn parse(text: &str) -> Result<Message, ParseError> {
    Message::parse(text.as_bytes())
}

#[test]
fn go_reads_keys_without_case_and_skips_unknown_ones() {
    let message = parse(
        r#"{"HEADER":{"Msg_ID":"a","msg_id":"b","x":[1]},"Route":{"SOURCE":"edged"},"y":{},"content":{"a":1}} trailing"#,
    )
    .expect("message");
    assert_eq!(message.header.msg_id, "b");
    assert_eq!(message.route.source, "edged");
    assert_eq!(message.content.raw(), br#"{"a":1}"#);
}

#[test]
fn missing_parts_are_accepted() {
    let message = parse("{}").expect("message");
    assert!(message.is_empty_envelope());
    let stopping = r#"{"header":{"msg_id":"","timestamp":0},"route":{},"content":null}"#;
    assert!(parse(stopping).expect("message").is_empty_envelope());
    assert_eq!(parse(stopping).expect("message").to_json(), stopping.as_bytes());
}

#[test]
fn wrong_types_and_garbage_are_errors() {
    for frame in [
        "",
        "null",
        "[]",
        "\"x\"",
        "{",
        r#"{"header":{"timestamp":"1"}}"#,
        r#"{"header":{"timestamp":1.5}}"#,
        r#"{"header":{"resourceversion":7}}"#,
        r#"{"header":[]}"#,
        r#"{"content":}"#,
    ] {
        assert!(matches!(parse(frame), Err(ParseError::Json(_))), "{frame}");
    }
    let deep = format!("{{\"content\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = parse(&deep).expect("the content is carried as text");
    assert!(deep.content.parse::<serde_json::Value>().is_err(), "but nobody can be made to overflow his stack by it");
    let long = vec![b' '; wire::MAX_MESSAGE_BYTES + 1];
    assert!(matches!(Message::parse(&long), Err(ParseError::TooLong(_))));
}

#[test]
fn a_response_copies_what_upstream_copies() {
    let request = parse(
        r#"{"header":{"msg_id":"A","timestamp":1,"resourceversion":"7","type":"channel"},"route":{"source":"edgecontroller","destination":"d","group":"resource","operation":"update","resource":"default/pod/nginx"},"content":{}}"#,
    )
    .expect("message");
    let ack = request.response("B".into(), 2, Content::ok());
    assert_eq!(
        String::from_utf8(ack.to_json()).expect("text"),
        r#"{"header":{"msg_id":"B","parent_msg_id":"A","timestamp":2,"type":"channel"},"route":{"source":"edgecontroller","group":"resource","operation":"response","resource":"default/pod/nginx"},"content":"OK"}"#
    );
    let error = request.error("C".into(), 3, "disk full");
    assert_eq!(error.route, Route::new("", "", "error", "default/pod/nginx"));
    assert_eq!(error.content.raw(), b"\"disk full\"");
}

#[test]
fn content_is_read_from_an_object_or_from_a_string_that_holds_it() {
    let object = Content::from_raw(Bytes::from_static(br#"{"a":1}"#)).expect("content");
    let string = Content::text(r#"{"a":1}"#);
    assert_eq!(object.payload(), string.payload());
    assert!(Content::from_raw(Bytes::from_static(b"{} {}")).is_err());
    assert!(Content::ok().is_ok() && Content::null().is_null());
}

#[test]
fn an_answer_has_one_of_three_forms() {
    let answer = |text: &'static str| Content::from_raw(Bytes::from_static(text.as_bytes())).expect("json").object();
    assert_eq!(answer(r#"{"Object":{"a":1},"Err":null}"#).expect("ok").expect("object").raw(), br#"{"a":1}"#);
    assert_eq!(answer(r#"{"Object":null,"Err":null}"#).expect("ok"), None);
    assert_eq!(answer(r#"{"kind":"Secret"}"#).expect("ok").expect("object").raw(), br#"{"kind":"Secret"}"#);
    let refused = r#"{"Object":{},"Err":{"ErrStatus":{"metadata":{},"reason":"AlreadyExists","code":409}}}"#;
    assert!(matches!(answer(refused), Err(AnswerError::Refused(s)) if s.code == 409));
    let refused = r#"{"ErrStatus":{"metadata":{},"message":"gone","reason":"NotFound","code":404}}"#;
    assert!(matches!(answer(refused), Err(AnswerError::Refused(s)) if s.reason == "NotFound"));
    assert!(matches!(answer("7"), Err(AnswerError::Shape(_))));
}

#[test]
fn resource_paths() {
    let pod = EdgeResource::parse("default/pod/web").expect("path");
    assert_eq!((pod.to_string().as_str(), pod.name()), ("default/pod/web", "web"));
    assert_eq!(EdgeResource::parse("default/pod").expect("list").name, None);
    for wrong in ["", "pod", "/pod/web", "default//web", "default/pod/", "a/b/c/d"] {
        assert!(EdgeResource::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(strip_node("node/edge1/default/pod/web"), "default/pod/web");
    assert_eq!(strip_node("node/edge1"), "node/edge1");
    assert_eq!(strip_node("upgrade/t1/node/edge1"), "upgrade/t1/node/edge1");
    assert_eq!(node_of("upgrade/t1/node/edge1"), Some("edge1"));
    assert_eq!(node_of("node//x"), None);
    assert_eq!(strip_node(&with_node("n", "null/node/n")), "null/node/n");
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        id in ".*", parent in ".*", resource in ".*", source in "[a-z_]*", timestamp in any::<i64>(), text in ".*",
    ) {
        let mut message = Message::new(id, timestamp, Route::new(&source, "resource", "update", &resource), Content::text(&text));
        message.header.parent_msg_id = parent;
        let again = Message::parse(&message.to_json()).expect("own message");
        prop_assert_eq!(again, message);
    }
}

/// A fuzz target that also runs as a plain test: no input panics, and what was read is read again alike.
#[test]
fn fuzz_parse() {
    bolero::check!().for_each(|input: &[u8]| {
        if let Ok(message) = Message::parse(input) {
            let again = Message::parse(&message.to_json()).expect("written by us");
            assert_eq!(again, message);
            let _ = message.content.object();
            let _ = EdgeResource::parse(&message.route.resource);
            let _ = (node_of(&message.route.resource), strip_node(&message.route.resource));
        }
    });
}
