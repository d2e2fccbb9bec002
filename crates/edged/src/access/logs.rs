//! Logs of containers.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;

use super::container::{UntilEnded, log_container};
use super::{Access, AccessError, ContainerName, has_container};
use crate::logs::read::{self, LogOptions, LogStream};

impl Access {
    /// What a container has written. `previous`: the instance before the present one.
    ///
    /// # Errors
    /// There is no such container, it has no log (yet), or the log cannot be read.
    pub async fn logs(
        self: &Arc<Self>,
        name: &ContainerName,
        options: LogOptions,
        previous: bool,
    ) -> Result<LogStream, AccessError> {
        let place = self.place()?;
        let pod = self.pod(&name.namespace, &name.pod, name.uid.as_deref()).await?;
        if !has_container(&pod.pod, &name.container) {
            let text = format!("container {:?} not found in pod {:?}", name.container, name.pod);
            return Err(AccessError::NotFound(text));
        }
        let id = log_container(&pod.status, &name.pod, &name.container, previous)?;
        let changes = self.changes.subscribe();
        let path = self.runtime.log_path(&id).await?.ok_or_else(|| {
            let text = format!("container {:?} in pod {:?} is not available", name.container, name.pod);
            AccessError::Refused(text)
        })?;
        let path = Path::new(&path);
        let following = options.follow.then(|| {
            let folder = self.log_watch.folder(path.parent().unwrap_or(path));
            (folder, UntilEnded::new(Arc::clone(&self.runtime), changes, pod.identity.uid, id))
        });
        let stream = read::open(path, options, following).await;
        let stream = stream.map_err(|source| AccessError::Log { path: path.display().to_string(), source })?;
        // The place is free again when the stream is dropped; the agent's end ends it too.
        let stopping = self.stopping.clone().cancelled_owned();
        Ok(Box::pin(stream.take_until(stopping).map(move |piece| {
            let _ = &place;
            piece
        })))
    }
}
