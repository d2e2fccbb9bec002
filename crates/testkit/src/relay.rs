//! A TCP relay with the faults of a bad link: delay, jitter, directions that go dead, cuts. It stands between a node and its cloud.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes that are passed on at once.
const CHUNK: usize = 16 << 10;
/// Chunks on their way in one direction; more wait in the sender's socket, as on a full link.
const ON_THE_WAY: usize = 256;

/// What the link does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// How long each byte takes in one direction.
    pub delay: Duration,
    /// Up to so much more, at random; the order stays.
    pub jitter: Duration,
    /// Nothing comes through from the node to the cloud; connections stay open.
    pub up_is_dead: bool,
    /// Nothing comes through from the cloud to the node; connections stay open.
    pub down_is_dead: bool,
    /// There is no link: what connects is closed at once.
    pub is_down: bool,
}

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

impl Weather {
    fn lets_through(&self, way: Way) -> bool {
        match way {
            Way::Up => !self.up_is_dead,
            Way::Down => !self.down_is_dead,
        }
    }
}

/// How connections end.
#[derive(Clone, Copy)]
enum Cut {
    /// Both sides are told that nothing more comes.
    Closed,
    /// With a reset; what was on its way is lost.
    Reset,
}

/// A running relay. Dropping it cuts everything.
pub struct Relay {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Every connection ends at the next.
    cuts: watch::Sender<Cut>,
    _task: JoinSet<()>,
}

impl Relay {
    /// Listens on a free port of loopback, for connections to `target`.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start(target: SocketAddr, weather: Weather) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(weather);
        let (cuts, cut) = watch::channel(Cut::Closed);
        let mut task = JoinSet::new();
        task.spawn(serve(listener, target, seen, cut));
        Ok(Self { address, weather, cuts, _task: task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather, also for open connections.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Cuts all open connections; new ones may come.
    pub fn cut(&self) {
        self.cuts.send_replace(Cut::Closed);
    }

    /// Cuts all open connections as a middle-box does that has forgotten them; new ones may come.
    pub fn reset(&self) {
        self.cuts.send_replace(Cut::Reset);
    }
}

async fn serve(
    listener: TcpListener,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    cuts: watch::Receiver<Cut>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((node, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if weather.borrow().is_down {
            continue;
        }
        let (weather, mut cut) = (weather.clone(), cuts.clone());
        cut.mark_unchanged();
        connections.spawn(async move {
            let Ok(cloud) = TcpStream::connect(target).await else { return };
            let _ = (node.set_nodelay(true), cloud.set_nodelay(true));
            let (mut node_reads, mut node_writes) = node.into_split();
            let (mut cloud_reads, mut cloud_writes) = cloud.into_split();
            tokio::select! {
                () = pump(&mut node_reads, &mut cloud_writes, Way::Up, weather.clone()) => return,
                () = pump(&mut cloud_reads, &mut node_writes, Way::Down, weather) => return,
                _ = cut.changed() => {}
            }
            if let Cut::Reset = *cut.borrow() {
                for side in [node_reads.as_ref(), cloud_reads.as_ref()] {
                    let _ = side.set_zero_linger();
                }
                // Dropped, they would still say that nothing more comes.
                node_writes.forget();
                cloud_writes.forget();
            }
        });
    }
}

/// Passes bytes on until one side ends.
async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, way: Way, mut weather: watch::Receiver<Weather>) {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let arrivals = weather.clone();
    let receive = async move {
        let mut last = Instant::now();
        loop {
            let mut chunk = vec![0; CHUNK];
            let Ok(count @ 1..) = from.read(&mut chunk).await else { return };
            chunk.truncate(count);
            let Weather { delay, jitter, .. } = *arrivals.borrow();
            last = last.max(Instant::now() + delay + jitter.mul_f64(random()));
            if queue.send((last, chunk)).await.is_err() {
                return;
            }
        }
    };
    let send = async move {
        while let Some((due, chunk)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            let through = weather.wait_for(|weather| weather.lets_through(way)).await.is_ok();
            if !through || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    // What was received is still delivered when the sender has closed.
    tokio::join!(receive, send);
}

/// Between 0 and 1.
fn random() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends everything back, until the set is dropped.
    async fn echo() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let (mut reads, mut writes) = stream.split();
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
            }
        });
        (address, tasks)
    }

    #[tokio::test]
    async fn bytes_take_their_time_and_come_in_order() {
        let delay = Duration::from_millis(20);
        let weather = Weather { delay, jitter: delay, ..Weather::default() };
        let (target, _echo) = echo().await;
        let relay = Relay::start(target, weather).await.expect("relay");
        let mut stream = TcpStream::connect(relay.address()).await.expect("connected");
        let began = Instant::now();
        for number in 0..50_u8 {
            stream.write_all(&[number]).await.expect("sent");
        }
        let mut answer = [0; 50];
        stream.read_exact(&mut answer).await.expect("answer");
        assert!(began.elapsed() >= delay * 2, "{:?}", began.elapsed());
        assert!(answer.iter().copied().eq(0..50), "{answer:?}");
    }

    #[tokio::test]
    async fn a_dead_direction_holds_what_is_sent_and_a_cut_ends_it() {
        let (target, _echo) = echo().await;
        let relay = Relay::start(target, Weather::default()).await.expect("relay");
        let mut stream = TcpStream::connect(relay.address()).await.expect("connected");
        relay.set(Weather { down_is_dead: true, ..Weather::default() });
        stream.write_all(b"a").await.expect("sent");
        let mut answer = [0; 1];
        let silence = tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut answer)).await;
        assert!(silence.is_err(), "nothing comes through");
        relay.set(Weather::default());
        stream.read_exact(&mut answer).await.expect("it came after all");
        relay.cut();
        assert_eq!(stream.read(&mut answer).await.ok().unwrap_or_default(), 0);
        let mut stream = TcpStream::connect(relay.address()).await.expect("connected");
        stream.write_all(b"a").await.expect("sent");
        stream.read_exact(&mut answer).await.expect("it came");
        relay.reset();
        let error = stream.read(&mut answer).await.expect_err("reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        relay.set(Weather { is_down: true, ..Weather::default() });
        let mut refused = TcpStream::connect(relay.address()).await.expect("connected");
        assert_eq!(refused.read(&mut answer).await.ok().unwrap_or_default(), 0);
    }
}
