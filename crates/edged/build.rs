//! Generates the clients of the services in `proto/`, and both sides of device plugins: the agent is a server to them.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["cri.proto", "containerd_events.proto", "containerd_tasks.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).btree_map(".").compile_fds(files)?;
    let plugins = protox::compile(["deviceplugin.proto"], ["proto"])?;
    tonic_prost_build::configure().btree_map(".").compile_fds(plugins)?;
    Ok(())
}
