//! The Python that the benchmarks compare with.

use std::path::{Path, PathBuf};

/// The peers' programs.
pub fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/python_worker"))
}

/// The interpreter with their packages.
///
/// # Errors
/// Says how to get it.
pub fn interpreter() -> Result<PathBuf, String> {
    let python = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.deps/bench/bin/python"));
    if python.exists() {
        return Ok(python.to_owned());
    }
    Err(format!("{} is missing; run scripts/setup.sh bench", python.display()))
}
