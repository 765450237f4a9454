#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| roc4mllm_fuzz::labels(data));
