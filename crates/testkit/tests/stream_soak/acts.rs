//! What clients do, and the check of everything that comes back. What is wrong panics; what the link has cut is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::SinkExt;
use http_body_util::BodyExt;
use link::frames::{Frame, Frames, message};
use link::remote_command::{CLOSE, STATUS, STDIN, STDOUT, V5};
use link::tunnel::Io;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use testkit::door::Door;
use testkit::site::PODS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Serves a page and writes numbered lines for ever.
pub const TALK: &str = "mkdir /tmp/www; seq 1 40000 >/tmp/www/page; httpd -p 8080 -h /tmp/www; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done";
const PAGE: u32 = 40_000;
/// A log that is complete.
pub const BOOK: &str = "seq 1 150000; sleep 3600";
/// Its lines.
pub const BOOK_LINES: u32 = 150_000;
/// So long an act may take whose connection does not come through: the longest stall, what a node waits between tries, and the longest act.
pub const LIMIT: Duration = Duration::from_secs(200);
/// kubectl takes much memory.
const KUBECTLS: usize = 2;
/// Rounds of an exec.
const ROUNDS: usize = 20;
const MAX_CHUNK: usize = 40_000;
/// What the command ends with.
const CODE: i32 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    Follow,
    Book,
    Cat,
    PortForward,
    Refused,
    Kubectl,
}

impl Act {
    pub const ALL: [Self; 6] = [Self::Follow, Self::Book, Self::Cat, Self::PortForward, Self::Refused, Self::Kubectl];
}

/// How an act ended that the link did not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    Whole,
    /// The client left in the middle.
    Left,
}

/// Where clients act.
pub struct Stage {
    door: Door,
    kubeconfig: PathBuf,
    marker: String,
    book: Vec<u8>,
    page: Vec<u8>,
    kubectls: Semaphore,
}

/// How often what happened.
#[derive(Default)]
pub struct Tally {
    ended: Mutex<BTreeMap<(Act, Ended), usize>>,
    /// The longest time until a client knew, with what it was told.
    cut: Mutex<BTreeMap<Act, (usize, Duration, String)>>,
}

fn numbers(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

impl Stage {
    /// `marker` is in the command line of each process that is begun.
    pub fn new(door: Door, kubeconfig: PathBuf, marker: String) -> Self {
        let (book, page, kubectls) = (numbers(BOOK_LINES), numbers(PAGE), Semaphore::new(KUBECTLS));
        Self { door, kubeconfig, marker, book, page, kubectls }
    }

    /// One act after the other, until it shall leave.
    pub async fn client(self: Arc<Self>, mut random: StdRng, leaving: CancellationToken, tally: Arc<Tally>) {
        while !leaving.is_cancelled() {
            let act = Act::ALL[random.random_range(0..Act::ALL.len())];
            let began = Instant::now();
            let ended = timeout(LIMIT, self.act(act, &mut random, false)).await;
            match ended.unwrap_or_else(|_| panic!("{act:?} has not ended after {} s", LIMIT.as_secs())) {
                Ok(ended) => *tally.ended.lock().expect("no panic").entry((act, ended)).or_default() += 1,
                Err(error) => {
                    tally.cut(act, began.elapsed(), format!("{error:#}"));
                    sleep(Duration::from_millis(random.random_range(20..200))).await;
                }
            }
        }
    }

    /// An act to its end.
    pub async fn whole(&self, act: Act) -> Result<()> {
        let ended = timeout(LIMIT, self.act(act, &mut StdRng::seed_from_u64(1), true)).await.context("no end")??;
        ensure!(ended == Ended::Whole, "{act:?} was left");
        Ok(())
    }

    async fn act(&self, act: Act, random: &mut StdRng, whole: bool) -> Result<Ended> {
        match act {
            Act::Follow => self.follow(random, whole).await,
            Act::Book => self.book(random, whole).await,
            Act::Cat => self.cat(random, whole).await,
            Act::PortForward => self.port_forward(random, whole).await,
            Act::Refused => self.refused().await,
            Act::Kubectl => self.kubectl(random, whole).await,
        }
    }

    /// Each line follows on the one before.
    async fn follow(&self, random: &mut StdRng, whole: bool) -> Result<Ended> {
        let mut connection = self.door.open().await?;
        let mut body = connection.get(&format!("{PODS}/talk/log?container=main&follow=true&tailLines=5")).await?;
        let stay = Duration::from_millis(if whole { 2000 } else { random.random_range(20..4000) });
        let reads = whole || random.random_bool(0.8);
        let (mut rest, mut last) = (Vec::new(), None);
        let reading = async {
            while reads && let Some(frame) = body.frame().await {
                rest.extend_from_slice(frame?.data_ref().map_or(&[], |data| data.as_ref()));
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line).into_owned();
                    let number: u64 = line.trim_start_matches("line ").trim().parse().unwrap_or_default();
                    assert!(last.is_none_or(|last| number == last + 1), "after line {last:?} of a log came {line:?}");
                    last = Some(number);
                }
            }
            assert!(!reads, "the follow of a running container ended after line {last:?} as if that were all");
            std::future::pending::<Result<()>>().await
        };
        if let Ok(ended) = timeout(stay, reading).await {
            ended?;
        }
        ensure!(!whole || last.is_some(), "no line came");
        Ok(if whole { Ended::Whole } else { Ended::Left })
    }

    /// A log that ends is whole.
    async fn book(&self, random: &mut StdRng, whole: bool) -> Result<Ended> {
        let mut connection = self.door.open().await?;
        let mut body = connection.get(&format!("{PODS}/book/log?container=main")).await?;
        let leave = (!whole && random.random_bool(0.3)).then(|| random.random_range(0..self.book.len()));
        let waits = !whole && random.random_bool(0.3);
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            let Some(data) = frame.data_ref() else { continue };
            assert!(self.book[read..].starts_with(data), "a log has other bytes after {read}");
            read += data.len();
            if leave.is_some_and(|leave| read > leave) {
                return Ok(Ended::Left);
            }
            if waits && random.random_bool(0.05) {
                sleep(Duration::from_millis(random.random_range(0..500))).await;
            }
        }
        assert_eq!(read, self.book.len(), "a log was cut, and ended as if it were whole");
        Ok(Ended::Whole)
    }

    fn command(&self) -> [String; 4] {
        ["sh".to_owned(), "-c".to_owned(), format!("cat; exit {CODE}"), self.marker.clone()]
    }

    /// What goes in comes out, and the exit code at the end.
    async fn cat(&self, random: &mut StdRng, whole: bool) -> Result<Ended> {
        let words = self.command().map(|word| format!("&command={}", word.replace(' ', "%20").replace(';', "%3B")));
        let path = format!("{PODS}/talk/exec?container=main&stdin=true&stdout=true{}", words.concat());
        let mut connection = self.door.open().await?;
        let mut frames = connection.websocket(&path, V5).await?;
        let rounds = if whole { ROUNDS } else { random.random_range(0..ROUNDS) };
        for _ in 0..rounds {
            let mut chunk = vec![STDIN; random.random_range(2..MAX_CHUNK)];
            random.fill_bytes(&mut chunk[1..]);
            frames.send(Frame::binary(chunk.clone())).await?;
            // With its input and output on the way.
            if !whole && random.random_bool(0.03) {
                return Ok(Ended::Left);
            }
            let mut back = 1;
            while back < chunk.len() {
                let bytes = of_channel(&mut frames, STDOUT).await?;
                assert!(chunk[back..].starts_with(&bytes), "an exec answered other bytes than it got");
                back += bytes.len();
            }
            if !whole {
                sleep(Duration::from_millis(random.random_range(0..100))).await;
            }
        }
        if !whole && random.random_bool(0.4) {
            return Ok(Ended::Left);
        }
        frames.send(Frame::binary(vec![CLOSE, STDIN])).await?;
        let status = of_channel(&mut frames, STATUS).await?;
        let status = String::from_utf8_lossy(&status).into_owned();
        assert!(status.contains("ExitCode") && status.contains(&format!("\"{CODE}\"")), "the exit code is {status}");
        Ok(Ended::Whole)
    }

    /// A page by a forwarded port.
    async fn port_forward(&self, random: &mut StdRng, whole: bool) -> Result<Ended> {
        let mut connection = self.door.open().await?;
        let path = format!("{PODS}/talk/portforward?ports=8080");
        let mut frames = connection.websocket(&path, "v4.channel.k8s.io").await?;
        frames.send(Frame::binary(b"\0GET /page HTTP/1.0\r\n\r\n".to_vec())).await?;
        let mut answer = Vec::new();
        let leave = (!whole && random.random_bool(0.4)).then(|| random.random_range(0..self.page.len()));
        // Both channels begin with the port.
        for _ in 0..2 {
            let (_, first) = message(&mut frames).await?.context("the forwarded port was closed")?;
            ensure!(first.get(1..) == Some(&8080_u16.to_le_bytes()), "a forwarded port begins with {first:?}");
        }
        loop {
            let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|end| &answer[end + 4..]);
            if let Some(body) = body {
                assert!(self.page.starts_with(body), "a forwarded port brought other bytes");
                if body.len() == self.page.len() {
                    return Ok(Ended::Whole);
                }
            }
            if leave.is_some_and(|leave| answer.len() > leave) {
                return Ok(Ended::Left);
            }
            let (_, bytes) = message(&mut frames).await?.context("the forwarded port was closed")?;
            match bytes.split_first() {
                Some((0, data)) => answer.extend_from_slice(data),
                other => bail!("a forwarded port says {other:?}"),
            }
        }
    }

    /// A refusal comes as it is.
    async fn refused(&self) -> Result<Ended> {
        let mut connection = self.door.open().await?;
        let refused = connection.get(&format!("{PODS}/talk/log?container=absent")).await;
        let text = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(text.contains("container absent is not valid for pod talk"), "{text}");
        Ok(Ended::Whole)
    }

    /// The real kubectl, which is killed in the middle.
    async fn kubectl(&self, random: &mut StdRng, whole: bool) -> Result<Ended> {
        let _place = self.kubectls.acquire().await?;
        let mut command = tokio::process::Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--cache-dir").arg(self.kubeconfig.with_file_name("cache"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let follows = !whole && random.random_bool(0.5);
        match follows {
            true => command.args(["logs", "-f", "talk", "--tail=1"]),
            false => command.args(["exec", "-i", "talk", "-c", "main", "--"]).args(self.command()),
        };
        let mut child = command.spawn().context("kubectl")?;
        let (mut stdin, mut stdout) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        if follows {
            let mut some = [0; 40];
            stdout.read_exact(&mut some).await?;
            child.kill().await?;
            return Ok(Ended::Left);
        }
        stdin.write_all(b"hello\n").await?;
        let mut line = [0; 6];
        stdout.read_exact(&mut line).await?;
        assert_eq!(&line, b"hello\n");
        if !whole && random.random_bool(0.5) {
            child.kill().await?;
            return Ok(Ended::Left);
        }
        drop(stdin);
        let output = child.wait_with_output().await?;
        ensure!(output.status.code() == Some(CODE), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Ended::Whole)
    }
}

/// The bytes of the next message of this channel that has some.
async fn of_channel(frames: &mut Frames<Io>, channel: u8) -> Result<Vec<u8>> {
    loop {
        let (_, bytes) = message(frames).await?.context("the exec was closed")?;
        match bytes.split_first() {
            None | Some((_, [])) | Some((&CLOSE, _)) => {}
            Some((of, data)) if *of == channel => return Ok(data.to_vec()),
            Some((of, data)) => bail!("instead of channel {channel} came {of}: {}", String::from_utf8_lossy(data)),
        }
    }
}

impl Tally {
    fn cut(&self, act: Act, took: Duration, told: String) {
        let mut cut = self.cut.lock().expect("no panic");
        let (count, longest, text) = cut.entry(act).or_default();
        *count += 1;
        if took > *longest {
            (*longest, *text) = (took, told);
        }
    }

    /// Something was whole, and something was left. Cuts are mostly not noticed by clients.
    pub fn is_a_test(&self) -> bool {
        let ended = self.ended.lock().expect("no panic");
        let some = |how| ended.keys().any(|(_, ended)| *ended == how);
        some(Ended::Whole) && some(Ended::Left)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((act, ended), count) in &*self.ended.lock().expect("no panic") {
            writeln!(f, "{act:?} {ended:?}: {count}")?;
        }
        for (act, (count, longest, text)) in &*self.cut.lock().expect("no panic") {
            writeln!(f, "{act:?} cut: {count}, known at the latest after {:.1} s: {text}", longest.as_secs_f64())?;
        }
        Ok(())
    }
}
