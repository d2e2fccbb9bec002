//! Several messages in one binary frame (feature `batch-1`): JSON documents, one a line, deflated (RFC 1951) with a dictionary of what
//! messages between cloud and edge have in common. Each frame stands for itself, so that a connection at rest keeps no state.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::{MAX_MESSAGE_BYTES, Message, ParseError};

/// Both ends of `batch-1` have the same: a change needs a new name.
const DICTIONARY: &[u8] = include_bytes!("batch-1.txt");
/// A window of 16 KiB (2^14) reaches over the dictionary and most messages, and is cheap to set up.
const WINDOW_BITS: u8 = 14;
/// Output grows by so much at a time.
const STEP: usize = 16 << 10;
/// Messages in one frame at most.
pub const MAX_MESSAGES: usize = 1024;

thread_local! {
    // Hundreds of KiB each. Made anew for every frame they leave holes in the heap that small things settle in, until it is many times
    // as large as what is in use.
    static COMPRESS: RefCell<Compress> =
        RefCell::new(Compress::new_with_window_bits(Compression::fast(), false, WINDOW_BITS));
    static DECOMPRESS: RefCell<Decompress> = RefCell::new(Decompress::new_with_window_bits(false, WINDOW_BITS));
}

/// A binary frame cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The frame is damaged or of another format.
    #[error("a binary frame of {0} bytes cannot be inflated")]
    Deflate(usize),
    /// It would be too long.
    #[error("a binary frame holds more than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
    /// It holds too many messages.
    #[error("a binary frame holds more than {MAX_MESSAGES} messages")]
    TooMany,
    /// It holds what is no message.
    #[error("a binary frame holds what is no message")]
    Message(#[source] ParseError),
}

/// A frame of these JSON documents, each a message.
pub fn encode<'a>(documents: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut text = Vec::new();
    for document in documents {
        text.extend_from_slice(document);
        text.push(b'\n');
    }
    COMPRESS.with_borrow_mut(|compress| deflate(compress, &text))
}

fn deflate(compress: &mut Compress, text: &[u8]) -> Vec<u8> {
    compress.reset();
    // The dictionary is shorter than the window, and nothing was compressed yet: it is always taken.
    let _ = compress.set_dictionary(DICTIONARY);
    let mut out = Vec::with_capacity(text.len() / 3 + 64);
    loop {
        let read = usize::try_from(compress.total_in()).unwrap_or(text.len()).min(text.len());
        match compress.compress_vec(&text[read..], &mut out, FlushCompress::Finish) {
            Ok(Status::StreamEnd) | Err(_) => return out,
            Ok(_) => out.reserve(STEP),
        }
    }
}

/// The messages of a frame.
///
/// # Errors
/// The frame is damaged, too long, or holds what is no message.
pub fn decode(frame: &[u8]) -> Result<Vec<Message>, BatchError> {
    let text = DECOMPRESS.with_borrow_mut(|decompress| inflate(decompress, frame))?;
    let mut messages = Vec::new();
    for message in serde_json::Deserializer::from_slice(&text).into_iter::<Message>() {
        if messages.len() == MAX_MESSAGES {
            return Err(BatchError::TooMany);
        }
        messages.push(message.map_err(|error| BatchError::Message(ParseError::Json(error)))?);
    }
    Ok(messages)
}

fn inflate(decompress: &mut Decompress, frame: &[u8]) -> Result<Vec<u8>, BatchError> {
    let failed = || BatchError::Deflate(frame.len());
    decompress.reset(false);
    decompress.set_dictionary(DICTIONARY).map_err(|_| failed())?;
    let mut text = Vec::with_capacity((frame.len() * 4).min(STEP));
    loop {
        let read = usize::try_from(decompress.total_in()).map_err(|_| failed())?;
        let before = (decompress.total_in(), text.len());
        let status = decompress.decompress_vec(&frame[read..], &mut text, FlushDecompress::None);
        match status.map_err(|_| failed())? {
            _ if text.len() > MAX_MESSAGE_BYTES => return Err(BatchError::TooLong),
            Status::StreamEnd => return Ok(text),
            _ if text.len() == text.capacity() => text.reserve(STEP.max(text.len() / 2)),
            // Nothing comes any more, and the end is missing.
            _ if before == (decompress.total_in(), text.len()) => return Err(failed()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Content, Route};
    use proptest::prelude::*;

    fn message(id: &str, text: &str) -> Message {
        Message::new(
            id.to_owned(),
            1,
            Route::new("edged", "meta", "patch", "default/podpatch/web"),
            Content::text(text),
        )
    }

    fn encoded(messages: &[Message]) -> Vec<u8> {
        let documents: Vec<Vec<u8>> = messages.iter().map(Message::to_json).collect();
        encode(documents.iter().map(Vec::as_slice))
    }

    #[test]
    fn a_heartbeat_takes_less_than_a_third() {
        let beat = Message::new(
            "2f1c7b4e-9d3a-4c55-8b1e-6a7d0c9e1f02".to_owned(),
            1_700_000_000_000,
            Route::new("websocket", "resource", "keepalive", "node"),
            Content::text("ping"),
        );
        let (plain, packed) = (beat.to_json().len(), encoded(std::slice::from_ref(&beat)).len());
        assert!(packed * 3 < plain, "{packed} of {plain}");
    }

    #[test]
    fn damaged_and_endless_frames_are_refused_and_spoil_nothing() {
        let sound = [message("a", "x")];
        let frame = encoded(&sound);
        assert!(matches!(decode(&frame[..frame.len() - 2]), Err(BatchError::Deflate(_))));
        assert!(matches!(decode(b""), Err(BatchError::Deflate(0))));
        assert!(matches!(decode(&encode([b"nonsense".as_slice()])), Err(BatchError::Message(_))));
        let bomb = vec![b' '; MAX_MESSAGE_BYTES + STEP];
        assert!(matches!(decode(&encode([bomb.as_slice()])), Err(BatchError::TooLong)));
        let many = vec![message("a", "x"); MAX_MESSAGES + 1];
        assert!(matches!(decode(&encoded(&many)), Err(BatchError::TooMany)));
        assert_eq!(decode(&frame).expect("readable"), sound);
    }

    #[test]
    fn any_bytes_give_an_error_or_messages() {
        bolero::check!().for_each(|input: &[u8]| {
            let _ = decode(input);
        });
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(texts in prop::collection::vec(".{0,200}", 0..20), repeat in 1_usize..200) {
            let messages: Vec<Message> =
                texts.iter().enumerate().map(|(n, text)| message(&n.to_string(), &text.repeat(repeat))).collect();
            prop_assert_eq!(decode(&encoded(&messages)).expect("readable"), messages);
        }
    }
}
