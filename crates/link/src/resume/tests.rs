//! Streams over pipes that are cut; the clock is paused.

use std::pin::pin;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::time::timeout;

use super::counts::WINDOW;
use super::*;
use crate::frames::Side;

mod cuts;

type Pipe = DuplexStream;

/// One end of a stream.
struct End {
    stream: Resumable<Pipe>,
    handle: Handle<Pipe>,
}

fn pipe(size: usize) -> [Frames<Pipe>; 2] {
    let (client, server) = duplex(size);
    [Frames::new(client, Side::Client), Frames::new(server, Side::Server)]
}

fn pair(size: usize) -> [End; 2] {
    pipe(size).map(|frames| {
        let (stream, handle) = Resumable::new(frames);
        End { stream, handle }
    })
}

/// The other end as bare frames.
fn against(side: Side) -> (End, Frames<Pipe>) {
    let [client, server] = pipe(1 << 20);
    let (own, other) = if side == Side::Client { (client, server) } else { (server, client) };
    let (stream, handle) = Resumable::new(own);
    (End { stream, handle }, other)
}

/// Puts both ends on a new pipe.
fn join([a, b]: [&Handle<Pipe>; 2], size: usize) {
    let [client, server] = pipe(size);
    let a = a.offer().unwrap();
    let b = b.offer_at(a.read()).unwrap();
    let (from_a, from_b) = (a.read(), b.read());
    b.go_on(from_a, server).unwrap();
    a.go_on(from_b, client).unwrap();
}

/// Both ends wait for the other.
async fn nothing(a: &mut End, b: &mut End) {
    let mut buffers = ([0; 1], [0; 1]);
    let (one, two) = tokio::join!(a.stream.read(&mut buffers.0), b.stream.read(&mut buffers.1));
    panic!("{one:?} {two:?}");
}

impl Handle<Pipe> {
    /// Memory of what is kept and of what waits to be read.
    fn memory(&self) -> [usize; 2] {
        let state = self.0.lock();
        [state.outgoing.memory(), state.incoming.memory()]
    }

    fn is_suspended(&self) -> bool {
        self.cut().now_or_never().is_some()
    }
}

#[tokio::test(start_paused = true)]
async fn at_rest_all_is_told_and_nothing_is_kept() {
    let [mut a, mut b] = pair(1 << 16);
    let mut buffer = vec![0; 1 << 20];
    for length in [1, 100, 70_000, 900_000] {
        let write = async {
            a.stream.write_all(&vec![7; length]).await.unwrap();
            a.stream.flush().await.unwrap();
        };
        let (_, read) = tokio::join!(write, b.stream.read_exact(&mut buffer[..length]));
        read.unwrap();
        assert!(length > 70_000 || a.handle.memory()[0] >= length.min(1 << 10), "it was not told yet");
        assert!(timeout(2 * REST, nothing(&mut a, &mut b)).await.is_err());
        assert_eq!((a.handle.memory(), b.handle.memory()), ([0, 0], [0, 0]));
        assert!([&a, &b].iter().all(|end| end.handle.0.lock().timer.is_none()), "nothing more will be done");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_told_waits_with_a_window() {
    let (mut end, mut other) = against(Side::Client);
    let mut written = 0;
    let mut received = 0;
    for round in 0..3_u64 {
        let writing = async {
            loop {
                written += end.stream.write(&[1; 5000]).await.unwrap();
                end.stream.flush().await.unwrap();
            }
        };
        let receiving = async {
            while let Some(frame) = other.next().await {
                received += frame.unwrap().payload.len();
            }
        };
        let _ = timeout(Duration::from_secs(1), async { tokio::join!(writing, receiving) }).await;
        assert_eq!((written, received), (WINDOW + round as usize * 70_000, WINDOW + round as usize * 70_000));
        assert!(end.handle.memory()[0] <= WINDOW);
        other.send(Frame::text((70_000 * (round + 1)).to_string())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn much_is_told_at_once_and_little_at_rest_and_nothing_twice() {
    let (mut end, mut other) = against(Side::Server);
    let mut buffer = vec![0; 1 << 16];
    for (length, told, waits) in [(1 << 16, 1 << 16, false), (9, (1 << 16) + 9, true)] {
        let began = Instant::now();
        for piece in buffer[..length].chunks(1 << 14) {
            other.send(Frame::binary(piece.to_vec())).await.unwrap();
        }
        end.stream.read_exact(&mut buffer[..length]).await.unwrap();
        let mut none = [0; 1];
        let text = tokio::select! {
            read = end.stream.read(&mut none) => panic!("{read:?}"),
            frame = other.next() => frame.unwrap().unwrap(),
        };
        assert_eq!(text, Frame::text(told.to_string()));
        assert_eq!(began.elapsed() >= REST, waits);
    }
    // The offer told it.
    other.send(Frame::binary("more")).await.unwrap();
    end.stream.read_exact(&mut buffer[..4]).await.unwrap();
    let [mut client, server] = pipe(1 << 10);
    end.handle.offer().unwrap().go_on(0, server).unwrap();
    let mut none = [0; 1];
    let told = async {
        tokio::select! {
            read = end.stream.read(&mut none) => panic!("{read:?}"),
            frame = client.next() => frame,
        }
    };
    assert!(timeout(2 * REST, told).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_little_is_taken() {
    let [mut a, _b] = pair(1 << 17);
    a.stream.write_all(&[0; 50_000]).await.unwrap();
    a.stream.flush().await.unwrap();
    drop(a.handle.offer());
    let mut taken = 0;
    let writing = async {
        while let Ok(written) = a.stream.write(&[0; 5000]).await {
            taken += written
        }
    };
    assert!(timeout(REST, writing).await.is_err());
    assert!(taken < 2 * PIECE, "{taken}");
    assert!(timeout(REST, a.stream.flush()).await.is_err(), "it has not gone");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_does_not_read_hears_what_was_read() {
    let [mut a, b] = pair(1 << 10);
    let (mut from_b, mut to_b) = split(b.stream);
    let write = async { a.stream.write_all(&vec![1; 5 * WINDOW]).await.unwrap() };
    let drain = async {
        let mut buffer = [0; 1 << 14];
        while from_b.read(&mut buffer).await.unwrap() > 0 {}
    };
    // More than fits into the pipe comes before what it waits for.
    let answer = async {
        to_b.write_all(&vec![2; WINDOW / 2]).await.unwrap();
        to_b.flush().await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = timeout(Duration::from_secs(60), write) => ended.expect("it is not held up"),
        _ = async { tokio::join!(drain, answer) } => unreachable!("they go on"),
    }
    let mut all = vec![0; WINDOW / 2];
    a.stream.read_exact(&mut all).await.unwrap();
    assert!(all.iter().all(|byte| *byte == 2));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_ends_the_stream() {
    for texts in [&["4"][..], &["3", "2"], &["x"], &[""], &["-1"], &["18446744073709551616"], &["18446744073709551615"]]
    {
        let (mut end, mut other) = against(Side::Server);
        end.stream.write_all(b"123").await.unwrap();
        end.stream.flush().await.unwrap();
        for text in texts {
            other.send(Frame::text(*text)).await.unwrap();
        }
        let error = timeout(REST, end.stream.read(&mut [0; 9])).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{texts:?}: {error}");
        assert!(end.stream.write(b"4").await.is_err() && end.handle.offer().is_none());
    }
    // Who sends without waiting, to one that does not read.
    let (mut end, mut other) = against(Side::Server);
    let sending = async { while other.feed(Frame::binary(vec![0; 1 << 14])).await.is_ok() {} };
    let writing = async { end.stream.write_all(&vec![0; 2 * WINDOW]).await.unwrap_err() };
    let (error, ()) = tokio::join!(writing, sending);
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    // At a connection that goes on; one that is told first is left alone.
    for wrong in [0, 6, u64::MAX] {
        let (mut end, mut other) = against(Side::Client);
        end.stream.write_all(b"12345").await.unwrap();
        end.stream.flush().await.unwrap();
        other.send(Frame::text("2")).await.unwrap();
        assert!(timeout(REST, end.stream.read(&mut [0; 9])).await.is_err());
        assert!(end.handle.offer_at(wrong).is_none() && !end.handle.is_suspended());
        let offer = end.handle.offer().unwrap();
        assert!(matches!(offer.go_on(wrong, pipe(9).into_iter().next().unwrap()), Err(NotResumed::Elsewhere(_))));
        let error = end.stream.read(&mut [0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_kept_for_its_time() {
    for comes_back in [true, false] {
        let [mut a, mut b] = pair(1 << 10);
        a.stream.write_all(b"before").await.unwrap();
        let (first, second) = (a.handle.offer().unwrap(), b.handle.clone());
        drop(first);
        let (mut one, mut two) = ([0; 6], [0; 6]);
        let mut reads = Box::pin(async { tokio::join!(a.stream.read(&mut one), b.stream.read_exact(&mut two)) });
        assert!(timeout(KEPT - Duration::from_secs(1), &mut reads).await.is_err());
        assert!(second.is_suspended());
        if comes_back {
            join([&a.handle, &b.handle], 1 << 10);
            // The read that is over answers no pings.
            assert!(timeout(SILENCE, &mut reads).await.is_err());
            drop(reads);
            assert_eq!(&two, b"before");
            continue;
        }
        let began = Instant::now();
        let (one, two) = timeout(2 * KEPT, reads).await.unwrap();
        assert_eq!(
            (one.unwrap_err().kind(), two.unwrap_err().kind()),
            (io::ErrorKind::TimedOut, io::ErrorKind::TimedOut)
        );
        assert!(began.elapsed() < Duration::from_secs(2));
        assert!(a.handle.offer().is_none() && !a.handle.is_suspended());
    }
}

#[tokio::test(start_paused = true)]
async fn who_shall_not_wait_ends_with_the_connection() {
    let [mut a, mut b] = pair(1 << 10);
    let mut buffer = [0; 9];
    b.handle.no_more("there is a newer one");
    assert!(timeout(REST, b.stream.read(&mut buffer)).await.is_err(), "the connection stands");
    drop(a.handle.offer());
    assert_eq!(b.stream.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let mut waiting = pin!(a.stream.read(&mut buffer));
    assert!(waiting.as_mut().now_or_never().is_none());
    a.handle.no_more("the other end does not know of it");
    let error = waiting.await.unwrap_err();
    assert!(error.to_string().contains("does not know"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_noticed_and_a_quiet_one_stays() {
    for side in [Side::Client, Side::Server] {
        let (mut end, _dead) = against(side);
        let began = Instant::now();
        let mut buffer = [0; 9];
        tokio::select! {
            read = end.stream.read(&mut buffer) => panic!("{read:?}"),
            () = end.handle.cut() => {}
        }
        assert!((25..=40).contains(&began.elapsed().as_secs()), "after {:?}", began.elapsed());
    }
    let [mut a, mut b] = pair(1 << 10);
    let quiet = timeout(10 * KEPT, nothing(&mut a, &mut b)).await;
    assert!(quiet.is_err() && !a.handle.is_suspended() && !b.handle.is_suspended());
}

#[tokio::test(start_paused = true)]
async fn a_wanted_end_is_no_cut() {
    for drops in [false, true] {
        let [mut a, mut b] = pair(1 << 10);
        a.stream.write_all(b"all").await.unwrap();
        a.stream.flush().await.unwrap();
        if drops {
            drop(a.stream);
        } else {
            a.stream.shutdown().await.unwrap();
            assert!(a.stream.write(b"more").await.is_err());
        }
        let mut all = Vec::new();
        timeout(REST, b.stream.read_to_end(&mut all)).await.unwrap().unwrap();
        assert_eq!(all, b"all");
        assert_eq!(b.stream.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(a.handle.offer().is_none() && b.handle.offer().is_none());
    }
    // Without a connection it waits until what was written has gone.
    let [mut a, mut b] = pair(1 << 10);
    a.stream.write_all(b"all").await.unwrap();
    drop((a.handle.offer(), b.handle.offer()));
    let mut ending = Box::pin(a.stream.shutdown());
    assert!(timeout(REST, &mut ending).await.is_err());
    join([&a.handle, &b.handle], 1 << 10);
    let mut all = Vec::new();
    let (ended, read) = tokio::join!(ending, b.stream.read_to_end(&mut all));
    ended.unwrap();
    assert_eq!((read.unwrap(), &all[..]), (3, &b"all"[..]));
}

#[tokio::test(start_paused = true)]
async fn an_older_offer_is_void() {
    let [mut a, mut b] = pair(1 << 10);
    let old = [a.handle.offer().unwrap(), a.handle.offer().unwrap()];
    let newer = a.handle.offer();
    let is_late = |offer: Offer<Pipe>| {
        let [late, _] = pipe(1 << 10);
        offer.go_on(0, late) == Err(NotResumed::Late)
    };
    let [one, other] = old;
    assert!(is_late(one), "a newer one may still be used");
    drop(newer);
    join([&a.handle, &b.handle], 1 << 10);
    assert!(is_late(other), "it went on");
    a.stream.write_all(b"goes on").await.unwrap();
    a.stream.flush().await.unwrap();
    let mut all = [0; 7];
    timeout(REST, b.stream.read_exact(&mut all)).await.unwrap().unwrap();
    assert_eq!(&all, b"goes on");
}

#[test]
fn names_are_read_as_they_are_written() {
    let resume = Resume { id: Id::random(), read: u64::MAX };
    assert_eq!(resume.to_string().parse(), Ok(resume));
    assert_eq!(resume.id.to_string().len(), 32);
    for wrong in [
        "",
        ":",
        "00:1",
        "+0000000000000000000000000000001:1",
        "00000000000000000000000000000001:x",
        "00000000000000000000000000000001",
    ] {
        assert!(wrong.parse::<Resume>().is_err(), "{wrong}");
    }
}
