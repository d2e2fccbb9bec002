//! The bus: who can be reached, and who waits for which answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wire::Message;

/// Messages that wait in a module's inbox; a sender to a full one waits. Upstream has 1024; objects may have a megabyte
/// and nodes 64, so ours are shorter.
pub const INBOX: usize = 128;
/// Requests that wait for their answers at any time; more are refused.
pub const MAX_WAITING: usize = 4096;

/// A handle to the bus. Cloning is cheap.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
}

struct Shared {
    /// Fixed before any module starts.
    modules: HashMap<&'static str, Address>,
    waiting: Mutex<HashMap<String, oneshot::Sender<Message>>>,
    stopping: CancellationToken,
}

struct Address {
    group: &'static str,
    inbox: mpsc::Sender<Message>,
}

/// The receiving end of a module.
pub struct Inbox(mpsc::Receiver<Message>);

/// A message could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No module has this name; it may be disabled in the configuration.
    #[error("module {0} is not running: is it enabled?")]
    NoModule(String),
    /// No module belongs to this group.
    #[error("no running module belongs to group {0}")]
    NoGroup(String),
    /// The module has ended.
    #[error("module {0} has ended")]
    Ended(String),
}

/// A request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendSyncError {
    /// The request was not handed over.
    #[error("the request could not be sent")]
    Send(#[source] SendError),
    /// The answer did not come in time.
    #[error("no answer from {module} about {resource} within {} s", .after.as_secs_f32())]
    Timeout {
        /// The module that was asked.
        module: String,
        /// What the request was about.
        resource: String,
        /// The deadline.
        after: Duration,
    },
    /// Too many requests wait already.
    #[error("{MAX_WAITING} requests wait for answers already")]
    TooMany,
}

impl Inbox {
    /// The next message; `None` when nobody can send any more.
    pub async fn recv(&mut self) -> Option<Message> {
        self.0.recv().await
    }

    /// A message that is there already.
    pub fn try_recv(&mut self) -> Option<Message> {
        self.0.try_recv().ok()
    }
}

impl Context {
    /// A bus with these modules (name and group), and the inbox of each in the same order.
    pub fn new(modules: &[(&'static str, &'static str)], stopping: CancellationToken) -> (Self, Vec<Inbox>) {
        let mut addresses = HashMap::new();
        let mut inboxes = Vec::new();
        for &(name, group) in modules {
            let (sender, receiver) = mpsc::channel(INBOX);
            addresses.insert(name, Address { group, inbox: sender });
            inboxes.push(Inbox(receiver));
        }
        let shared = Shared { modules: addresses, waiting: Mutex::default(), stopping };
        (Self { shared: Arc::new(shared) }, inboxes)
    }

    /// Hands a message to a module; waits while its inbox is full.
    ///
    /// # Errors
    /// The module is not there or has ended.
    pub async fn send(&self, module: &str, message: Message) -> Result<(), SendError> {
        let address = self.shared.modules.get(module).ok_or_else(|| SendError::NoModule(module.to_owned()))?;
        address.inbox.send(message).await.map_err(|_| SendError::Ended(module.to_owned()))
    }

    /// Hands a copy of a message to each module of a group, in the order of sending for each.
    ///
    /// # Errors
    /// No module belongs to the group, or one has ended.
    pub async fn send_to_group(&self, group: &str, message: Message) -> Result<(), SendError> {
        let mut found = false;
        for (name, address) in self.shared.modules.iter().filter(|(_, address)| address.group == group) {
            found = true;
            address.inbox.send(message.clone()).await.map_err(|_| SendError::Ended((*name).to_owned()))?;
        }
        if found { Ok(()) } else { Err(SendError::NoGroup(group.to_owned())) }
    }

    /// Whether a module of this name is part of the program.
    pub fn has_module(&self, module: &str) -> bool {
        self.shared.modules.contains_key(module)
    }

    /// Sends a request and waits for the message that answers it; the deadline covers both.
    ///
    /// # Errors
    /// The request was not handed over, or no answer came in time.
    pub async fn send_sync(
        &self,
        module: &str,
        mut message: Message,
        after: Duration,
    ) -> Result<Message, SendSyncError> {
        let id = message.header.msg_id.clone();
        let resource = message.route.resource.clone();
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING {
                return Err(SendSyncError::TooMany);
            }
            waiting.insert(id.clone(), sender);
        }
        // Removes the entry however this ends, also when the caller drops this future.
        let _entry = Waiting { context: self, id: &id };
        message.header.sync = true;
        let exchange = async {
            self.send(module, message).await.map_err(SendSyncError::Send)?;
            // The sender is dropped only together with its entry, which this function holds.
            receiver.await.map_err(|_| SendSyncError::Send(SendError::Ended(module.to_owned())))
        };
        tokio::time::timeout(after, exchange)
            .await
            .unwrap_or_else(|_| Err(SendSyncError::Timeout { module: module.to_owned(), resource, after }))
    }

    /// Wakes the request that this message answers; `false` when none waits for it (any more).
    pub fn respond(&self, answer: Message) -> bool {
        match self.waiting().remove(&answer.header.parent_msg_id) {
            Some(sender) => sender.send(answer).is_ok(),
            None => false,
        }
    }

    /// Whether a request with this id waits for its answer.
    pub fn is_waiting(&self, id: &str) -> bool {
        self.waiting().contains_key(id)
    }

    /// Resolves when the process is to stop.
    pub async fn stopping(&self) {
        self.shared.stopping.cancelled().await;
    }

    /// The token behind [`Context::stopping`].
    pub fn token(&self) -> &CancellationToken {
        &self.shared.stopping
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Message>>> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting<'a> {
    context: &'a Context,
    id: &'a str,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.context.waiting().remove(self.id);
    }
}
