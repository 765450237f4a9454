#![no_main]

libfuzzer_sys::fuzz_target!(
    // A decoder may panic, which the library contains; libFuzzer's own hook would end the process.
    // A panic that gets out still does.
    init: std::panic::set_hook(Box::new(|_| ())),
    |data: &[u8]| roc4mllm_fuzz::image(data)
);
