//! The `roc4mllm` binary: commands in, exit codes out.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("roc4mllm: {}", failure.message());
            ExitCode::from(failure.exit_code)
        }
    }
}
