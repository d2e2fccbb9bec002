use serde_json::json;

use super::*;
use crate::device::tests::property;

fn map(value: Json) -> Map<String, Json> {
    value.as_object().cloned().expect("an object")
}

#[test]
fn addresses() {
    let address = |host: &str, port, unit| Ok(Address { host: host.to_owned(), port, unit });
    assert_eq!(Address::new(&map(json!({"ip": "10.0.0.1"}))), address("10.0.0.1", 502, 1));
    let given = json!({"IP": "plc", "port": "1502", "slaveId": 7, "timeout": 3});
    assert_eq!(Address::new(&map(given)), address("plc", 1502, 7));
    for (config, part) in [
        (json!({}), "ip is needed"),
        (json!({"ip": "a", "port": 70000}), "port has to be 1 to 65535"),
        (json!({"ip": "a", "slaveID": 256}), "slaveID has to be 0 to 255"),
        (json!({"ip": "a", "slaveID": 1.5}), "slaveID in configData is no whole number"),
        (json!({"serialPort": "/dev/ttyS0"}), "Modbus TCP"),
    ] {
        let error = Address::new(&map(config)).expect_err("refused");
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn places() {
    let given = json!({"register": "HoldingRegister", "offset": 2, "limit": 2, "scale": "0.1", "isSwap": true, "isRegisterSwap": "true"});
    let place = Place::new(&property(Kind::Float, given)).expect("a place");
    assert_eq!((place.table, place.offset, place.count, place.scale), (Table::Holding, 2, 2, 0.1));
    assert!(place.swap_bytes && place.swap_words);
    let place =
        Place::new(&property(Kind::Boolean, json!({"Register": "coilregister", "offset": 65535}))).expect("a place");
    assert_eq!((place.table, place.offset, place.count, place.scale), (Table::Coil, 65535, 1, 1.0));
    for (kind, given, part) in [
        (Kind::Int, json!({"offset": 1}), "register \"\""),
        (Kind::Int, json!({"register": "InputRegister"}), "no offset"),
        (Kind::Int, json!({"register": "InputRegister", "offset": -1}), "offset has to be 0 to 65535"),
        (Kind::Int, json!({"register": "InputRegister", "offset": 1, "limit": 3}), "limit 3"),
        (Kind::Boolean, json!({"register": "CoilRegister", "offset": 1, "limit": 2}), "limit 2"),
        (Kind::Float, json!({"register": "CoilRegister", "offset": 1}), "BOOLEAN and INT"),
        (Kind::Text, json!({"register": "HoldingRegister", "offset": 1, "limit": 124}), "1 to 123"),
        (Kind::Int, json!({"register": "CoilRegister", "offset": 1, "limit": 65}), "1 to 64"),
        (Kind::Int, json!({"register": "HoldingRegister", "offset": 65535, "limit": 2}), "behind the last register"),
        (Kind::Int, json!({"register": "HoldingRegister", "offset": 1, "isSwap": 1}), "true or false"),
        (Kind::Int, json!({"register": "HoldingRegister", "offset": 1, "scale": "x"}), "scale"),
    ] {
        let error = Place::new(&property(kind, given)).expect_err(part);
        assert!(error.contains(part), "{part}: {error}");
    }
}
