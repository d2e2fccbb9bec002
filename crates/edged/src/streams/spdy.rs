//! Frames of SPDY/3.1 as a client of the runtime's streaming server needs them.
//!
//! Headers are sent as stored blocks of a zlib stream, which every inflater reads; those that come in only say yes, and are
//! skipped unread. Like Go's `spdystream` on the other side, there is no flow control but that of TCP.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes read in one go.
const READ: usize = 16 << 10;
/// No control frame of a streaming server is longer.
const MAX_CONTROL: usize = 64 << 10;
/// The longest content of a data frame that is sent.
pub const MAX_DATA: usize = 32 << 10;
const VERSION: u16 = 3;
const FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
/// A number of a stream or a ping has 31 bits.
const NUMBER: u32 = 0x7fff_ffff;

/// What arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// A piece of a stream; `fin` with its last.
    Data {
        /// The stream.
        stream: u32,
        /// What was sent; may be empty.
        bytes: Bytes,
        /// Nothing follows.
        fin: bool,
    },
    /// A stream was closed on the other side.
    Closed(u32),
    /// Asks for the same back.
    Ping(u32),
}

/// Reads frames; may be dropped between any two bytes.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
    /// A data frame of which this many bytes are to come.
    data: Option<(u32, bool, usize)>,
    /// Bytes of a control frame that nobody needs.
    skip: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from this.
    pub fn new(from: R) -> Self {
        Self { from, buffer: BytesMut::new(), data: None, skip: 0 }
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or this is no SPDY/3.1.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ);
            let mut limited = (&mut self.from).take(READ as u64);
            if limited.read_buf(&mut self.buffer).await? == 0 {
                let is_cut = self.data.is_some() || self.skip > 0 || !self.buffer.is_empty();
                return if is_cut { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
            }
        }
    }

    fn parse(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip -= skipped;
            if let Some((stream, fin, left)) = self.data {
                if self.buffer.is_empty() && left > 0 {
                    return Ok(None);
                }
                let bytes = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                let left = left - bytes.len();
                self.data = (left > 0).then_some((stream, fin, left));
                return Ok(Some(Frame::Data { stream, bytes, fin: fin && left == 0 }));
            }
            if self.skip > 0 || self.buffer.len() < 8 {
                return Ok(None);
            }
            let first = word(&self.buffer[..4]);
            let flags = self.buffer[4];
            let length = (word(&self.buffer[4..8]) & 0x00ff_ffff) as usize;
            if first & !NUMBER == 0 {
                self.buffer.advance(8);
                self.data = Some((first, flags & FIN != 0, length));
                continue;
            }
            let (version, kind) = ((first >> 16) as u16 & 0x7fff, (first & 0xffff) as u16);
            if version != VERSION || length > MAX_CONTROL {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no SPDY/3.1 within its limits"));
            }
            if !matches!(kind, RST_STREAM | PING) || length < 4 {
                self.buffer.advance(8);
                self.skip = length;
                continue;
            }
            if self.buffer.len() < 12 {
                return Ok(None);
            }
            let number = word(&self.buffer[8..12]) & NUMBER;
            self.buffer.advance(12);
            self.skip = length - 4;
            return Ok(Some(if kind == PING { Frame::Ping(number) } else { Frame::Closed(number) }));
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// Writes what opens streams: the header blocks of a connection are one zlib stream.
#[derive(Debug, Default)]
pub struct Opener {
    begun: bool,
}

impl Opener {
    /// Opens a stream; names of headers in lower case.
    pub fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        push_word(&mut block, headers.len());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            push_word(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
        let mut payload = Vec::new();
        push_word(&mut payload, stream as usize);
        // No associated stream; priority and slot.
        payload.extend_from_slice(&[0; 6]);
        if !std::mem::replace(&mut self.begun, true) {
            payload.extend_from_slice(&[0x78, 0x01]);
        }
        // An empty block behind each tells the inflater to give out what it has.
        for part in block.chunks(usize::from(u16::MAX)).chain([&[][..]]) {
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            payload.push(0);
            payload.extend_from_slice(&length.to_le_bytes());
            payload.extend_from_slice(&(!length).to_le_bytes());
            payload.extend_from_slice(part);
        }
        control(SYN_STREAM, &payload)
    }
}

/// A piece of a stream, at most [`MAX_DATA`]; `fin` when nothing follows.
pub fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    frame(stream & NUMBER, if fin { FIN } else { 0 }, bytes)
}

/// The answer to a ping.
pub fn pong(number: u32) -> Vec<u8> {
    control(PING, &number.to_be_bytes())
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    frame(1 << 31 | u32::from(VERSION) << 16 | u32::from(kind), 0, payload)
}

fn frame(first: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend_from_slice(&first.to_be_bytes());
    push_word(&mut frame, payload.len());
    frame[4] = flags;
    frame.extend_from_slice(payload);
    frame
}

fn push_word(to: &mut Vec<u8>, number: usize) {
    to.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    async fn frames(bytes: &[u8]) -> (Vec<Frame>, bool) {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, true),
                Err(_) => return (frames, false),
            }
        }
    }

    #[tokio::test]
    async fn frames_are_read_and_what_is_not_needed_is_skipped() {
        let mut bytes = control(2, &[9; 300]);
        bytes.extend(data(3, b"hello", false));
        bytes.extend(pong(2));
        bytes.extend(control(4, &[]));
        bytes.extend(data(3, b"", true));
        bytes.extend(control(RST_STREAM, &[0, 0, 0, 5, 0, 0, 0, 1]));
        let piece = |bytes: &'static [u8], fin| Frame::Data { stream: 3, bytes: Bytes::from_static(bytes), fin };
        let expected = vec![piece(b"hello", false), Frame::Ping(2), piece(b"", true), Frame::Closed(5)];
        assert_eq!(frames(&bytes).await, (expected, true));
        for cut in 1..8 {
            assert!(!frames(&bytes[..bytes.len() - cut]).await.1);
        }
    }

    #[tokio::test]
    async fn long_frames_come_in_pieces_and_nonsense_is_refused() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let send = async {
            use tokio::io::AsyncWriteExt;
            client.write_all(&[0, 0, 0, 1, FIN, 0xff, 0xff, 0xff]).await.unwrap();
            for _ in 0..0xff_ffff / 0x100 {
                client.write_all(&[1; 0x100]).await.unwrap();
            }
            client.write_all(&[1; 0xff]).await.unwrap();
            drop(client);
        };
        let read = async {
            let mut reader = FrameReader::new(server);
            let (mut total, mut last) = (0, false);
            while let Some(frame) = reader.next().await.unwrap() {
                let Frame::Data { bytes, fin, .. } = frame else { unreachable!("{frame:?}") };
                assert!(bytes.len() <= READ && reader.buffer.capacity() <= 4 * READ);
                total += bytes.len();
                last = fin;
            }
            assert_eq!((total, last), (0xff_ffff, true));
        };
        tokio::join!(send, read);
        for wrong in [&b"GET / HTTP/1.1\r\n"[..], &[0x80, 2, 0, 1, 0, 0, 0, 0], &[0x80, 3, 0, 1, 0, 0xff, 0, 0]] {
            // A long data frame that never ends is no protocol error, but nothing comes of it either.
            assert!(!frames(wrong).await.1, "{wrong:?}");
        }
    }

    #[test]
    fn header_blocks_are_one_zlib_stream() {
        let mut opener = Opener::default();
        let first = opener.open(1, &[("streamtype", "error")]);
        let second = opener.open(3, &[("streamtype", "stdin"), ("a", "")]);
        assert_eq!(&first[..18], &[0x80, 3, 0, 1, 0, 0, 0, 49, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let mut inflated = Vec::new();
        let mut block = flate2::Decompress::new(true);
        for part in [&first[18..], &second[18..]] {
            inflated.reserve(1000);
            block.decompress_vec(part, &mut inflated, flate2::FlushDecompress::Sync).unwrap();
        }
        let expected = b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error\
            \0\0\0\x02\0\0\0\x0astreamtype\0\0\0\x05stdin\0\0\0\x01a\0\0\0\0";
        assert_eq!(inflated, expected);
        let mut whole = Vec::new();
        let mut stream = [&first[18..], &second[18..]].concat();
        // What ends a stream in full: an empty last block and the checksum.
        stream.extend([1, 0, 0, 0xff, 0xff]);
        flate2::read::DeflateDecoder::new(&stream[2..]).read_to_end(&mut whole).unwrap();
        assert_eq!(whole, expected);
    }
}
