//! Whatever the schemas allow, and nonsense.

use proptest::prelude::*;

use super::super::parts::{is_same, normal};
use super::*;

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
    let rewritten = normal(&there);
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
