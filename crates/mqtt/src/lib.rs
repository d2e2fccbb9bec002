//! MQTT for edgecore: an embedded broker, and a client for a broker next door, behind one interface.
//!
//! Edgecore gets what devices publish as [`Received`], and acknowledges it by [`Taken::complete`]: with QoS 1 and 2 a device gets its PUBACK or
//! PUBREC after that, so it means that edgecore has committed the message. [`Bus`] is either end.
//!
//! Of the broker read `listen` for how it starts, `connection` for one client, `router` for who gets what, and `outbox` for what waits for a client.
//! `replies` has the answers, `journal` the disk. Of the client read `client`, then `dial`, `conversation`, `sending` and `handover`. Rules are those of MQTT 3.1.1 and 5; limits are mosquitto's.

mod access;
mod client;
mod client_session;
mod connection;
mod conversation;
mod dial;
mod encode;
mod farewell;
mod handover;
mod heard;
mod journal;
mod listen;
mod local;
mod message;
mod outbox;
mod packet;
mod replies;
mod retained;
mod room;
mod router;
mod sending;
mod tls;
pub mod topic;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

pub use access::{Access, AccessError, Password, Rule, User};
pub use client::{Client, ClientConfig};
pub use listen::{Broker, BrokerConfig, Listen, StartError};
pub use message::Qos;
use replies::Token;
use room::Place;
pub use tls::{Certificate, ClientTls, ServerTls, TlsFileError};

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Its topic.
    pub topic: String,
    /// What it says.
    pub payload: Bytes,
    /// How surely it shall arrive.
    pub qos: Qos,
    /// To publish: whether the broker shall keep it. Received from a client of the embedded broker: whether that asked so;
    /// from an external broker: whether it was kept.
    pub retain: bool,
}

/// A message for edgecore.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub publish: Publish,
    /// Its acknowledgement.
    pub taken: Taken,
}

impl Received {
    /// The message, which counts as taken by that.
    pub fn take(self) -> Publish {
        self.taken.complete();
        self.publish
    }
}

/// What is owed for a message: that it is where it must be ([`Taken::complete`]). Until then its publisher waits, and those of the same client
/// after it. Dropped, it cannot be taken: MQTT 5 clients of the embedded broker are told so, others are disconnected and publish again.
/// Of an external broker: it and those after it are received again, after a pause.
pub struct Taken(Option<Arc<Token>>, #[expect(dead_code, reason = "held until it is dropped")] Place);

impl Taken {
    /// The message is where it must be.
    pub fn complete(mut self) {
        self.0 = None;
    }

    /// The message cannot be taken. The same as dropping.
    pub fn fail(self) {}
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(token) = &self.0 {
            token.fail();
        }
    }
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Taken")
    }
}

/// A message was not published, or a subscription not made.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The topic is none.
    #[error("{0:?} is no MQTT topic: it is empty, has a wildcard, or too many levels")]
    Topic(String),
    /// The filter is none.
    #[error("{0:?} is no MQTT topic filter")]
    Filter(String),
    /// The message is larger than all that may wait.
    #[error("a message of {0} bytes is too large for MQTT")]
    TooLarge(usize),
    /// The broker could not store it, or is stopping.
    #[error("the MQTT broker could not store the message, or it is stopping")]
    NotStored,
}

/// The embedded broker or an external one.
pub enum Bus {
    /// Embedded.
    Broker(Broker),
    /// External.
    Client(Client),
}

impl Bus {
    /// Starts the embedded broker; see [`Broker::start`].
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub async fn broker(
        config: BrokerConfig,
        filters: &[&str],
    ) -> Result<(Self, mpsc::Receiver<Received>), StartError> {
        let (broker, received) = Broker::start(config, filters).await?;
        Ok((Self::Broker(broker), received))
    }

    /// Connects to an external broker; see [`Client::start`].
    ///
    /// # Errors
    /// As [`Client::start`].
    pub fn client(config: ClientConfig, filters: &[&str]) -> Result<(Self, mpsc::Receiver<Received>), StartError> {
        let (client, received) = Client::start(config, filters)?;
        Ok((Self::Client(client), received))
    }

    /// Publishes a message; waits while the broker has too much to do.
    ///
    /// # Errors
    /// It could not be published. An external broker that is absent is no error: the message waits for it, and the oldest is dropped when too much
    /// waits already.
    pub async fn publish(&self, publish: Publish) -> Result<(), PublishError> {
        match self {
            Self::Broker(broker) => broker.publish(publish).await,
            Self::Client(client) => client.publish_with_room(publish).await,
        }
    }

    /// Hears one more filter.
    ///
    /// # Errors
    /// It is no filter.
    pub fn subscribe(&self, filter: &str) -> Result<(), PublishError> {
        match self {
            Self::Broker(broker) => broker.subscribe(filter),
            Self::Client(client) => client.subscribe(filter),
        }
    }

    /// Hears a filter no more.
    pub fn unsubscribe(&self, filter: &str) {
        match self {
            Self::Broker(broker) => broker.unsubscribe(filter),
            Self::Client(client) => client.unsubscribe(filter),
        }
    }

    /// Ends, after what can be sent or stored is.
    pub async fn stop(self) {
        match self {
            Self::Broker(broker) => broker.stop().await,
            Self::Client(client) => client.stop().await,
        }
    }
}
