//! `edgecore`: the agent of an edge node.
//!
//! Modules on one bus: [`edgehub`] holds the link to the cloud, [`metamanager`] keeps what the node needs in SQLite, `edged` runs
//! the pods, [`edgestream`] lets the cloud ask it, [`eventbus`] speaks MQTT with devices, [`dmi`] has mappers drive them, and [`devicetwin`] knows what they are and shall be. A message from the cloud goes EdgeHub → MetaManager (durable, then acknowledged) → edged; a request of
//! edged goes the other way. Read `metamanager` first.

#[cfg(test)]
mod device_world;
pub mod devicetwin;
pub mod dmi;
pub mod edgehub;
pub mod edgestream;
pub mod eventbus;
pub mod instance;
pub mod metamanager;
pub mod settings;

use std::sync::OnceLock;

use api::edgecore::Config;
use beehive::ModuleManager;
use edged::events::Recorder;
use link::resume::Id;
use store::{Database, Durability};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// edgecore cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another one runs on the same database.
    #[error(transparent)]
    Instance(#[from] instance::InstanceError),
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] store::OpenError),
}

/// What tells this process from the node's others before and after it.
pub(crate) fn process() -> String {
    static PROCESS: OnceLock<Id> = OnceLock::new();
    PROCESS.get_or_init(Id::random).to_string()
}

/// Runs the node until `stopping` is cancelled.
///
/// # Errors
/// Another edgecore runs already, or the database cannot be used.
pub async fn run(config: &Config, stopping: CancellationToken) -> Result<(), StartError> {
    for warning in &config.document.warnings {
        warn!(warning, "configuration");
    }
    for module in config.missing_modules() {
        warn!(module, "this module is enabled in the configuration, but not part of this version; it does not run");
    }
    let _database = instance::Instance::claim(&config.database())?;
    let database = Database::open(&config.database(), metamanager::SCHEMA, Durability::Full)?;
    let has_agent = config.document.flag("modules.edged.enable");
    let agent = settings::edged(config);
    // Two agents in one folder would each remove the other's pods.
    let _folder = has_agent.then(|| instance::Instance::claim(&agent.root_dir.join("edgecore"))).transpose()?;
    let mut modules = ModuleManager::new();
    modules.register(metamanager::MetaManager::new(database.clone(), config.remote_query_timeout()));
    if config.edge_hub().enable {
        modules.register(edgehub::EdgeHub::new(config));
    }
    let (to_twin, arrived) = mpsc::channel(eventbus::WAITING);
    let bus = match config.event_bus() {
        Some(settings) => {
            let (event_bus, bus) = eventbus::EventBus::new(settings, &config.database(), to_twin.clone());
            modules.register(event_bus);
            bus
        }
        None => eventbus::Bus::silent(),
    };
    if let Some(socket) = config.dmi_socket() {
        let changed = dmi::Changed::new();
        let node = config.node_name();
        let events = Recorder::of("devicetwin", &node, agent.report_event);
        modules.register(dmi::Dmi::new(socket, database.clone(), to_twin, changed.clone(), events.0.clone()));
        let twin = devicetwin::DeviceTwin::new(&node, database.clone(), (arrived, bus), changed, events);
        modules.register(twin);
    }
    if has_agent {
        let pages = config.dmi_socket().map(|_| devicetwin::pages(database));
        let edged = edged::Edged::new(agent.clone()).with_devices(pages);
        match config.edge_stream() {
            Some(settings) => {
                modules.register(edgestream::EdgeStream::new(settings, config.edge_hub(), agent, edged.node_api()));
            }
            None => info!(
                "EdgeStream is off: kubectl logs and exec do not reach this node; modules.edgeStream.enable: true switches it on"
            ),
        }
        modules.register(edged);
    }
    modules.run(stopping).await;
    Ok(())
}
