//! Sending, asking, groups, supervision and shutdown, with the clock paused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use beehive::{BoxFuture, Context, Inbox, Module, ModuleError, ModuleManager, SendError, SendSyncError, compose};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::{Content, Message};

fn bus() -> (Context, Vec<Inbox>) {
    Context::new(&[("a", "letters"), ("b", "letters"), ("one", "digits")], CancellationToken::new())
}

fn note(text: &str) -> Message {
    compose::message("test", "resource", "update", "default/pod/x", Content::text(text))
}

#[tokio::test]
async fn a_message_reaches_its_module_and_a_group_all_members_in_order() {
    let (context, mut inboxes) = bus();
    context.send("one", note("1")).await.expect("sent");
    for text in ["x", "y", "z"] {
        context.send_to_group("letters", note(text)).await.expect("sent");
    }
    assert_eq!(inboxes[2].recv().await.expect("message").content, Content::text("1"));
    for inbox in &mut inboxes[..2] {
        for text in ["x", "y", "z"] {
            assert_eq!(inbox.recv().await.expect("message").content, Content::text(text));
        }
        assert!(inbox.try_recv().is_none());
    }
}

#[tokio::test]
async fn no_message_vanishes_unnoticed() {
    let (context, mut inboxes) = bus();
    assert!(matches!(context.send("nobody", note("x")).await, Err(SendError::NoModule(_))));
    assert!(matches!(context.send_to_group("none", note("x")).await, Err(SendError::NoGroup(_))));
    drop(inboxes.remove(2));
    let error = context.send("one", note("x")).await.expect_err("ended");
    assert_eq!(error.to_string(), "module one has ended");
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_holds_its_sender_back() {
    let (context, mut inboxes) = bus();
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(1), context.send("one", note("x"))).await.is_ok() {
        sent += 1;
        assert!(sent < 100_000, "the inbox has no bound");
    }
    assert!(inboxes[2].recv().await.is_some());
    context.send("one", note("x")).await.expect("there is room again");
}

#[tokio::test]
async fn a_request_gets_the_answer_with_its_id() {
    let (context, mut inboxes) = bus();
    let asking = context.send_sync("one", note("?"), Duration::from_secs(5));
    let answering = async {
        let request = inboxes[2].recv().await.expect("request");
        assert!(request.header.sync);
        let mut stray = compose::response(&request, Content::text("stray"));
        stray.header.parent_msg_id = "other".into();
        assert!(!context.respond(stray), "nobody waits for it");
        assert!(context.respond(compose::response(&request, Content::ok())));
        assert!(!context.respond(compose::response(&request, Content::ok())), "answered once");
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert!(answer.expect("answer").content.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_without_answer_ends_at_its_deadline_and_leaves_nothing() {
    let (context, _inboxes) = bus();
    let began = Instant::now();
    let request = note("?");
    let id = request.header.msg_id.clone();
    let error = context.send_sync("one", request, Duration::from_secs(30)).await.expect_err("timeout");
    assert!(matches!(error, SendSyncError::Timeout { .. }), "{error}");
    assert_eq!(error.to_string(), "no answer from one about default/pod/x within 30 s");
    assert_eq!(began.elapsed(), Duration::from_secs(30));
    assert!(!context.is_waiting(&id));
}

struct Failing {
    starts: Arc<AtomicUsize>,
    left: usize,
}

impl Module for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }
    fn group(&self) -> &'static str {
        "test"
    }
    fn run<'a>(&'a mut self, context: Context, _inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            self.starts.fetch_add(1, Ordering::SeqCst);
            if self.left > 0 {
                self.left -= 1;
                return Err("no luck".into());
            }
            context.stopping().await;
            Ok(())
        })
    }
}

struct Stubborn;

impl Module for Stubborn {
    fn name(&self) -> &'static str {
        "stubborn"
    }
    fn group(&self) -> &'static str {
        "test"
    }
    fn run<'a>(&'a mut self, _context: Context, _inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_module_is_started_again_after_growing_waits() {
    let starts = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let mut manager = ModuleManager::new();
    manager.register(Failing { starts: starts.clone(), left: 3 });
    let began = Instant::now();
    let watch = async {
        while starts.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
        began.elapsed()
    };
    let ((), took) = tokio::join!(manager.run(stop.clone()), watch);
    // Three waits of 1, 2 and 4 s, each shortened by up to a half.
    assert!(took >= Duration::from_millis(3500) && took <= Duration::from_millis(7200), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_module_that_does_not_end_is_dropped_after_the_grace_period() {
    let stop = CancellationToken::new();
    let mut manager = ModuleManager::new();
    manager.register(Stubborn);
    stop.cancel();
    let began = Instant::now();
    manager.run(stop).await;
    assert_eq!(began.elapsed(), Duration::from_secs(10));
}

struct Panicking;

impl Module for Panicking {
    fn name(&self) -> &'static str {
        "panicking"
    }
    fn group(&self) -> &'static str {
        "test"
    }
    fn run<'a>(&'a mut self, _context: Context, _inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async { unreachable!("a fault of the program") })
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_does_not_go_on_without_a_module_that_panicked() {
    let stop = CancellationToken::new();
    let mut manager = ModuleManager::new();
    manager.register(Panicking);
    manager.register(Failing { starts: Arc::default(), left: 0 });
    manager.run(stop.clone()).await;
    assert!(stop.is_cancelled());
}
