//! Modbus TCP, with the configuration keys of KubeEdge's Modbus mappers.
//!
//! `place` reads the configuration, `registers` makes values of registers and back.

mod place;
mod registers;

use std::io::ErrorKind;

use tokio::net::TcpStream;
use tokio_modbus::client::{Context, Reader, Writer, tcp};
use tokio_modbus::{ExceptionCode, Slave};

use self::place::{Address, Place, Table};
use crate::device::{Device, Property};
use crate::driver::{Driver, Fault};
use crate::lookup;
use crate::value::Value;

/// The driver; its protocol is `modbus`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Modbus;

/// A connection to a device or to the gateway before it.
pub struct Connection {
    context: Context,
    /// `HOST:PORT`, for errors.
    address: String,
}

impl Driver for Modbus {
    type Open = Connection;

    async fn open(&self, device: &Device) -> Result<Connection, Fault> {
        let Address { host, port, unit } = Address::new(&device.config).map_err(Fault::Config)?;
        let unreachable = |error: std::io::Error| Fault::Unreachable(format!("{host}:{port}: {error}"));
        let addresses = lookup::addresses(&host, port).await.map_err(unreachable)?;
        let stream = TcpStream::connect(&addresses[..]).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(Connection { context: tcp::attach_slave(stream, Slave(unit)), address: format!("{host}:{port}") })
    }

    async fn read(&self, open: &mut Connection, property: &Property) -> Result<Value, Fault> {
        let place = Place::new(property).map_err(Fault::Config)?;
        let (offset, count) = (place.offset, place.count);
        let Connection { context, address } = open;
        match place.table {
            Table::Coil => {
                registers::value_of_bits(&place, &answered(address, context.read_coils(offset, count).await)?)
            }
            Table::DiscreteInput => {
                registers::value_of_bits(&place, &answered(address, context.read_discrete_inputs(offset, count).await)?)
            }
            Table::Holding => registers::value_of_words(
                &place,
                answered(address, context.read_holding_registers(offset, count).await)?,
            ),
            Table::Input => {
                registers::value_of_words(&place, answered(address, context.read_input_registers(offset, count).await)?)
            }
        }
        .map_err(Fault::Refused)
    }

    async fn write(&self, open: &mut Connection, property: &Property, value: &Value) -> Result<(), Fault> {
        let place = Place::new(property).map_err(Fault::Config)?;
        let Connection { context, address } = open;
        match place.table {
            Table::Coil => match registers::bits_of_value(&place, value).map_err(Fault::Config)?.as_slice() {
                [bit] => answered(address, context.write_single_coil(place.offset, *bit).await),
                bits => answered(address, context.write_multiple_coils(place.offset, bits).await),
            },
            Table::Holding => match registers::words_of_value(&place, value).map_err(Fault::Config)?.as_slice() {
                [word] => answered(address, context.write_single_register(place.offset, *word).await),
                words => answered(address, context.write_multiple_registers(place.offset, words).await),
            },
            Table::DiscreteInput | Table::Input => Err(Fault::Config(format!(
                "{} cannot be written: Modbus has discrete inputs and input registers for reading only; make the property ReadOnly",
                property.name
            ))),
        }
    }
}

fn answered<T>(address: &str, answer: tokio_modbus::Result<T>) -> Result<T, Fault> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(exception @ (ExceptionCode::GatewayPathUnavailable | ExceptionCode::GatewayTargetDevice))) => {
            Err(Fault::Silent(format!("its gateway {address} says: {exception}")))
        }
        Ok(Err(exception)) => Err(Fault::Refused(format!("the device says: {exception}"))),
        Err(tokio_modbus::Error::Transport(error)) if !is_about_bytes(&error) => {
            Err(Fault::Unreachable(format!("{address}: {error}")))
        }
        Err(error) => Err(Fault::Unreachable(format!("{address} gave no Modbus answer: {error}"))),
    }
}

/// Whether it is about what came, not about the connection; a connection that ends within an answer counts as the first.
fn is_about_bytes(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::Other)
}

/// Whether a device and all its properties can be found.
#[cfg(test)]
pub(crate) fn check(device: &Device) -> Result<(), String> {
    Address::new(&device.config)?;
    device.properties.iter().try_for_each(|property| Place::new(property).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_where() {
        let transport = |kind, why: &str| Err(std::io::Error::new(kind, why).into());
        for (answer, expected) in [
            (
                transport(ErrorKind::Other, "bytes remaining on stream"),
                Fault::Unreachable("plc:502 gave no Modbus answer: bytes remaining on stream".to_owned()),
            ),
            (
                transport(ErrorKind::InvalidData, "too short"),
                Fault::Unreachable("plc:502 gave no Modbus answer: too short".to_owned()),
            ),
            (transport(ErrorKind::BrokenPipe, "broken"), Fault::Unreachable("plc:502: broken".to_owned())),
        ] {
            assert_eq!(answered::<()>("plc:502", answer), Err(expected));
        }
    }
}
