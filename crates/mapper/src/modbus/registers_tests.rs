use serde_json::{Value as Json, json};

use super::*;
use crate::device::Property;
use crate::device::tests::property;

fn place(kind: Kind, limit: u16, more: Json, minimum: Option<f64>) -> Place {
    let mut visitor = json!({"register": "HoldingRegister", "offset": 0, "limit": limit});
    visitor.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    Place::new(&Property { minimum, ..property(kind, visitor) }).expect("a place")
}

/// Each is read as the value and written as the same registers.
#[test]
fn registers_and_values() {
    let (swap, words, both) =
        (json!({"isSwap": true}), json!({"isRegisterSwap": true}), json!({"isSwap": true, "isRegisterSwap": true}));
    let scale = |scale: f64| json!({"scale": scale});
    let pi = std::f32::consts::PI.to_bits();
    let (high, low) = ((pi >> 16) as u16, pi as u16);
    let table = [
        (Kind::Int, json!({}), None, vec![0xfffe], "65534"),
        (Kind::Int, json!({}), Some(-5.0), vec![0xfffe], "-2"),
        (Kind::Int, json!({}), None, vec![1, 2], "65538"),
        (Kind::Int, words.clone(), None, vec![2, 1], "65538"),
        (Kind::Int, swap.clone(), None, vec![0x0100, 0x0200], "65538"),
        (Kind::Int, both.clone(), None, vec![0x0200, 0x0100], "65538"),
        (Kind::Int, json!({}), Some(-5.0), vec![0xffff; 4], "-1"),
        (Kind::Int, json!({}), None, vec![0x7fff, 0xffff, 0xffff, 0xffff], "9223372036854775807"),
        (Kind::Int, scale(10.0), None, vec![3], "30"),
        (Kind::Int, scale(0.5), Some(-5.0), vec![0xfffe], "-1"),
        (Kind::Float, scale(0.1), None, vec![3], "0.3"),
        (Kind::Float, scale(0.1), Some(-50.0), vec![0xff38], "-20"),
        (Kind::Float, json!({}), None, vec![high, low], "3.1415927"),
        (Kind::Float, both, None, vec![low.swap_bytes(), high.swap_bytes()], "3.1415927"),
        (Kind::Double, json!({}), None, vec![0x3fb9, 0x9999, 0x9999, 0x999a], "0.1"),
        (Kind::Double, words, None, vec![0x999a, 0x9999, 0x9999, 0x3fb9], "0.1"),
        (Kind::Boolean, json!({}), None, vec![1], "true"),
        (Kind::Boolean, json!({}), None, vec![0], "false"),
        (Kind::Text, json!({}), None, vec![0x6162, 0x6300], "abc"),
        (Kind::Text, swap, None, vec![0x6261, 0x0063], "abc"),
        (Kind::Bytes, json!({}), None, vec![0x00ff, 0x0100], "00ff0100"),
    ];
    for (kind, more, minimum, registers, text) in table {
        let place = place(kind, registers.len() as u16, more, minimum);
        let value = value_of_words(&place, registers.clone()).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(value.to_string(), text);
        let wished = Value::parse(kind, text).expect("a value");
        assert_eq!(words_of_value(&place, &wished), Ok(registers), "{text}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let table = [
        (Kind::Int, 1, json!({}), None, "65536"),
        (Kind::Int, 1, json!({}), None, "-1"),
        (Kind::Int, 1, json!({}), Some(-1.0), "32768"),
        (Kind::Int, 4, json!({}), None, "-1"),
        (Kind::Int, 1, json!({"scale": 0.1}), None, "6554"),
        (Kind::Float, 1, json!({"scale": 0.1}), None, "6553.6"),
        (Kind::Float, 2, json!({}), None, "1e39"),
        (Kind::Float, 1, json!({"scale": 1e-300}), None, "1e300"),
        (Kind::Text, 1, json!({}), None, "abc"),
    ];
    for (kind, limit, more, minimum, text) in table {
        let place = place(kind, limit, more, minimum);
        let value = Value::parse(kind, text).expect("a value");
        assert!(words_of_value(&place, &value).is_err(), "{text}");
    }
}

#[test]
fn what_is_no_value_is_not_reported() {
    let nan = f32::NAN.to_bits();
    let registers = vec![(nan >> 16) as u16, nan as u16];
    assert!(value_of_words(&place(Kind::Float, 2, json!({}), None), registers).is_err());
    assert!(value_of_words(&place(Kind::Int, 4, json!({}), None), vec![0xffff; 4]).is_err());
    assert!(value_of_words(&place(Kind::Int, 2, json!({"scale": 1e300}), None), vec![1; 2]).is_err());
    assert!(value_of_words(&place(Kind::Text, 1, json!({}), None), vec![0xff61]).is_err());
    assert!(value_of_words(&place(Kind::Int, 2, json!({}), None), vec![1]).is_err(), "one register is missing");
}

#[test]
fn bits_and_values() {
    let coils = |kind, limit: u16| {
        Place::new(&property(kind, json!({"register": "CoilRegister", "offset": 0, "limit": limit}))).expect("a place")
    };
    let (one, many) = (coils(Kind::Boolean, 1), coils(Kind::Int, 3));
    assert_eq!(value_of_bits(&one, &[true]), Ok(Value::Boolean(true)));
    assert_eq!(bits_of_value(&one, &Value::Boolean(true)), Ok(vec![true]));
    assert_eq!(value_of_bits(&many, &[false, true, true]), Ok(Value::Int(6)));
    assert_eq!(bits_of_value(&many, &Value::Int(6)), Ok(vec![false, true, true]));
    assert!(bits_of_value(&many, &Value::Int(8)).is_err());
    assert!(bits_of_value(&many, &Value::Int(-1)).is_err());
    assert!(value_of_bits(&many, &[true]).is_err());
}
