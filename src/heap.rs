//! The C library's allocator, held close to what is in use.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{env, thread, time::Duration};

/// Keeps what glibc's allocator holds close to what is in use.
///
/// It may take eight arenas a core, and keeps in each what a burst of retries, a reconnect or a neighbour's
/// partitions once took: resident memory then follows the worst minute so far. So there is an arena a core, two at
/// least, and what is free goes back to the system now and then. Where `MALLOC_ARENA_MAX` or `GLIBC_TUNABLES` is
/// set, that holds instead.
///
/// To be called before any other thread runs.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"].iter().all(|name| env::var_os(name).is_none()) {
        let cores = thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        // SAFETY: no other thread runs yet, and the allocator takes any number.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::try_from(cores).unwrap_or(i32::MAX)) };
        let trimming = || loop {
            thread::sleep(Duration::from_secs(10));
            // SAFETY: it may be called at any time; each arena is locked while its free pages are given back.
            unsafe { libc::malloc_trim(0) };
        };
        // Without it more memory is held, and nothing else is different.
        let _ = thread::Builder::new().name("heap".into()).spawn(trimming);
    }
}
