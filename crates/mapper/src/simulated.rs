//! Devices that are not there, for examples and tests: numbers that can only be read swing between their bounds, everything else is what it was
//! told to be.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use tokio::time::Instant;

use crate::device::{Device, Property};
use crate::driver::{Driver, Fault};
use crate::value::{Kind, Value};

/// How long a swing takes, in seconds.
const SWING: f64 = 60.0;
/// Bounds of a number whose model has none.
const USUAL_BOUNDS: (f64, f64) = (0.0, 100.0);

/// The driver; its protocol is `virtual`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Virtual;

/// A device.
pub struct Imagined {
    since: Instant,
    told: BTreeMap<String, Value>,
}

impl Driver for Virtual {
    type Open = Imagined;

    async fn open(&self, _: &Device) -> Result<Imagined, Fault> {
        Ok(Imagined { since: Instant::now(), told: BTreeMap::new() })
    }

    async fn read(&self, open: &mut Imagined, property: &Property) -> Result<Value, Fault> {
        if let Some(told) = open.told.get(&property.name) {
            return Ok(told.clone());
        }
        let seconds = open.since.elapsed().as_secs_f64();
        Ok(match property.kind {
            Kind::Int => Value::Int(swing(property, seconds).round() as i64),
            Kind::Float | Kind::Double => Value::Number((swing(property, seconds) * 100.0).round() / 100.0),
            Kind::Boolean => Value::Boolean(property.read_only && (seconds / SWING * 2.0) as u64 % 2 == 1),
            Kind::Text => Value::Text("virtual".to_owned()),
            Kind::Bytes => Value::Bytes((seconds as u32).to_be_bytes().to_vec()),
        })
    }

    async fn write(&self, open: &mut Imagined, property: &Property, value: &Value) -> Result<(), Fault> {
        open.told.insert(property.name.clone(), value.clone());
        Ok(())
    }
}

/// From the middle up; what can be written stays there until it is.
fn swing(property: &Property, seconds: f64) -> f64 {
    let minimum = property.minimum.unwrap_or(USUAL_BOUNDS.0);
    let maximum = property.maximum.unwrap_or(USUAL_BOUNDS.1.max(minimum));
    let (middle, half) = (f64::midpoint(minimum, maximum), (maximum - minimum) / 2.0);
    let turn = if property.read_only { (TAU * seconds / SWING).sin() } else { 0.0 };
    middle + half * turn
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn property(kind: Kind, read_only: bool) -> Property {
        let of_test = crate::device::tests::property(kind, serde_json::json!({}));
        Property { read_only, minimum: Some(-10.0), maximum: Some(30.0), ..of_test }
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_swing_within_their_bounds_and_wishes_stay() {
        let mut open = Imagined { since: Instant::now(), told: BTreeMap::new() };
        let measured = property(Kind::Float, true);
        let mut seen = Vec::new();
        for _ in 0..60 {
            let Ok(Value::Number(number)) = Virtual.read(&mut open, &measured).await else { panic!("a number") };
            seen.push(number);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let (least, most) =
            (seen.iter().copied().fold(f64::MAX, f64::min), seen.iter().copied().fold(f64::MIN, f64::max));
        assert_eq!((least, most), (-10.0, 30.0), "{seen:?}");
        let target = property(Kind::Int, false);
        assert_eq!(Virtual.read(&mut open, &target).await, Ok(Value::Int(10)));
        Virtual.write(&mut open, &target, &Value::Int(7)).await.expect("taken");
        assert_eq!(Virtual.read(&mut open, &target).await, Ok(Value::Int(7)));
    }
}
