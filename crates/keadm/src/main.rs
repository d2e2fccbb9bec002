//! `keadm`: the administrator's tool.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    keadm::run(std::env::args_os()).await
}
