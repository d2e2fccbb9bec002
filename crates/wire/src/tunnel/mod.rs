//! The frames of KubeEdge v1.23's stream tunnel: logs, exec, attach and metrics of a node, several at once.
//!
//! A frame is one WebSocket message of type text, whatever its bytes are: the connection's id and the frame's kind as varints (7 bits
//! a byte, the lowest first), then data. The cloud opens a connection with a [`Connect`] as the data; both send data; the cloud asks for
//! the end with [`Kind::Remove`], and the edge confirms with the same, or begins with it.

mod connect;

use bytes::{BufMut, Bytes, BytesMut};

pub use connect::{Connect, ConnectError};

/// The longest data of a frame: upstream's readers drop what is beyond.
pub const MAX_DATA: usize = 1 << 20;
/// The longest head of a frame, upstream's buffer for it.
const MAX_HEAD: usize = 16;
/// The longest varint of 64 bits.
const MAX_VARINT: usize = 10;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The connection in the tunnel, given by the cloud; 0 is the tunnel itself.
    pub id: u64,
    /// What it is about.
    pub kind: Kind,
    /// A [`Connect`], bytes of the stream, or the text of [`Kind::Close`].
    pub data: Bytes,
}

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A container's log is asked for.
    Logs,
    /// A process in a container is asked for; bytes of HTTP/1.1 follow in both directions.
    Exec,
    /// A page of the node's API is asked for.
    Metrics,
    /// Bytes of a connection.
    Data,
    /// A connection has ended.
    Remove,
    /// The cloud ends the tunnel.
    Close,
    /// As [`Kind::Exec`], for the container's own process.
    Attach,
    /// Of a version that we do not know. Never sent: a Go edge ends its process when it sees one.
    Unknown(u64),
}

/// What cannot be a frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The head breaks off, or goes on for too long.
    #[error("a frame of the tunnel has no whole head (connection id and type)")]
    Head,
    /// Too much data.
    #[error("a frame of the tunnel has {0} bytes of data, more than 1 MiB")]
    TooLong(usize),
    /// Such a frame must not be sent.
    #[error("type {0} of frames in the tunnel is unknown")]
    Unknown(u64),
}

impl Kind {
    /// Whether a new connection is asked for.
    pub fn connects(self) -> bool {
        matches!(self, Self::Logs | Self::Exec | Self::Metrics | Self::Attach)
    }

    fn of(number: u64) -> Self {
        match number {
            0 => Self::Logs,
            1 => Self::Exec,
            2 => Self::Metrics,
            3 => Self::Data,
            4 => Self::Remove,
            5 => Self::Close,
            6 => Self::Attach,
            _ => Self::Unknown(number),
        }
    }

    fn number(self) -> Result<u8, FrameError> {
        Ok(match self {
            Self::Logs => 0,
            Self::Exec => 1,
            Self::Metrics => 2,
            Self::Data => 3,
            Self::Remove => 4,
            Self::Close => 5,
            Self::Attach => 6,
            Self::Unknown(number) => return Err(FrameError::Unknown(number)),
        })
    }
}

impl Frame {
    /// Bytes of a connection.
    pub fn data(id: u64, data: impl Into<Bytes>) -> Self {
        Self { id, kind: Kind::Data, data: data.into() }
    }

    /// The end of a connection.
    pub fn remove(id: u64) -> Self {
        Self { id, kind: Kind::Remove, data: Bytes::new() }
    }

    /// Reads a message of the tunnel.
    ///
    /// # Errors
    /// It has no whole head, or too much data. The tunnel cannot go on then: upstream ends it too.
    pub fn decode(message: &Bytes) -> Result<Self, FrameError> {
        let (id, first) = varint(message).ok_or(FrameError::Head)?;
        let (kind, second) = varint(&message[first..]).ok_or(FrameError::Head)?;
        let head = first + second;
        if head > MAX_HEAD {
            return Err(FrameError::Head);
        }
        if message.len() - head > MAX_DATA {
            return Err(FrameError::TooLong(message.len() - head));
        }
        Ok(Self { id, kind: Kind::of(kind), data: message.slice(head..) })
    }

    /// The message of the tunnel.
    ///
    /// # Errors
    /// Its kind is unknown, or it has more than [`MAX_DATA`] bytes.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let kind = self.kind.number()?;
        if self.data.len() > MAX_DATA {
            return Err(FrameError::TooLong(self.data.len()));
        }
        let mut message = BytesMut::with_capacity(MAX_HEAD + self.data.len());
        let mut id = self.id;
        while id >= 0x80 {
            message.put_u8(id.to_le_bytes()[0] | 0x80);
            id >>= 7;
        }
        message.put_u8(id.to_le_bytes()[0]);
        message.put_u8(kind);
        message.put_slice(&self.data);
        Ok(message.freeze())
    }
}

/// A varint and its length; `None` when it breaks off or has more than 64 bits.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for (at, &byte) in bytes.iter().take(MAX_VARINT).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at == MAX_VARINT - 1 && byte > 1 {
            return None;
        }
        number |= bits << (7 * at);
        if byte < 0x80 {
            return Some((number, at + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Result<Frame, FrameError> {
        Frame::decode(&Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn heads_of_all_lengths() {
        for (bytes, frame) in [
            (&[0xac, 0x02, 0x04][..], Frame::remove(300)),
            (&[1, 3, 0x68, 0x69], Frame::data(1, "hi")),
            (&[0, 5, b'x'], Frame { id: 0, kind: Kind::Close, data: Bytes::from_static(b"x") }),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 4], Frame::remove(u64::MAX)),
        ] {
            assert_eq!(decoded(bytes), Ok(frame.clone()));
            assert_eq!(frame.encode().expect("sendable"), bytes);
        }
    }

    #[test]
    fn nonsense_is_refused_and_the_unknown_is_read_but_never_sent() {
        for wrong in [
            &[][..],
            &[1],
            &[0x80],
            &[0x80, 0x80],
            &[1, 0x80],
            &[0xff; 20],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 3],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 0x83, 0x80, 0x80, 0x80, 0x80, 0x80, 0],
        ] {
            assert_eq!(decoded(wrong), Err(FrameError::Head), "{wrong:?}");
        }
        let unknown = decoded(&[1, 0x87, 0x01]).expect("read");
        assert_eq!(unknown.kind, Kind::Unknown(135));
        assert_eq!(unknown.encode(), Err(FrameError::Unknown(135)));
    }

    #[test]
    fn data_has_a_bound() {
        let full = Frame::data(7, vec![0; MAX_DATA]);
        assert_eq!(Frame::decode(&full.encode().expect("it fits")), Ok(full.clone()));
        let more = Frame::data(7, vec![0; MAX_DATA + 1]);
        assert_eq!(more.encode(), Err(FrameError::TooLong(MAX_DATA + 1)));
        let mut message = vec![7, 3];
        message.resize(MAX_DATA + 3, 0);
        assert_eq!(decoded(&message), Err(FrameError::TooLong(MAX_DATA + 1)));
    }
}
