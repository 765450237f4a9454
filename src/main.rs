//! The `roc4mllm` binary: commands in, exit codes out.

mod cli;

use clap::Parser;
use std::io::Write;

fn main() {
    settle_heap();
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

/// Keeps what glibc's allocator holds close to what is in use.
///
/// It may take eight arenas a core, and keeps in each what a burst of retries, a reconnect or a neighbour's
/// partitions once took: resident memory then follows the worst minute so far. So there is an arena a core, two at
/// least, and what is free goes back to the system now and then. Where `MALLOC_ARENA_MAX` or `GLIBC_TUNABLES` is
/// set, that holds instead.
fn settle_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"].iter().all(|name| std::env::var_os(name).is_none()) {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        // SAFETY: no other thread runs yet, and the allocator takes any number.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::try_from(cores).unwrap_or(i32::MAX)) };
        let trimming = || loop {
            std::thread::sleep(std::time::Duration::from_secs(10));
            // SAFETY: it may be called at any time; each arena is locked while its free pages are given back.
            unsafe { libc::malloc_trim(0) };
        };
        // Without it more memory is held, and nothing else is different.
        let _ = std::thread::Builder::new().name("heap".into()).spawn(trimming);
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
