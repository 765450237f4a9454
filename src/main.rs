//! The `roc4mllm` binary: commands in, exit codes out.

mod cli;

use clap::Parser;
use std::io::Write;

fn main() {
    bound_arenas();
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

/// Has glibc's allocator keep no more arenas than there are cores, and two at least.
///
/// It may take eight a core otherwise, and keeps in each what a burst of retries or a reconnect freed there: a
/// worker's resident memory then grows by a tenth over its first minutes. Where `MALLOC_ARENA_MAX` or
/// `GLIBC_TUNABLES` is set, that holds.
fn bound_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"].iter().all(|name| std::env::var_os(name).is_none()) {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        // SAFETY: no other thread runs yet, and the allocator takes any number.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::try_from(cores).unwrap_or(i32::MAX)) };
    }
}

/// Ends the process without running the C and C++ libraries' own destructors: a model thread that
/// hangs or a Kafka client that waits for a dead broker may still be using what those take apart.
fn leave(code: u8) -> ! {
    // With nobody left to read it there is nobody to tell.
    let _ = std::io::stdout().flush();
    // SAFETY: the call ends the process; everything that matters was flushed or committed before.
    unsafe { libc::_exit(i32::from(code)) }
}
