//! The thermometer that `up` plays, and what a user sees of it.

use std::process::Command;

use anyhow::Result;
use testkit::deployment::{Cluster, Deployment, device};

use crate::terminal::step;

/// The name of the process that plays it.
const THERMOMETER: &str = "thermometer";

/// Makes the device, plays it, and waits until the cluster hears of it.
pub async fn show(deployment: &mut Deployment, cluster: &Cluster) -> Result<()> {
    step(match device::create(cluster).await? {
        true => "created device.devices.kubeedge.io/thermometer on edge-1",
        false => "found device.devices.kubeedge.io/thermometer of an earlier run",
    });
    let began = std::time::Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["thermometer", "--broker"]).arg(deployment.broker(1)?.to_string());
    deployment.children.start(THERMOMETER, &mut command, &deployment.layout.log(THERMOMETER))?;
    let value = device::wait(cluster).await?;
    step(format_args!(
        "it speaks MQTT, and the cluster knows its temperature: {value} ({:.1} s)",
        began.elapsed().as_secs_f32()
    ));
    Ok(())
}
