//! Generates both sides of both services, and the descriptor that reflection answers with.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["dmi.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("dmi.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().btree_map(".").compile_fds(files)?;
    Ok(())
}
