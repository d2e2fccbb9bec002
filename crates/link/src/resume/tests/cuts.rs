//! Bytes in both directions while connections break in all ways.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::sleep;

use super::*;

/// The byte at this place, of which the neighbours differ and no period is short.
fn byte(place: usize) -> u8 {
    (place.wrapping_mul(2_654_435_761) >> 13) as u8
}

async fn write_all(
    mut to: WriteHalf<Resumable<Pipe>>,
    length: usize,
    mut random: StdRng,
) -> WriteHalf<Resumable<Pipe>> {
    let mut written = 0;
    while written < length {
        let many = random.random_range(1..=40_000).min(length - written);
        let bytes: Vec<u8> = (written..written + many).map(byte).collect();
        let taken = to.write(&bytes).await.unwrap();
        written += taken;
        if random.random_bool(0.3) {
            to.flush().await.unwrap();
        }
        if random.random_bool(0.1) {
            sleep(Duration::from_millis(random.random_range(0..700))).await;
        }
    }
    to.flush().await.unwrap();
    to
}

async fn read_all(mut from: ReadHalf<Resumable<Pipe>>, length: usize, mut random: StdRng) {
    let mut read = 0;
    let mut buffer = vec![0; 30_000];
    loop {
        let many = random.random_range(1..=buffer.len());
        let now = from.read(&mut buffer[..many]).await.unwrap();
        for (place, got) in buffer[..now].iter().enumerate() {
            assert_eq!(*got, byte(read + place), "at {}", read + place);
        }
        read += now;
        if now == 0 {
            break assert_eq!(read, length);
        }
        if random.random_bool(0.1) {
            sleep(Duration::from_millis(random.random_range(0..700))).await;
        }
    }
}

/// Cuts in all ways, so often.
async fn cut_often(handles: [Handle<Pipe>; 2], cuts: usize, size: usize, mut random: StdRng) {
    for _ in 0..cuts {
        sleep(Duration::from_millis(random.random_range(0..300))).await;
        for handle in &handles {
            let [kept, waiting] = handle.memory();
            assert!(kept <= WINDOW && waiting <= 2 * WINDOW, "{kept} {waiting}");
        }
        let [a, b] = &handles;
        match random.random_range(0..4) {
            // What is on its way is lost.
            0 => drop((a.offer(), b.offer())),
            // One end finds out by the other's end of the pipe, after what was on its way.
            1 => drop(a.offer()),
            2 => drop(b.offer()),
            // A connection that came about, but the other end has not heard of it.
            _ => {
                let [client, _lost] = pipe(size);
                let (mine, theirs) = (a.offer().unwrap(), b.offer().unwrap());
                let read = theirs.read();
                mine.go_on(read, client).unwrap();
                sleep(Duration::from_millis(random.random_range(0..5))).await;
            }
        }
        sleep(Duration::from_millis(random.random_range(0..200))).await;
        join([a, b], size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_arrives_once_and_in_order(
        lengths: [u32; 2], size in 64_usize..100_000, cuts in 0_usize..40, seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let lengths = lengths.map(|length| length as usize % 1_800_000);
            let random = |number: u64| StdRng::seed_from_u64(seed.wrapping_add(number));
            let [a, b] = pair(size);
            let handles = [a.handle, b.handle];
            let cutting = cut_often(handles.clone(), cuts, size, random(0));
            let ((from_a, to_a), (from_b, to_b)) = (split(a.stream), split(b.stream));
            let writing = async {
                let writing = (write_all(to_a, lengths[0], random(1)), write_all(to_b, lengths[1], random(2)));
                let (mut to_a, to_b, ()) = tokio::join!(writing.0, writing.1, cutting);
                // The other end has read all; it ends when it is told to.
                while handles.iter().any(|handle| handle.memory()[0] > 0) {
                    sleep(REST).await;
                }
                to_a.shutdown().await.unwrap();
                drop(to_b);
            };
            let reading_a = read_all(from_a, lengths[1], random(3));
            let reading_b = read_all(from_b, lengths[0], random(4));
            let all = async { tokio::join!(writing, reading_a, reading_b) };
            timeout(Duration::from_secs(3600), all).await.expect("it goes on");
        });
    }
}
