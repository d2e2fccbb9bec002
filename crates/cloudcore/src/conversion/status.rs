//! What is known of devices. In v1alpha2 the kind has twins and nothing else; what shall be is called `desired` there and
//! `observedDesired` in v1beta1.

use serde_json::Value;

use super::CannotConvert;
use super::parts::{Fields, fields, items, put, put_all, rest};

const ALPHA: &[&str] = &["twins"];
const BETA: &[&str] = &["status"];
const RENAMED: [&str; 2] = ["desired", "observedDesired"];

/// A v1alpha2 status in v1beta1, and what has to be kept.
pub fn up(body: &Fields, kept: &Fields) -> Result<(Fields, Fields), CannotConvert> {
    let (mut new, mut status, mut left) = (Fields::new(), Fields::new(), Fields::new());
    put(&mut status, "twins", twins(body, "twins", RENAMED)?);
    rest(&Fields::new(), [&[], ALPHA], kept.get("status"), &mut status);
    put_all(&mut new, "status", status);
    put_all(&mut left, "object", rest(body, [ALPHA, BETA], kept.get("object"), &mut new));
    Ok((new, left))
}

/// A v1beta1 status in v1alpha2, and what has to be kept.
pub fn down(body: &Fields, kept: &Fields) -> Result<(Fields, Fields), CannotConvert> {
    let (mut new, mut left, none) = (Fields::new(), Fields::new(), Fields::new());
    let status = fields(body, "status", "status")?.unwrap_or(&none);
    put(&mut new, "twins", twins(status, "status.twins", [RENAMED[1], RENAMED[0]])?);
    put_all(&mut left, "status", rest(status, [ALPHA, ALPHA], None, &mut Fields::new()));
    put_all(&mut left, "object", rest(body, [BETA, ALPHA], kept.get("object"), &mut new));
    Ok((new, left))
}

fn twins(from: &Fields, path: &str, [old, new]: [&str; 2]) -> Result<Option<Value>, CannotConvert> {
    let rename = |twin: &Fields| -> Value {
        let name = |field: &String| if field == old { new.to_owned() } else { field.clone() };
        Value::Object(twin.iter().map(|(field, value)| (name(field), value.clone())).collect())
    };
    Ok(items(from, "twins", path)?.map(|twins| twins.into_iter().map(rename).collect()))
}
