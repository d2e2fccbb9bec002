//! Starting, watching over and stopping modules.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::context::{Context, Inbox};

/// The wait before a failed module is started again; doubled after each failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait before a failed module is started again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A module that ran this long is healthy: the next failure waits briefly again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How long modules may take to end once the process is to stop.
pub const GRACE: Duration = Duration::from_secs(10);

/// Why a module ended.
pub type ModuleError = Box<dyn std::error::Error + Send + Sync>;

/// A part of a program that owns its state and lives on its inbox.
pub trait Module: Send + 'static {
    /// Its name; messages are sent to it.
    fn name(&self) -> &'static str;

    /// Its group; a message to a group reaches all its members.
    fn group(&self) -> &'static str;

    /// Works until the process is to stop. `Ok` ends the module for good; after an error it is started again, with its
    /// state and inbox as they are.
    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>>;
}

/// The modules of a program.
#[derive(Default)]
pub struct ModuleManager {
    modules: Vec<Box<dyn Module>>,
}

impl ModuleManager {
    /// A program without modules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a module; names are unique.
    pub fn register(&mut self, module: impl Module) {
        self.modules.push(Box::new(module));
    }

    /// Runs every module until `stopping` is cancelled, then gives them [`GRACE`] to end. Cancels `stopping` itself when a
    /// module panics.
    pub async fn run(self, stopping: CancellationToken) {
        let names: Vec<_> = self.modules.iter().map(|module| (module.name(), module.group())).collect();
        let (context, inboxes) = Context::new(&names, stopping.clone());
        let mut running = JoinSet::new();
        for (module, inbox) in self.modules.into_iter().zip(inboxes) {
            running.spawn(supervise(module, inbox, context.clone()));
        }
        loop {
            let ended = tokio::select! {
                () = stopping.cancelled() => break,
                Some(ended) = running.join_next() => ended,
            };
            if let Err(error) = ended
                && error.is_panic()
            {
                // Its state may be broken, and the others rely on it: better a fresh start than a program that limps.
                error!(%error, "a module panicked; the program stops");
                stopping.cancel();
            }
        }
        let all_ended = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all_ended).await.is_err() {
            warn!(modules = running.len(), "modules did not end in time and are dropped");
        }
    }
}

async fn supervise(mut module: Box<dyn Module>, mut inbox: Inbox, context: Context) {
    let name = module.name();
    let mut wait = FIRST_WAIT;
    loop {
        info!(module = name, "module started");
        let began = Instant::now();
        match module.run(context.clone(), &mut inbox).await {
            Ok(()) => {
                info!(module = name, "module ended");
                return;
            }
            Err(_) if context.token().is_cancelled() => return,
            Err(error) => {
                if began.elapsed() >= HEALTHY_AFTER {
                    wait = FIRST_WAIT;
                }
                let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.0));
                error!(module = name, error = %chain(error.as_ref()), wait_ms = jittered.as_millis(), "module failed; it is started again");
                tokio::select! {
                    () = tokio::time::sleep(jittered) => {}
                    () = context.stopping() => return,
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// An error with its sources on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
