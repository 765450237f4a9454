//! The container image, as far as it can be judged without an engine that builds it.

use std::path::Path;
use std::process::Command;

/// The packages and files that the Dockerfile lists, against what this very binary loads and was built from.
#[test]
fn the_image_has_what_the_binary_needs_and_no_more() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image-needs.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_roc4mllm"))
        .output()
        .expect("python3 starts; `make setup` names what is missing");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("libraries out of libtorch"), "{said}");
}
