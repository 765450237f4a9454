//! The `roc4mllm` binary: commands in, exit codes out.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Reads FAILPOINTS, and keeps what it says until the end.
    #[cfg(feature = "dev")]
    let _scenario = fail::FailScenario::setup();
    match cli::run(cli::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("roc4mllm: {}", failure.message());
            ExitCode::from(failure.exit_code)
        }
    }
}
