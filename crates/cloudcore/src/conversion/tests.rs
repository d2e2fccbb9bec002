//! Objects as people write them, and whatever else the schemas allow, there and back.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::parts::is_same;
use super::webhook::review;
use super::{ALPHA, BETA, convert};

fn object(version: &str, kind: &str, body: Value) -> Value {
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "d", "namespace": "default", "labels": {"a": "b"}}});
    object.as_object_mut().expect("object").extend(body.as_object().expect("body").clone());
    object
}

fn to(object: &Value, version: &str) -> Value {
    convert(object.clone(), version).unwrap_or_else(|error| panic!("{error}: {object}"))
}

fn kept(object: &Value, version: &str) -> Value {
    object["metadata"]["annotations"][version]
        .as_str()
        .map_or(Value::Null, |text| serde_json::from_str(text).expect("JSON"))
}

/// The device of KubeEdge's documents of that time.
fn sensor_tag() -> Value {
    object(
        ALPHA,
        "Device",
        json!({
            "spec": {
                "deviceModelRef": {"name": "sensor-tag-model"},
                "protocol": {
                    "modbus": {"slaveID": 1},
                    "common": {"com": {"serialPort": "/dev/ttyS0", "baudRate": 9600, "dataBits": 8, "parity": "even", "stopBits": 1},
                        "collectTimeout": 50, "customizedValues": {"def1": "def1-val"}},
                },
                "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "", "operator": "In", "values": ["node1"]}]}]},
                "propertyVisitors": [
                    {"propertyName": "temperature", "collectCycle": 500, "reportCycle": 1000,
                        "modbus": {"register": "CoilRegister", "offset": 2, "limit": 1, "scale": 1.5, "isSwap": true, "isRegisterSwap": true}},
                    {"propertyName": "temperature-enable", "modbus": {"register": "DiscreteInputRegister", "offset": 3, "limit": 1},
                        "customizedValues": {"x": 1}},
                ],
                "data": {"dataTopic": "$ke/events/device/+/data/update", "dataProperties": [{"propertyName": "pressure", "metadata": {"type": "int"}}]},
            },
            "status": {"twins": [{"propertyName": "temperature-enable", "desired": {"value": "OFF", "metadata": {"type": "string"}},
                "reported": {"value": "unknown", "metadata": {"timestamp": "1550049403598", "type": "string"}}}]},
        }),
    )
}

/// One with all that only v1beta1 has.
fn thermometer() -> Value {
    object(
        BETA,
        "Device",
        json!({
            "spec": {
                "deviceModelRef": {"name": "thermometer"},
                "nodeName": "edge-1",
                "protocol": {"protocolName": "modbus", "configData": {"communicateMode": "rtu", "baudRate": 9600, "slaveID": 1, "serialPort": "/dev/ttyS0", "protocolID": 1, "isSwap": true}},
                "properties": [
                    {"name": "temperature", "collectCycle": 1000, "reportCycle": 2000, "reportToCloud": true,
                        "desired": {"value": "21", "metadata": {"type": "int"}},
                        "visitors": {"protocolName": "modbus", "configData": {"register": "CoilRegister", "offset": 2, "scale": 1, "unitOfOurOwn": "K", "serialPort": "/dev/ttyS9"}},
                        "pushMethod": {"mqtt": {"address": "tcp://127.0.0.1:1883", "topic": "t", "qos": 0, "retained": false}}},
                    {"name": "humidity", "desired": {"value": "1"}},
                    {"name": "plain"},
                ],
                "methods": [{"name": "set", "description": "sets", "propertyNames": ["temperature"]}],
                "stateReport": {"reportToCloud": true, "reportCycle": 5},
            },
            "status": {"reportToCloud": true, "reportCycle": 7},
        }),
    )
}

#[test]
fn an_old_device_means_the_same_in_v1beta1() {
    let old = sensor_tag();
    let new = to(&old, BETA);
    assert_eq!(
        new["spec"],
        json!({
            "deviceModelRef": {"name": "sensor-tag-model"},
            "nodeName": "node1",
            "protocol": {"protocolName": "modbus", "configData": {"slaveID": 1, "serialPort": "/dev/ttyS0", "baudRate": 9600, "dataBits": 8, "parity": "even",
                "stopBits": 1, "collectTimeout": 50, "customizedValues": {"def1": "def1-val"}}},
            "properties": [
                {"name": "temperature", "collectCycle": 500, "reportCycle": 1000, "reportToCloud": true, "visitors": {"protocolName": "modbus", "configData":
                    {"register": "CoilRegister", "offset": 2, "limit": 1, "scale": 1.5, "isSwap": true, "isRegisterSwap": true}}},
                {"name": "temperature-enable", "reportToCloud": true, "desired": {"value": "OFF", "metadata": {"type": "string"}}, "visitors": {"protocolName": "modbus", "configData":
                    {"register": "DiscreteInputRegister", "offset": 3, "limit": 1, "customizedValues": {"x": 1}}}},
            ],
        })
    );
    assert_eq!(kept(&new, ALPHA), json!({"spec": {"data": old["spec"]["data"]}}), "what has no place, and no more");
    assert_eq!(new["status"]["twins"][0]["reported"]["value"], "unknown");
    assert_eq!(to(&new, ALPHA), old);
}

#[test]
fn a_new_device_can_be_seen_and_changed_by_old_clients() {
    let new = thermometer();
    let mut old = to(&new, ALPHA);
    assert_eq!(
        old["spec"]["protocol"],
        json!({"modbus": {"slaveID": 1}, "common": {"com": {"baudRate": 9600, "serialPort": "/dev/ttyS0"}}})
    );
    assert_eq!(old["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"], json!(["edge-1"]));
    assert_eq!(
        old["spec"]["propertyVisitors"][0],
        json!({"propertyName": "temperature", "collectCycle": 1000, "reportCycle": 2000,
        "modbus": {"register": "CoilRegister", "offset": 2, "scale": 1}})
    );
    assert_eq!(old["status"]["twins"][1], json!({"propertyName": "humidity", "desired": {"value": "1"}}));
    assert_eq!(to(&old, BETA), new);

    // Somebody changes what both can say; the rest stays.
    old["spec"]["protocol"]["modbus"]["slaveID"] = json!(9);
    old["spec"]["propertyVisitors"][0]["modbus"]["offset"] = json!(4);
    old["status"]["twins"][0]["desired"]["value"] = json!("25");
    old["spec"]["propertyVisitors"].as_array_mut().expect("list").remove(2);
    let mut expected = new.clone();
    expected["spec"]["protocol"]["configData"]["slaveID"] = json!(9);
    expected["spec"]["properties"][0]["visitors"]["configData"]["offset"] = json!(4);
    expected["spec"]["properties"][0]["desired"]["value"] = json!("25");
    expected["spec"]["properties"].as_array_mut().expect("list").remove(2);
    assert_eq!(to(&old, BETA), expected);

    // Another protocol: what was kept of the first contradicts it.
    old["spec"]["protocol"] = json!({"opcua": {"url": "opc.tcp://x"}});
    assert_eq!(
        to(&old, BETA)["spec"]["protocol"],
        json!({"protocolName": "opcua", "configData": {"url": "opc.tcp://x"}})
    );
}

#[test]
fn what_new_clients_change_counts_for_old_ones() {
    let mut old = sensor_tag();
    old["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["key"] = json!("kubernetes.io/hostname");
    let mut new = to(&old, BETA);
    assert_eq!(new["spec"]["nodeName"], "node1");
    assert_eq!(kept(&new, ALPHA)["nodeSelector"], old["spec"]["nodeSelector"]);
    assert_eq!(to(&new, ALPHA), old);
    new["spec"]["nodeName"] = json!("node2");
    new["spec"]["properties"][0]["desired"] = json!({"value": "3"});
    let changed = to(&new, ALPHA);
    let expressions = &changed["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"];
    assert_eq!(*expressions, json!([{"key": "", "operator": "In", "values": ["node2"]}]));
    assert_eq!(changed["spec"]["data"], old["spec"]["data"]);
    assert_eq!(changed["status"]["twins"][0], json!({"propertyName": "temperature", "desired": {"value": "3"}}));
    assert_eq!(to(&changed, BETA)["spec"], new["spec"]);
}

#[test]
fn the_cloud_hears_of_every_property_of_an_old_device() {
    let mut old = sensor_tag();
    let twin = json!({"propertyName": "without-visitor", "desired": {"value": "1"}});
    old["status"]["twins"].as_array_mut().expect("list").push(twin);
    let mut new = to(&old, BETA);
    for property in new["spec"]["properties"].as_array().expect("list") {
        assert_eq!(property["reportToCloud"], true, "{property}");
    }
    assert_eq!(to(&new, ALPHA), old);
    new["spec"]["properties"][0]["reportToCloud"] = json!(false);
    assert_eq!(to(&to(&new, ALPHA), BETA)["spec"]["properties"][0]["reportToCloud"], false);

    // What the new version says counts, also if it says nothing; a property that an old client adds is reported.
    let beta = |properties: Value| object(BETA, "Device", json!({"spec": {"properties": properties}}));
    let new = beta(
        json!([{"name": "yes", "reportToCloud": true}, {"name": "no", "reportToCloud": false}, {"name": "nothing"}]),
    );
    let mut old = to(&new, ALPHA);
    assert_eq!(
        kept(&old, BETA),
        json!({"properties": {"no": {"reportToCloud": false}, "nothing": {"reportToCloud": null}}})
    );
    assert_eq!(to(&old, BETA), new);
    old["spec"]["propertyVisitors"].as_array_mut().expect("list").push(json!({"propertyName": "added"}));
    let changed = to(&old, BETA);
    let reported: Vec<&Value> =
        changed["spec"]["properties"].as_array().expect("list").iter().map(|p| &p["reportToCloud"]).collect();
    assert_eq!(reported, [&json!(true), &json!(false), &Value::Null, &json!(true)]);
    // A twin is left of a property whose visitor an old client took away.
    let new = beta(json!([{"name": "quiet", "desired": {"value": "1"}}]));
    let mut old = to(&new, ALPHA);
    old["spec"]["propertyVisitors"] = json!([]);
    assert_eq!(to(&old, BETA)["spec"]["properties"], json!([{"name": "quiet", "desired": {"value": "1"}}]));
}

#[test]
fn models_there_and_back() {
    let old = object(
        ALPHA,
        "DeviceModel",
        json!({"spec": {"protocol": "modbus", "properties": [
            {"name": "t", "description": "temperature", "type": {"int": {"accessMode": "ReadWrite", "defaultValue": 1, "minimum": -5, "maximum": 100, "unit": "K"}}},
            {"name": "f", "type": {"double": {"accessMode": "ReadOnly", "minimum": 0.5, "maximum": 10.0}}},
            {"name": "s", "type": {"string": {"accessMode": "ReadWrite", "defaultValue": "OFF"}}},
            {"name": "b", "type": {"boolean": {"accessMode": "ReadOnly"}}},
        ]}}),
    );
    let mut new = to(&old, BETA);
    assert_eq!(
        new["spec"]["properties"],
        json!([
            {"name": "t", "description": "temperature", "type": "INT", "accessMode": "ReadWrite", "minimum": "-5", "maximum": "100", "unit": "K"},
            {"name": "f", "type": "DOUBLE", "accessMode": "ReadOnly", "minimum": "0.5", "maximum": "10"},
            {"name": "s", "type": "STRING", "accessMode": "ReadWrite"},
            {"name": "b", "type": "BOOLEAN", "accessMode": "ReadOnly"},
        ])
    );
    assert!(is_same(Some(&to(&new, ALPHA)), Some(&old)));
    new["spec"]["properties"][0]["maximum"] = json!("200");
    let changed = to(&new, ALPHA);
    assert_eq!(
        changed["spec"]["properties"][0]["type"]["int"],
        json!({"accessMode": "ReadWrite", "defaultValue": 1, "minimum": -5, "maximum": 200, "unit": "K"})
    );

    let new = object(
        BETA,
        "DeviceModel",
        json!({"spec": {"protocol": "p", "protocolConfigData": {"x": 1}, "properties": [
            {"name": "video", "type": "STREAM", "accessMode": "ReadOnly"},
            {"name": "odd", "type": "INT", "minimum": "lots", "maximum": "10", "visitors": {"protocolName": "p"}},
            {"name": "fine", "type": "FLOAT", "minimum": "10.0"},
        ]}}),
    );
    let mut old = to(&new, ALPHA);
    assert_eq!(
        old["spec"]["properties"],
        json!([{"name": "video"}, {"name": "odd", "type": {"int": {"maximum": 10}}}, {"name": "fine", "type": {"float": {"minimum": 10.0}}}])
    );
    assert_eq!(to(&old, BETA), new);
    old["spec"]["properties"][1]["type"]["int"]["maximum"] = json!(11);
    let changed = to(&old, BETA);
    assert_eq!(changed["spec"]["properties"][0], new["spec"]["properties"][0], "v1alpha2 has no streams");
    assert_eq!(changed["spec"]["properties"][1]["maximum"], "11");
    assert_eq!(changed["spec"]["properties"][1]["visitors"], json!({"protocolName": "p"}));
}

#[test]
fn statuses_there_and_back() {
    let new = object(
        BETA,
        "DeviceStatus",
        json!({"status": {"state": "online", "lastOnlineTime": "2026-01-01T00:00:00Z", "twins": [
            {"propertyName": "t", "reported": {"value": "1"}, "observedDesired": {"value": "2"}}]}}),
    );
    let old = to(&new, ALPHA);
    assert_eq!(old["twins"], json!([{"propertyName": "t", "reported": {"value": "1"}, "desired": {"value": "2"}}]));
    assert_eq!((&old["status"], &old["spec"]), (&Value::Null, &Value::Null));
    assert_eq!(to(&old, BETA), new);
}

#[test]
fn what_has_no_counterpart_is_named_with_its_cure() {
    let device = |spec: Value| object(ALPHA, "Device", json!({"spec": spec}));
    let selector = |expressions: Value| {
        device(json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}))
    };
    for (object, texts) in [
        (
            selector(json!([{"key": "", "operator": "In", "values": ["a", "b"]}])),
            ["spec.nodeSelector", "exactly one node", "one value"],
        ),
        (
            selector(json!([{"key": "", "operator": "NotIn", "values": ["a"]}])),
            ["spec.nodeSelector", "exactly one node", "operator In"],
        ),
        (
            selector(json!([{"key": "zone", "operator": "In", "values": ["a"]}])),
            ["spec.nodeSelector", "label", "kubernetes.io/hostname"],
        ),
        (
            device(json!({"protocol": {"modbus": {}, "opcua": {}}})),
            ["spec.protocol", "opcua and modbus are both set", "remove one"],
        ),
        (
            device(json!({"propertyVisitors": [{"propertyName": "t", "modbus": {}, "bluetooth": {}}]})),
            ["spec.propertyVisitors (of property \"t\")", "modbus and bluetooth", "remove one"],
        ),
        (device(json!({"propertyVisitors": "x"})), ["spec.propertyVisitors", "another type", "must be a list"]),
        (
            object(
                ALPHA,
                "DeviceModel",
                json!({"spec": {"properties": [{"name": "p", "type": {"int": {}, "float": {}}}]}}),
            ),
            ["property \"p\"", "both int and float", "remove one"],
        ),
        (object(ALPHA, "Pod", json!({})), ["kind", "Pod", "DeviceModel"]),
        (object("devices.kubeedge.io/v1alpha1", "Device", json!({})), ["apiVersion", "v1alpha1", "use devices"]),
        (
            device(json!({"data": {"x": "y".repeat(300 << 10)}})),
            ["metadata.annotations", "takes", "read and write it as"],
        ),
    ] {
        let error = convert(object, BETA).expect_err(texts[1]).to_string();
        assert!(texts.iter().all(|text| error.contains(text)), "{error}");
    }
}

#[test]
fn a_spoilt_annotation_is_nothing() {
    for spoilt in [
        json!("{"),
        json!("[]"),
        json!(r#"{"properties":7,"spec":[]}"#),
        json!(r#"{"spec":{"nodeName":"evil"},"whole":{"digest":"x","body":{}}}"#),
    ] {
        let mut old = sensor_tag();
        old["metadata"]["annotations"] = json!({BETA: spoilt});
        assert_eq!(to(&old, BETA)["spec"], to(&sensor_tag(), BETA)["spec"], "{spoilt}");
    }
}

#[test]
fn a_kept_part_of_a_wrong_shape_is_ignored_and_the_others_count() {
    let methods = json!([{"name": "reset"}]);
    for (spoilt, good) in [
        (json!({"spec": {"stateReport": "x"}, "status": {"state": "ok"}}), ("/status/state", json!("ok"))),
        (json!({"spec": {"methods": methods}, "status": {"reportCycle": "x"}}), ("/spec/methods", methods.clone())),
        (json!({"spec": {"methods": methods}, "status": 7}), ("/spec/methods", methods.clone())),
        (
            json!({"spec": {"methods": methods}, "properties": {"temperature": {"pushMethod": [1]}}}),
            ("/spec/methods", methods.clone()),
        ),
        (
            json!({"spec": {"methods": methods}, "properties": {"temperature": {"visitors": {"protocolName": "modbus", "configData": {"x": 1}}, "reportToCloud": "yes"}}}),
            ("/spec/methods", methods.clone()),
        ),
    ] {
        let mut old = sensor_tag();
        old["metadata"]["annotations"] = json!({BETA: spoilt.to_string()});
        let new = to(&old, BETA);
        assert_eq!(new.pointer(good.0), Some(&good.1), "{spoilt}: {new}");
        let misfits = super::schemas::misfits(BETA, "Device", new.as_object().expect("object"));
        assert!(misfits.is_empty(), "{spoilt}: {misfits:?}");
    }
    // The whole, with a digest that anybody can find out.
    let mut old = sensor_tag();
    let body = json!({"spec": {"nodeName": 7}});
    let digest = super::digest(&super::Fields::from_iter(
        ["spec", "status"].map(|field| (field.to_owned(), old[field].clone())),
    ));
    old["metadata"]["annotations"] = json!({BETA: json!({"whole": {"digest": digest, "body": body}}).to_string()});
    assert_eq!(to(&old, BETA)["spec"], to(&sensor_tag(), BETA)["spec"]);
    // The same the other way.
    let mut new = thermometer();
    new["metadata"]["annotations"] = json!({ALPHA: json!({"spec": {"data": 7}}).to_string()});
    assert_eq!(to(&new, ALPHA)["spec"], to(&thermometer(), ALPHA)["spec"]);
}

#[test]
fn what_is_too_long_to_be_kept_can_be_read_and_is_not_written_back() {
    let mut new = thermometer();
    new["spec"]["methods"] = json!([{"name": "m", "description": "x".repeat(super::MAX_KEPT)}]);
    let old = to(&new, ALPHA);
    assert_eq!(old["spec"], to(&thermometer(), ALPHA)["spec"]);
    let error = convert(old, BETA).expect_err("its methods would be lost").to_string();
    assert!(error.contains("bytes that only") && error.contains("write it as devices.kubeedge.io/v1beta1"), "{error}");
}

#[tokio::test]
async fn reviews_are_answered_in_order_or_refused_as_a_whole() {
    let ask = |objects: Value| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "request": {"uid": "u\"1", "desiredAPIVersion": BETA, "objects": objects}}).to_string()
    };
    let answer = async |text: String| -> Value {
        serde_json::from_str(&review(text.as_bytes()).await.expect("answered")).expect("JSON")
    };
    let mut second = thermometer();
    second["metadata"]["name"] = json!("e");
    let good = answer(ask(json!([sensor_tag(), second]))).await;
    assert_eq!(good["response"]["uid"], "u\"1");
    assert_eq!(good["response"]["result"]["status"], "Success");
    let names: Vec<&Value> =
        good["response"]["convertedObjects"].as_array().expect("list").iter().map(|o| &o["metadata"]["name"]).collect();
    assert_eq!(names, ["d", "e"]);
    let bad = answer(ask(json!([sensor_tag(), 7]))).await;
    assert_eq!(
        (&bad["response"]["result"]["status"], &bad["response"]["convertedObjects"]),
        (&json!("Failure"), &json!([]))
    );
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let text = ask(json!(["DEEP"])).replace("\"DEEP\"", &deep);
    match review(text.as_bytes()).await {
        Ok(answer) => assert!(answer.contains("Failure"), "{answer}"),
        Err(error) => assert!(error.to_string().contains("recursion"), "{error}"),
    }
    review(b"{}").await.expect_err("no review");
}

// What the schemas allow.

fn name() -> impl Strategy<Value = Value> {
    prop::sample::select(vec!["t", "u", "v", ""]).prop_map(Value::from)
}

fn scalar() -> BoxedStrategy<Value> {
    prop_oneof![
        any::<i32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-z0-9.]{0,6}".prop_map(Value::from),
        (-1e6..1e6).prop_map(|f: f64| json!(f))
    ]
    .boxed()
}

fn fields(entries: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let entries: Vec<_> =
        entries.into_iter().map(|(name, value)| prop::option::of(value).prop_map(move |value| (name, value))).collect();
    entries
        .prop_map(|entries| {
            entries
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        })
        .boxed()
}

fn list(item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop::collection::vec(item, 0..4).prop_map(Value::from).boxed()
}

fn word(words: &[&'static str]) -> BoxedStrategy<Value> {
    prop::sample::select(words.to_vec()).prop_map(Value::from).boxed()
}

fn config() -> BoxedStrategy<Value> {
    let names = ["slaveID", "register", "offset", "baudRate", "url", "customizedValues", "dataConverter", "own"];
    fields(
        names
            .map(|name| {
                (
                    name,
                    prop_oneof![scalar(), Just(json!({"x": 1})), Just(json!(9600)), Just(json!("CoilRegister"))]
                        .boxed(),
                )
            })
            .to_vec(),
    )
}

fn one_of(names: [(&'static str, BoxedStrategy<Value>); 3]) -> BoxedStrategy<Value> {
    let own = fields(vec![("protocolName", word(&["modbus", "own", ""])), ("configData", config())]);
    let mut all: Vec<BoxedStrategy<Value>> =
        names.into_iter().map(|(name, value)| value.prop_map(move |value| json!({name: value})).boxed()).collect();
    all.push(own.prop_map(|own| json!({"customizedProtocol": own})).boxed());
    all.push(Just(json!({})).boxed());
    prop::strategy::Union::new(all).boxed()
}

fn merged(one: BoxedStrategy<Value>, other: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    (one, other)
        .prop_map(|(mut one, other)| {
            one.as_object_mut().expect("object").extend(other.as_object().expect("object").clone());
            one
        })
        .boxed()
}

fn value() -> BoxedStrategy<Value> {
    prop::sample::select(vec![json!({"value": "1", "metadata": {"type": "int"}}), json!({"value": ""})]).boxed()
}

fn alpha_device() -> BoxedStrategy<Value> {
    let protocol = one_of([
        ("modbus", fields(vec![("slaveID", any::<i64>().prop_map(Value::from).boxed())])),
        (
            "opcua",
            fields(vec![
                ("url", scalar().prop_map(|v| json!(v.to_string())).boxed()),
                ("timeout", Just(json!(1)).boxed()),
            ]),
        ),
        ("bluetooth", fields(vec![("macAddress", Just(json!("a:b")).boxed())])),
    ]);
    let common = fields(vec![(
        "common",
        fields(vec![
            ("com", fields(vec![("baudRate", Just(json!(9600)).boxed()), ("parity", word(&["none", "odd"]))])),
            ("tcp", fields(vec![("port", Just(json!(5)).boxed())])),
            ("collectType", word(&["sync"])),
            ("customizedValues", config()),
        ]),
    )]);
    let visitor = merged(
        one_of([
            ("modbus", fields(vec![("register", word(&["CoilRegister"])), ("scale", scalar().prop_filter("number", Value::is_number).boxed()), ("isSwap", any::<bool>().prop_map(Value::from).boxed())])),
            ("opcua", fields(vec![("nodeID", word(&["n"]))])),
            ("bluetooth", fields(vec![("dataWrite", Just(json!({"ON": "AQ=="})).boxed()), ("dataConverter", Just(json!({"startIndex": 1, "orderOfOperations": [{"operationType": "Multiply", "operationValue": 0.03125}]})).boxed())])),
        ]),
        fields(vec![("propertyName", name().boxed()), ("reportCycle", Just(json!(5)).boxed()), ("collectCycle", Just(json!(6)).boxed()), ("customizedValues", config())]),
    );
    let expression = fields(vec![
        ("key", word(&["", "kubernetes.io/hostname"])),
        ("operator", Just(json!("In")).boxed()),
        ("values", Just(json!(["n"])).boxed()),
    ]);
    let expression = expression.prop_map(|mut e| {
        e["operator"] = json!("In");
        if e.get("key").is_none() {
            e["key"] = json!("");
        }
        e
    });
    let selector = prop_oneof![
        expression.prop_map(|e| json!({"nodeSelectorTerms": [{"matchExpressions": [e]}]})),
        Just(json!({"nodeSelectorTerms": []}))
    ];
    let spec = fields(vec![
        ("deviceModelRef", Just(json!({"name": "m"})).boxed()),
        ("nodeSelector", selector.boxed()),
        ("protocol", merged(protocol, common)),
        ("propertyVisitors", list(visitor)),
        ("data", Just(json!({"dataTopic": "t"})).boxed()),
    ]);
    let twin = fields(vec![("propertyName", name().boxed()), ("desired", value()), ("reported", value())]);
    fields(vec![("spec", spec), ("status", fields(vec![("twins", list(twin))]))])
        .prop_map(|body| object(ALPHA, "Device", body))
        .boxed()
}

fn beta_device() -> BoxedStrategy<Value> {
    let protocol =
        || fields(vec![("protocolName", word(&["modbus", "opcua", "bluetooth", "own", ""])), ("configData", config())]);
    let property = fields(vec![
        ("name", name().boxed()),
        ("desired", value()),
        ("visitors", protocol()),
        ("reportCycle", Just(json!(5)).boxed()),
        ("reportToCloud", any::<bool>().prop_map(Value::from).boxed()),
        ("pushMethod", Just(json!({"otel": {"endpointURL": "u"}})).boxed()),
    ]);
    let spec = fields(vec![
        ("deviceModelRef", Just(json!({"name": "m"})).boxed()),
        ("nodeName", word(&["n", ""])),
        ("protocol", protocol()),
        ("properties", list(property)),
        ("methods", Just(json!([{"name": "m"}])).boxed()),
        ("stateReport", Just(json!({"reportCycle": 1})).boxed()),
    ]);
    let twin = fields(vec![("propertyName", name().boxed()), ("observedDesired", value()), ("reported", value())]);
    let status = fields(vec![("twins", list(twin)), ("state", word(&["ok"])), ("reportCycle", Just(json!(1)).boxed())]);
    fields(vec![("spec", spec), ("status", status)]).prop_map(|body| object(BETA, "Device", body)).boxed()
}

fn alpha_model() -> BoxedStrategy<Value> {
    let number = || scalar().prop_filter("number", Value::is_number).boxed();
    let whole = || any::<i64>().prop_map(Value::from).boxed();
    let own = |limit: &dyn Fn() -> BoxedStrategy<Value>| {
        fields(vec![
            ("accessMode", word(&["ReadOnly"])),
            ("defaultValue", limit()),
            ("minimum", limit()),
            ("maximum", limit()),
            ("unit", word(&["K", ""])),
        ])
    };
    let kinds = prop_oneof![
        own(&whole).prop_map(|v| json!({"int": v})),
        own(&number).prop_map(|v| json!({"double": v})),
        own(&number).prop_map(|v| json!({"float": v})),
        Just(json!({"string": {"defaultValue": "x"}})),
        Just(json!({"bytes": {}})),
        Just(json!({}))
    ];
    let property = fields(vec![("name", name().boxed()), ("description", word(&["x"])), ("type", kinds.boxed())]);
    fields(vec![("spec", fields(vec![("protocol", word(&["p"])), ("properties", list(property))]))])
        .prop_map(|body| object(ALPHA, "DeviceModel", body))
        .boxed()
}

fn beta_model() -> BoxedStrategy<Value> {
    let limit = || word(&["1", "1.5", "1e3", "10.0", "NaN", "inf", "", "many", "99999999999999999999", "-0"]);
    let property = fields(vec![
        ("name", name().boxed()),
        ("type", word(&["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM"])),
        ("accessMode", word(&["ReadWrite"])),
        ("minimum", limit()),
        ("maximum", limit()),
        ("unit", word(&["K"])),
        ("visitors", Just(json!({"protocolName": "p"})).boxed()),
    ]);
    fields(vec![(
        "spec",
        fields(vec![("protocol", word(&["p"])), ("protocolConfigData", config()), ("properties", list(property))]),
    )])
    .prop_map(|body| object(BETA, "DeviceModel", body))
    .boxed()
}

/// Anything, with names that mean something in places where they mean nothing.
fn nonsense() -> BoxedStrategy<Value> {
    let names = [
        "spec",
        "status",
        "protocol",
        "properties",
        "propertyVisitors",
        "twins",
        "desired",
        "reported",
        "visitors",
        "configData",
        "protocolName",
        "name",
        "propertyName",
        "type",
        "int",
        "modbus",
        "common",
        "com",
        "customizedProtocol",
        "nodeSelector",
        "nodeSelectorTerms",
        "matchExpressions",
        "values",
        "whole",
        "digest",
        "body",
        "object",
        "minimum",
    ];
    let leaf = prop_oneof![scalar(), Just(Value::Null), word(&["modbus", "INT", "In", "kubernetes.io/hostname"])];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        let key = prop::sample::select(names.to_vec()).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
    .boxed()
}

/// There and back nothing is lost; and what is kept is no more than the first time, however often it goes there and back.
fn returns(object: &Value, version: &str) -> Result<(), TestCaseError> {
    let own = object["apiVersion"].as_str().expect("version");
    let there = to(object, version);
    let back = to(&there, own);
    prop_assert!(is_same(Some(&back), Some(object)), "\n{object}\n{there}\n{back}");
    prop_assert!(is_same(Some(&to(&back, version)), Some(&there)));
    // As a program in Go would write it: without what is empty, whole numbers without a point.
    let rewritten = super::parts::normal(&there);
    prop_assert!(is_same(Some(&to(&rewritten, own)), Some(object)), "\n{object}\n{rewritten}\n{}", to(&rewritten, own));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn old_devices_return(device in alpha_device()) { returns(&device, BETA)?; }

    #[test]
    fn new_devices_return(device in beta_device()) { returns(&device, ALPHA)?; }

    #[test]
    fn old_models_return(model in alpha_model()) { returns(&model, BETA)?; }

    #[test]
    fn new_models_return(model in beta_model()) { returns(&model, ALPHA)?; }

    /// No object and no annotation is too odd for an answer.
    #[test]
    fn nonsense_is_answered(spec in nonsense(), status in nonsense(), kept in nonsense(), metadata in nonsense(), at in 0..6_usize) {
        let kind = ["Device", "DeviceModel", "DeviceStatus"][at % 3];
        let versions = if at < 3 { [ALPHA, BETA] } else { [BETA, ALPHA] };
        let body = json!({"spec": spec, "status": status, "twins": status, "metadata": {"annotations": {versions[1]: kept.to_string()}}});
        let _ = convert(object(versions[0], kind, body.clone()), versions[1]);
        let mut odd = object(versions[0], kind, body);
        odd["metadata"] = metadata;
        let _ = convert(odd, versions[1]);
    }

    /// What an old client does not touch stays, whatever it changes elsewhere.
    #[test]
    fn a_change_costs_nothing_elsewhere(device in beta_device(), node in "[a-z]{1,5}") {
        let mut old = to(&device, ALPHA);
        old["spec"]["nodeSelector"] = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "", "operator": "In", "values": [node]}]}]});
        let new = to(&old, BETA);
        prop_assert_eq!(&new["spec"]["nodeName"], &json!(node));
        for field in ["methods", "stateReport", "protocol", "deviceModelRef"] {
            prop_assert!(is_same(new["spec"].get(field), device["spec"].get(field)), "{}", field);
        }
        let pushes = |device: &Value| -> Vec<Value> { device["spec"]["properties"].as_array().into_iter().flatten().map(|p| p["pushMethod"].clone()).collect() };
        let names: Vec<&str> = device["spec"]["properties"].as_array().into_iter().flatten().map(|p| p["name"].as_str().unwrap_or_default()).collect();
        let is_unique = (1..names.len()).all(|at| !names[..at].contains(&names[at]));
        if is_unique { prop_assert_eq!(pushes(&new), pushes(&device)); }
    }
}
