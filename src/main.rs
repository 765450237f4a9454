//! The `roc4mllm` binary: commands in, exit codes out.

mod cli;

use clap::Parser;
use std::io::Write;

fn main() {
    roc4mllm::heap::settle();
    // Reads FAILPOINTS, and keeps what it says until the end.
    #[cfg(feature = "dev")]
    let _scenario = fail::FailScenario::setup();
    let code = match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("roc4mllm: {}", failure.message());
            failure.exit_code
        }
    };
    leave(code)
}

/// Ends the process without running the C and C++ libraries' own destructors: a model thread that
/// hangs or a Kafka client that waits for a dead broker may still be using what those take apart.
fn leave(code: u8) -> ! {
    // With nobody left to read it there is nobody to tell.
    let _ = std::io::stdout().flush();
    // SAFETY: the call ends the process; everything that matters was flushed or committed before.
    unsafe { libc::_exit(i32::from(code)) }
}
