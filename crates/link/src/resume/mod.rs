//! A stream of bytes that goes on when its connection breaks: what runs in it does not notice a cut of up to [`KEPT`].
//!
//! It runs in the messages of a WebSocket. Binary messages are the bytes; a text message tells in decimal how many bytes its sender has
//! read so far. What is not known to be read is kept, at most 1 MiB, and sent again on the next connection. A close frame is
//! a wanted end, anything else a cut. The two ends agree in heads of HTTP ([`Resume`]) from where a new connection goes on. The end
//! that has asked for the WebSocket sends pings; the other looks that they come.
//!
//! `counts` is one direction without a connection, [`Handle`] gives a stream its next one, and this file is what reads and writes.

mod counts;
mod handle;
mod heads;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;

pub use handle::{Handle, NotResumed, Offer};
pub use heads::{Id, NotOurs, Resume};

use crate::frames::{Frame, Frames};
use counts::{Incoming, Outgoing, PIECE};

/// How long a stream without a connection waits for the next one.
pub const KEPT: Duration = Duration::from_secs(60);
/// How often the other end is asked whether it lives.
const PING: Duration = Duration::from_secs(15);
/// A connection on which nothing is heard for so long is taken for cut.
const SILENCE: Duration = Duration::from_secs(25);
/// How long a connection is at rest before the other end is told what was read.
const REST: Duration = Duration::from_millis(500);

/// The stream. One task reads and writes, and must read to learn of anything, as HTTP/2 does. Shutting it down is a wanted end, and so
/// is dropping it, as far as the connection takes that at once.
#[derive(Debug)]
pub struct Resumable<S: AsyncRead + AsyncWrite + Unpin>(Arc<Shared<S>>);

#[derive(Debug)]
struct Shared<S>(Mutex<State<S>>);

#[derive(Debug)]
struct State<S> {
    phase: Phase<S>,
    outgoing: Outgoing,
    incoming: Incoming,
    /// How long it waits without a connection.
    kept: Duration,
    /// Something was given to the connection that nobody else flushes.
    flushing: bool,
    /// When the other end is told what was read.
    tell_at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Who reads and writes.
    waker: Option<Waker>,
    /// Who waits for a cut.
    watcher: Option<Waker>,
    /// Which offer to go on is the last.
    offer: u64,
}

#[derive(Debug)]
enum Phase<S> {
    Connected(Frames<S>),
    Suspended { until: Instant, cause: String },
    Over(Option<(io::ErrorKind, String)>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Resumable<S> {
    /// Begins on a connection whose ends have agreed on it; the handle gives it the next ones. Needs a runtime.
    pub fn new(frames: Frames<S>) -> (Self, Handle<S>) {
        let state = State {
            phase: Phase::Connected(watched(frames)),
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            kept: KEPT,
            flushing: false,
            tell_at: None,
            timer: None,
            waker: None,
            watcher: None,
            offer: 0,
        };
        let shared = Arc::new(Shared(Mutex::new(state)));
        (Self(shared.clone()), Handle(shared))
    }
}

/// One end asks whether the other lives, and both hear of it.
fn watched<S: AsyncRead + AsyncWrite + Unpin>(frames: Frames<S>) -> Frames<S> {
    frames.with_watch(PING, SILENCE)
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a change that who reads and writes has not made.
    fn wake(mut state: MutexGuard<'_, State<S>>) {
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl<S> State<S> {
    /// The connection is of no more use.
    fn cut(&mut self, cause: String) {
        if self.kept.is_zero() {
            return self.over(Some((io::ErrorKind::ConnectionReset, cause)));
        }
        self.outgoing.cut();
        self.incoming.cut();
        (self.tell_at, self.flushing) = (None, false);
        self.phase = Phase::Suspended { until: Instant::now() + self.kept, cause };
        self.watcher.take().into_iter().for_each(Waker::wake);
    }

    /// There will be no other connection.
    fn over(&mut self, why: Option<(io::ErrorKind, String)>) {
        // After a wanted end what has come is still read.
        if why.is_some() {
            self.incoming.cut();
        }
        self.phase = Phase::Over(why);
        self.outgoing = Outgoing::default();
        (self.tell_at, self.timer, self.flushing) = (None, None, false);
    }

    /// Ready at the end of the stream, and without any reason when that was wanted.
    fn poll_over(&self) -> Poll<io::Result<()>> {
        match &self.phase {
            Phase::Over(None) => Poll::Ready(Ok(())),
            Phase::Over(Some((kind, why))) => Poll::Ready(Err(io::Error::new(*kind, why.clone()))),
            _ => Poll::Pending,
        }
    }

    /// Does what it is time for; whether the other end is to be told now.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        let at = match &self.phase {
            Phase::Suspended { until, .. } => Some(*until),
            Phase::Connected(_) => {
                let (any, many) = self.incoming.untold();
                self.tell_at = any.then(|| self.tell_at.unwrap_or_else(|| Instant::now() + REST));
                if many {
                    return true;
                }
                self.tell_at
            }
            Phase::Over(_) => None,
        };
        let Some(at) = at else {
            self.timer = None;
            return false;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.timer = None;
        if let Phase::Suspended { cause, .. } = &self.phase {
            let (seconds, cause) = (self.kept.as_secs(), cause.clone());
            let why = format!("the connection broke and did not come back within {seconds} s: {cause}");
            self.over(Some((io::ErrorKind::TimedOut, why)));
            return false;
        }
        true
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> State<S> {
    /// Gives the connection all that there is for it; ready when it has taken that.
    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let tells = self.poll_time(cx);
        let Phase::Connected(frames) = &mut self.phase else { return Poll::Pending };
        let mut frames = Pin::new(frames);
        let mut give = || -> Poll<io::Result<()>> {
            if tells {
                ready!(frames.as_mut().poll_ready(cx))?;
                let count = self.incoming.tell();
                self.tell_at = None;
                self.flushing = true;
                frames.as_mut().start_send(Frame::text(count.to_string()))?;
            }
            while self.outgoing.waiting() > 0 {
                ready!(frames.as_mut().poll_ready(cx))?;
                self.flushing = true;
                frames.as_mut().start_send(Frame::binary(self.outgoing.piece()))?;
            }
            Poll::Ready(Ok(()))
        };
        let given = ready!(give());
        self.unless_cut(given, cx)
    }

    /// Flushes the connection.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Connected(frames) = &mut self.phase else { return Poll::Pending };
        if !self.flushing {
            return Poll::Ready(());
        }
        let flushed = ready!(Pin::new(frames).poll_flush(cx));
        self.flushing = false;
        self.unless_cut(flushed, cx)
    }

    fn unless_cut(&mut self, done: io::Result<()>, cx: &mut Context<'_>) -> Poll<()> {
        let Err(error) = done else { return Poll::Ready(()) };
        self.cut(error.to_string());
        // From now on it waits for the next connection.
        self.poll_time(cx);
        Poll::Pending
    }

    /// Takes one message from the connection, or its end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Connected(frames) = &mut self.phase else { return Poll::Pending };
        let taken = match ready!(Pin::new(&mut *frames).poll_next(cx)) {
            Some(Ok(Frame { kind: Data::Text, payload, .. })) => match count(&payload) {
                Some(count) => self.outgoing.read_up_to(count).map_err(|impossible| impossible.to_string()),
                None => Err("the other end sent a text that is no count of bytes".to_owned()),
            },
            Some(Ok(frame)) => self.incoming.push(frame.payload).map_err(|impossible| impossible.to_string()),
            Some(Err(error)) => {
                self.cut(error.to_string());
                Ok(())
            }
            None if frames.is_closed() => {
                self.over(None);
                Ok(())
            }
            None => {
                self.cut("it was closed without a word".to_owned());
                Ok(())
            }
        };
        if let Err(why) = taken {
            self.over(Some((io::ErrorKind::InvalidData, why)));
        }
        Poll::Ready(())
    }
}

/// A count as a message tells it.
fn count(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Resumable<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        loop {
            let _ = state.poll_give(cx);
            let _ = state.poll_flushed(cx);
            if state.incoming.fill(into) {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(end) = state.poll_over() {
                return Poll::Ready(end);
            }
            ready!(state.poll_receive(cx));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Resumable<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        loop {
            if state.outgoing.waiting() >= PIECE || state.outgoing.is_full() {
                let _ = state.poll_give(cx);
                let _ = state.poll_flushed(cx);
            }
            if let Poll::Ready(end) = state.poll_over() {
                return Poll::Ready(Err(end.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())));
            }
            if state.outgoing.waiting() < PIECE && !state.outgoing.is_full() {
                return Poll::Ready(Ok(state.outgoing.push(bytes)));
            }
            // There will be room when the other end tells what it has read, even if nobody reads here.
            ready!(state.poll_receive(cx));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        let flushed = match state.poll_give(cx) {
            Poll::Ready(()) => state.poll_flushed(cx),
            Poll::Pending => Poll::Pending,
        };
        if let Poll::Ready(end) = state.poll_over() {
            return Poll::Ready(end);
        }
        flushed.map(Ok)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        let given = state.poll_give(cx);
        if let Poll::Ready(end) = state.poll_over() {
            return Poll::Ready(end);
        }
        ready!(given);
        if let Phase::Connected(frames) = &mut state.phase {
            // If it breaks now, the other end has to find out by itself.
            let _ = ready!(Pin::new(frames).poll_close(cx));
        }
        state.over(None);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Drop for Resumable<S> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Phase::Connected(frames) = &mut state.phase {
            let _ = Pin::new(frames).poll_close(&mut Context::from_waker(Waker::noop()));
        }
        state.over(None);
    }
}
