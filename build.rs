//! Tells the linker where libtorch lies, so that nothing needs `LD_LIBRARY_PATH`, and builds the few lines
//! of C++ that reach what tch has no binding for.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=ROC4MLLM_RELOCATABLE");
    // Set by torch-sys for its direct dependents; it follows LIBTORCH.
    let Ok(libtorch) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo:warning=torch-sys did not say where libtorch is; run `make libtorch`");
        return;
    };
    compile_bindings(Path::new(&libtorch));
    // DT_RPATH rather than DT_RUNPATH: only the former also serves what the CUDA libraries load themselves.
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags");
    // Where `make install` puts the libraries.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/roc4mllm");
    // An installed binary must not look into a folder that whoever built it may be long done with.
    if env::var_os("ROC4MLLM_RELOCATABLE").is_none() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
    }
    if Path::new(&libtorch).join("libtorch_cuda.so").exists() {
        // Nothing here calls into it by name, so the linker would drop it, and CUDA with it.
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-l:libtorch_cuda.so,--pop-state");
    }
}

/// Against the headers that torch-sys is built with.
fn compile_bindings(libtorch: &Path) {
    const SOURCES: [&str; 2] = ["src/model/onednn.cpp", "src/model/gpu.cpp"];
    SOURCES.iter().for_each(|source| println!("cargo:rerun-if-changed={source}"));
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    let root = env::var_os("LIBTORCH_INCLUDE").map(PathBuf::from).or(libtorch.parent().map(Path::to_owned));
    let include = root.unwrap_or_default().join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(1)
        // The headers' own warnings are not ours to mend.
        .flag(format!("-isystem{}", include.display()))
        .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
        .files(SOURCES)
        .compile("roc4mllm_torch");
}
