//! Where a device and its properties are: `protocol.configData` and `visitors.configData`. Keys are found in any case of letters, and numbers may
//! be texts, as in Go.

use serde_json::{Map, Value as Json};

use crate::device::Property;
use crate::value::Kind;

const USUAL_PORT: u16 = 502;
const USUAL_UNIT: u8 = 1;
/// Of one request, by the Modbus application protocol.
const MAX_WORDS: u16 = 125;
const MAX_WORDS_WRITTEN: u16 = 123;
/// A whole number is made of at most so many bits.
const MAX_BITS: u16 = 64;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub host: String,
    pub port: u16,
    pub unit: u8,
}

/// What a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Coil,
    DiscreteInput,
    Input,
    Holding,
}

/// A property.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub table: Table,
    pub offset: u16,
    pub count: u16,
    /// The value is what is read times this.
    pub scale: f64,
    /// The bytes of each register are the other way round.
    pub swap_bytes: bool,
    /// The registers are the other way round.
    pub swap_words: bool,
    pub kind: Kind,
    /// Whole numbers in registers are two's complement.
    pub signed: bool,
}

impl Address {
    pub fn new(config: &Map<String, Json>) -> Result<Self, String> {
        if let Some(key) = ["serialPort", "serialName"].into_iter().find(|key| text(config, key).is_some()) {
            return Err(format!("protocol.configData has {key}: this mapper speaks Modbus TCP; give ip and port"));
        }
        let host = text(config, "ip").filter(|host| !host.is_empty());
        let host = host.ok_or("protocol.configData.ip is needed: the address of the device or of its gateway")?;
        let (port, unit) = ("protocol.configData.port", "protocol.configData.slaveID");
        Ok(Self {
            host,
            port: whole(config, "port")?.map_or(Ok(USUAL_PORT), |number| fits(port, number, 1, u16::MAX.into()))?,
            unit: whole(config, "slaveID")?
                .map_or(Ok(USUAL_UNIT.into()), |number| fits(unit, number, 0, u8::MAX.into()))? as u8,
        })
    }
}

impl Place {
    pub fn new(property: &Property) -> Result<Self, String> {
        let (visitor, name) = (&property.visitor, &property.name);
        let register = text(visitor, "register").unwrap_or_default();
        let table = match register.to_ascii_lowercase().as_str() {
            "coilregister" => Table::Coil,
            "discreteinputregister" => Table::DiscreteInput,
            "inputregister" => Table::Input,
            "holdingregister" => Table::Holding,
            _ => {
                return Err(format!(
                    "{name} has the register {register:?}: CoilRegister, DiscreteInputRegister, InputRegister and HoldingRegister are known"
                ));
            }
        };
        let offset = whole(visitor, "offset")?.ok_or_else(|| format!("{name} has no offset"))?;
        let offset = fits("offset", offset, 0, u16::MAX.into())?;
        let is_bits = matches!(table, Table::Coil | Table::DiscreteInput);
        let (most, unit) = match (is_bits, table) {
            (true, _) => (MAX_BITS, "bits"),
            (false, Table::Holding) if !property.read_only => (MAX_WORDS_WRITTEN, "registers"),
            (false, _) => (MAX_WORDS, "registers"),
        };
        let count = fits("limit", whole(visitor, "limit")?.unwrap_or(1), 1, most.into())?;
        if u32::from(offset) + u32::from(count) > 1 << 16 {
            return Err(format!("{name} ends behind the last register: offset {offset}, limit {count}"));
        }
        let allowed: &[u16] = match (property.kind, is_bits) {
            (Kind::Boolean, _) => &[1],
            (Kind::Int, true) | (Kind::Text | Kind::Bytes, false) => &[],
            (Kind::Int | Kind::Float | Kind::Double, false) => &[1, 2, 4],
            (kind, true) => {
                return Err(format!("{name} is of type {} in {register}: BOOLEAN and INT can be there", kind.name()));
            }
        };
        if !allowed.is_empty() && !allowed.contains(&count) {
            return Err(format!(
                "{name} is of type {} and has limit {count}: use one of {allowed:?} {unit}",
                property.kind.name()
            ));
        }
        let scale = match value(visitor, "scale") {
            None | Some(Json::Null) => 0.0,
            Some(Json::Number(number)) => number.as_f64().unwrap_or_default(),
            Some(Json::String(text)) => {
                crate::value::number(text).ok_or_else(|| format!("{name} has the scale {text:?}"))?
            }
            Some(other) => return Err(format!("{name} has the scale {other}, which is no number")),
        };
        Ok(Self {
            table,
            offset,
            count,
            scale: if scale == 0.0 { 1.0 } else { scale },
            swap_bytes: flag(visitor, "isSwap")?,
            swap_words: flag(visitor, "isRegisterSwap")?,
            kind: property.kind,
            signed: property.minimum.is_some_and(|minimum| minimum < 0.0),
        })
    }
}

fn value<'a>(config: &'a Map<String, Json>, key: &str) -> Option<&'a Json> {
    config.get(key).or_else(|| config.iter().find(|(other, _)| other.eq_ignore_ascii_case(key)).map(|(_, value)| value))
}

fn text(config: &Map<String, Json>, key: &str) -> Option<String> {
    value(config, key)?.as_str().map(str::to_owned)
}

fn whole(config: &Map<String, Json>, key: &str) -> Result<Option<i64>, String> {
    let found = match value(config, key) {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::Number(number)) => number.as_i64(),
        Some(Json::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    found.map(Some).ok_or_else(|| format!("{key} in configData is no whole number"))
}

fn flag(config: &Map<String, Json>, key: &str) -> Result<bool, String> {
    match value(config, key) {
        None | Some(Json::Null) => Ok(false),
        Some(Json::Bool(flag)) => Ok(*flag),
        Some(Json::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Json::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} in configData is {other}: true or false is needed")),
    }
}

fn fits(what: &str, number: i64, least: i64, most: i64) -> Result<u16, String> {
    let number = u16::try_from(number).ok().filter(|number| (least..=most).contains(&i64::from(*number)));
    number.ok_or_else(|| format!("{what} has to be {least} to {most}"))
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
