//! Generates both halves of the CRI calls that edged speaks.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked at run time: a build folder may serve several checkouts.
    let protos = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../edged/proto");
    println!("cargo:rerun-if-changed={}", protos.join("cri.proto").display());
    let files = protox::compile(["cri.proto"], [&protos])?;
    tonic_prost_build::configure().btree_map(".").compile_fds(files)?;
    Ok(())
}
