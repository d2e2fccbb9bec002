//! What one writes for a protocol.

use std::future::Future;

use crate::device::{Device, Property};
use crate::value::Value;

/// A protocol. Everything else, edgecore, cycles, reports, bounds and retries, is done by [`crate::run`].
///
/// Calls of one device never overlap, and each is given up after [`CALL_LIMIT`](crate::CALL_LIMIT): its future is dropped, and the
/// property is [`Silent`](Fault::Silent). A driver does not try again by itself, and never blocks the thread.
pub trait Driver: Send + Sync + 'static {
    /// A device that was opened, for example a connection. Dropped, it is closed.
    type Open: Send;

    /// Opens a device, by its [`Device::config`].
    fn open(&self, device: &Device) -> impl Future<Output = Result<Self::Open, Fault>> + Send;

    /// Reads a property, found by its [`Property::visitor`].
    fn read(&self, open: &mut Self::Open, property: &Property) -> impl Future<Output = Result<Value, Fault>> + Send;

    /// Writes a value that has the property's type and is within its bounds.
    fn write(
        &self,
        open: &mut Self::Open,
        property: &Property,
        value: &Value,
    ) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// Why a driver could not do it. The texts go to the log: they name what is wrong, and the cure if there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The configuration is wrong. A property is left alone until its configuration, or that of the device, changes.
    #[error("{0}")]
    Config(String),
    /// The device answered that it will not, or with something that is no value: it is there, and is asked again.
    #[error("{0}")]
    Refused(String),
    /// This property did not answer, others may. The device is opened anew and goes on with them; this one is asked again later. Only if all
    /// are silent, or several one after the other, the device is away.
    #[error("{0}")]
    Silent(String),
    /// The device is away, or the connection broke: it is opened anew, and told again what it shall be.
    #[error("{0}")]
    Unreachable(String),
}
