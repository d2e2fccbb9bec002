//! Generates the server half of the CRI messages that edged's client speaks.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../edged/proto");
    println!("cargo:rerun-if-changed={}", protos.join("cri.proto").display());
    let files = protox::compile(["cri.proto"], [&protos])?;
    tonic_prost_build::configure().build_client(false).btree_map(".").compile_fds(files)?;
    Ok(())
}
