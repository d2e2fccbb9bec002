//! DeviceController: devices and their models on their way to nodes, and what nodes report of them.
//!
//! Objects travel as all others do: EdgeController's downstream task follows them and asks [`downstream`] what a change means for which node;
//! [`devices`] is what is known of them. What nodes say goes through [`upstream`], which decides who may speak of what, into [`reports`], which has
//! the rules of gathering; [`writer`] writes it into `DeviceStatus` objects, of which [`status`] knows what is in them. [`membership`] is what a Go edge hears besides. Read `downstream` and
//! `reports` first.

pub mod devices;
pub mod downstream;
pub mod membership;
pub mod reports;
pub mod status;
pub mod upstream;
pub mod writer;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edgecontroller::view::View;
use crate::kubernetes::Kubernetes;

use writer::Writer;

/// Takes what nodes say of devices. Cloning is cheap.
#[derive(Clone)]
pub struct DeviceController {
    view: Arc<View>,
    writer: Writer,
}

impl DeviceController {
    /// With this knowledge of devices; what is reported is written until `stopping`.
    pub fn start(kubernetes: Kubernetes, view: Arc<View>, tasks: &TaskTracker, stopping: &CancellationToken) -> Self {
        let writer = Writer::start(kubernetes, view.clone(), tasks, stopping);
        Self { view, writer }
    }
}
