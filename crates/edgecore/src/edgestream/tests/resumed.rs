//! A tunnel whose connections are cut; the clock is paused.

use http::HeaderMap;
use link::resume::{Handle, Id, KEPT, Resume};
use link::tunnel::{NAME, RESUME};
use link::ws::LinkError;

use super::*;
use crate::edgestream::resumed::{self, Connected};

/// What a node finds that connects again.
#[derive(Clone)]
enum Way {
    Down,
    /// The cloud has forgotten the tunnel.
    Refused,
    Up(Handle<DuplexStream>),
}

fn headers(name: &'static str, value: impl ToString) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), value.to_string().parse().unwrap())])
}

fn connect(way: &Way, resume: Resume) -> Result<Connected<DuplexStream>, Ended> {
    match way {
        Way::Down => Err(Ended::Connect(LinkError::Timeout("connecting", Duration::from_secs(1)))),
        Way::Refused => {
            let (server, reason) = ("cloud".to_owned(), "unknown".to_owned());
            Err(Ended::Connect(LinkError::Refused { server, status: 410, reason }))
        }
        Way::Up(handle) => {
            let (node, cloud) = tokio::io::duplex(1 << 10);
            let offer = handle.offer_at(resume.read).expect("it can go on there");
            let headers = headers(RESUME, Resume { id: resume.id, read: offer.read() });
            offer.go_on(resume.read, Frames::new(cloud, Side::Server)).unwrap();
            Ok((Frames::new(node, Side::Client), headers))
        }
    }
}

/// A node that finds its way so, and the cloud's end of its tunnel.
fn start(way: watch::Receiver<Way>) -> (Node, Resumable<DuplexStream>, Handle<DuplexStream>) {
    let (node, cloud) = Node::start_with(move |frames, api, token| async move {
        let id = Id::random();
        let again = |_: &str, resume: Resume| {
            assert!(resume.id == id);
            std::future::ready(connect(&way.borrow(), resume))
        };
        let servers = ["cloud".to_owned()];
        resumed::serve((frames, headers(NAME, id)), ("cloud", &servers), again, &api, &token).await
    });
    let (stream, handle) = Resumable::new(cloud);
    (node, stream, handle)
}

#[tokio::test(start_paused = true)]
async fn streams_do_not_notice_a_cut() {
    let (to, way) = watch::channel(Way::Down);
    let (mut node, stream, handle) = start(way);
    let mut tasks = JoinSet::new();
    let mut sender = our_cloud(stream, &mut tasks).await;
    let request = Request::get("https://node/follow").body(Empty::new()).unwrap();
    let mut follow = within(sender.send_request(request)).await.unwrap().into_body();
    assert_eq!(within(follow.frame()).await.unwrap().unwrap().into_data().unwrap(), "line\n");
    let granted = within(sender.send_request(upgrade("/exec/echo"))).await.unwrap();
    let mut exec = TokioIo::new(within(hyper::upgrade::on(granted)).await.unwrap());
    let text: Vec<u8> = (0..100_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (cut_for, cuts) in [(Duration::ZERO, 5), (KEPT - Duration::from_secs(6), 2)] {
        for _ in 0..cuts {
            let (mut from, mut into) = tokio::io::split(&mut exec);
            let write = async {
                into.write_all(&text).await.unwrap();
                into.flush().await.unwrap();
            };
            let cut = async {
                tokio::task::yield_now().await;
                to.send_replace(if cut_for.is_zero() { Way::Up(handle.clone()) } else { Way::Down });
                drop(handle.offer());
                tokio::time::sleep(cut_for).await;
                to.send_replace(Way::Up(handle.clone()));
            };
            let mut echo = vec![0; text.len()];
            let echoed = async { from.read_exact(&mut echo).await.unwrap() };
            tokio::time::timeout(2 * KEPT, async { tokio::join!(write, cut, echoed) }).await.unwrap();
            assert!(echo == text);
            assert_eq!(node.streams.len(), 1);
        }
    }
    within(exec.shutdown()).await.unwrap();
    assert_eq!(within(exec.read(&mut [0; 1])).await.unwrap(), 0, "the end is told");
    drop((follow, exec, sender));
    tasks.shutdown().await;
    let ended = node.ended().await;
    assert!(!matches!(ended, Ended::Stopping), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_does_not_come_back_ends_with_its_streams() {
    for (way, least, most) in
        [(Way::Down, KEPT, KEPT + DEADLINE), (Way::Refused, Duration::ZERO, Duration::from_secs(1))]
    {
        let (_to, way) = watch::channel(way);
        let (mut node, stream, handle) = start(way);
        let mut tasks = JoinSet::new();
        let mut sender = our_cloud(stream, &mut tasks).await;
        let granted = within(sender.send_request(upgrade("/exec/echo"))).await.unwrap();
        let mut exec = TokioIo::new(within(hyper::upgrade::on(granted)).await.unwrap());
        let began = tokio::time::Instant::now();
        drop(handle.offer());
        let ended = tokio::time::timeout(most, node.tunnel.join_next()).await.unwrap().unwrap().unwrap();
        assert!(matches!(ended, Ended::Http2(_)), "{ended:?}");
        assert!((least..=most).contains(&began.elapsed()), "after {:?}", began.elapsed());
        node.streams.close();
        within(node.streams.wait()).await;
        let read = tokio::time::timeout(2 * KEPT, exec.read(&mut [0; 1])).await.unwrap();
        assert!(!matches!(read, Ok(1..)), "the other end is told as well: {read:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_does_not_wait_for_a_connection() {
    let (_to, way) = watch::channel(Way::Down);
    let (mut node, stream, handle) = start(way);
    let mut tasks = JoinSet::new();
    let mut sender = our_cloud(stream, &mut tasks).await;
    let _granted = within(sender.send_request(upgrade("/exec/echo"))).await.unwrap();
    drop(handle.offer());
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.stopping.cancel();
    let began = tokio::time::Instant::now();
    assert!(matches!(node.ended().await, Ended::Stopping));
    assert!(began.elapsed() < Duration::from_secs(6));
}
