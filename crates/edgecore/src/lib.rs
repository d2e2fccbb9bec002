//! `edgecore`: the agent of an edge node.
//!
//! Three modules on one bus: [`edgehub`] holds the link to the cloud, [`metamanager`] keeps what the node needs in SQLite, and
//! `edged` runs the pods. A message from the cloud goes EdgeHub → MetaManager (durable, then acknowledged) → edged; a request of
//! edged goes the other way. Read `metamanager` first.

pub mod edgehub;
pub mod instance;
pub mod metamanager;
pub mod settings;

use api::edgecore::Config;
use beehive::ModuleManager;
use store::{Database, Durability};
use tokio_util::sync::CancellationToken;
use tracing::warn;

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
    modules.register(metamanager::MetaManager::new(database, config.remote_query_timeout()));
    if config.edge_hub().enable {
        modules.register(edgehub::EdgeHub::new(config));
    }
    if has_agent {
        modules.register(edged::Edged::new(agent));
    }
    modules.run(stopping).await;
    Ok(())
}
