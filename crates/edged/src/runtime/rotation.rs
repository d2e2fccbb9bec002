//! Keeps container logs from filling the disk.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Runtime, RuntimeError};
use crate::cri::proto::ContainerState;
use crate::labels;
use crate::logs::rotate::{self, LargeLog};

impl Runtime {
    /// Rotates logs that have grown too large, until cancelled.
    pub async fn rotate_logs(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.rotate_all() => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings.container_log_monitor_interval) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn rotate_all(&self) {
        for log in rotate::large_logs(&self.settings.pod_logs_dir, self.settings.container_log_max_size) {
            if let Err(error) = self.rotate_log(&log).await {
                tracing::warn!(log = %log.path.display(), %error, "log not rotated");
            }
        }
    }

    /// Rotates the log of a container that runs; others grow no more.
    async fn rotate_log(&self, log: &LargeLog) -> Result<(), RuntimeError> {
        let selector = BTreeMap::from([
            (labels::POD_UID.to_owned(), log.uid.clone()),
            (labels::CONTAINER_NAME.to_owned(), log.container.clone()),
        ]);
        let containers = self.cri.list_containers(selector).await?;
        let writer = containers.into_iter().find(|container| {
            container.state() == ContainerState::ContainerRunning
                && container.annotations.get(labels::RESTART_COUNT) == Some(&log.restart_count)
        });
        let Some(writer) = writer else { return Ok(()) };
        let (path, max_files) = (log.path.clone(), self.settings.container_log_max_files);
        // Compressing takes a while.
        let rotating = tokio::task::spawn_blocking(move || rotate::rotate(&path, max_files, Timestamp::now()));
        let rotated = rotating.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let rotated = rotated.map_err(RuntimeError::files("rotating the log"))?;
        if let Err(error) = self.cri.reopen_log(&writer.id).await {
            rotate::undo(&log.path, &rotated).map_err(RuntimeError::files("taking the rotation back"))?;
            return Err(error.into());
        }
        Ok(())
    }
}
