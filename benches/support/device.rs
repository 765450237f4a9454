//! Where a benchmark computes: `cargo bench --bench model -- --device cuda:0`.

#![allow(dead_code, reason = "no benchmark needs all of it")]

use roc4mllm::model::device::use_threads;

/// The device that is asked for on the command line, or the CPU with a thread a core.
#[derive(Clone, Copy, PartialEq)]
pub struct Place {
    pub device: tch::Device,
}

impl Place {
    /// Ends the program where the device can't be used.
    pub fn asked() -> Self {
        use_threads(0);
        let named = std::env::args().skip_while(|argument| argument != "--device").nth(1);
        let device: roc4mllm::model::device::Device = match named.as_deref().unwrap_or("cpu").parse() {
            Ok(device) => device,
            Err(error) => exit(&error),
        };
        match device.open() {
            Ok(device) => Self { device },
            Err(error) => exit(&error),
        }
    }

    /// The CPU, whatever is asked for.
    pub fn cpu() -> Self {
        use_threads(0);
        Self { device: tch::Device::Cpu }
    }

    pub fn is_gpu(self) -> bool {
        self.device != tch::Device::Cpu
    }

    /// Waits until the device has done all that it was given.
    pub fn settle(self) {
        if let tch::Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// What results name it: threads, or the GPU.
    pub fn label(self) -> String {
        match self.device {
            tch::Device::Cuda(index) => format!("cuda:{index}"),
            _ => format!("{} threads", tch::get_num_threads()),
        }
    }

    /// The end of the names under which results are recorded, so that those of CPU and GPU lie side by side.
    pub fn suffix(self) -> &'static str {
        if self.is_gpu() { "_gpu" } else { "" }
    }
}

/// Flags that have a value.
const FLAGS: [&str; 3] = ["--device", "--layers", "--photos"];

/// Arguments that are neither flags nor a flag's value.
pub fn names() -> impl Iterator<Item = String> {
    let mut before = String::new();
    std::env::args().skip(1).filter(move |argument| {
        let is_name = !argument.starts_with("--") && !FLAGS.contains(&&*before);
        before.clone_from(argument);
        is_name
    })
}

fn exit(error: &dyn std::fmt::Display) -> ! {
    eprintln!("{error}");
    std::process::exit(2)
}
