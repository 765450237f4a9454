//! Whether a checkpoint fits into memory, before anything is loaded.

use super::{Checkpoint, Role, error::CheckpointError, is_layer_weight};
use crate::model::{device::Quantize, gpu};
use std::{fs, path::Path};
use tch::{Device, Kind};

impl Checkpoint {
    /// Bytes that the weights take on the device that computes: stored types for what is mapped as
    /// it is, `kind` for what is converted.
    pub fn weight_bytes(&self, kind: Kind, quantize: Quantize) -> u64 {
        self.index
            .tensors
            .iter()
            .filter(|(name, _)| self.expected.get(*name).is_some_and(|e| e.role != Role::Buffer))
            .map(|(name, tensor)| {
                let elements = tensor.shape.iter().product::<i64>() as u64;
                match quantize {
                    Quantize::W8a8 | Quantize::Int8 if is_layer_weight(name, &tensor.shape) => elements,
                    _ => elements * kind.elt_size_in_bytes() as u64,
                }
            })
            .sum()
    }

    /// Compares what loading as `kind` on `device` needs with what the machine, or the GPU, has.
    ///
    /// `activations` are the bytes that computing one batch takes beside the weights
    /// ([`crate::model::config::ModelConfig::activation_bytes`] estimates them).
    /// A GPU needs only the one file being copied in the machine's own memory.
    ///
    /// # Errors
    /// [`CheckpointError::Memory`] when it can't fit. Where the system doesn't say how much memory it
    /// has, nothing is refused.
    pub fn check_memory(
        &self,
        kind: Kind,
        quantize: Quantize,
        device: Device,
        activations: u64,
    ) -> Result<(), CheckpointError> {
        let needed = self.weight_bytes(kind, quantize).saturating_add(activations);
        let (available, purpose) = match device {
            Device::Cpu => (available_memory(), "weights and the activations of one batch"),
            // Whatever keeps a GPU from telling shows when the weights are placed.
            device => (
                gpu::memory(device).ok().flatten().map(|memory| memory.free),
                "weights and the activations of one batch, on the GPU",
            ),
        };
        match available {
            Some(available) if needed > available => {
                Err(CheckpointError::Memory { path: self.folder.clone(), needed, available, purpose })
            }
            _ => Ok(()),
        }
    }
}

/// Bytes that this process can still take: what the kernel calls available, or less where a control
/// group limits it. `None` where neither is known.
pub fn available_memory() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_in_meminfo(&text));
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| available_in_groups(&text));
    machine.into_iter().chain(group).min()
}

/// `MemAvailable` of `/proc/meminfo`.
fn available_in_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least that any control group around this process leaves; `text` is `/proc/self/cgroup`.
fn available_in_groups(text: &str) -> Option<u64> {
    let mut least = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", &VERSION_2),
            list if list.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", &VERSION_1),
            _ => continue,
        };
        // A limit may sit on any group from this one up; inside a container the path may name
        // groups that aren't visible here, and then only the root of the mount is.
        for ancestor in Path::new(group).ancestors() {
            let folder = Path::new(root).join(ancestor.strip_prefix("/").unwrap_or(ancestor));
            let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
            let left = read(files.limit).zip(read(files.usage)).and_then(|(limit, usage)| {
                left_in_group(&limit, &usage, &read("memory.stat").unwrap_or_default(), files)
            });
            least = least.into_iter().chain(left).min();
        }
    }
    least
}

struct GroupFiles {
    limit: &'static str,
    usage: &'static str,
    /// Page cache that the kernel drops before it refuses memory.
    reclaimable: &'static str,
}

const VERSION_2: GroupFiles =
    GroupFiles { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };
const VERSION_1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// What one group leaves; `None` where it sets no limit.
fn left_in_group(limit: &str, usage: &str, statistics: &str, files: &GroupFiles) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let usage: u64 = usage.trim().parse().ok()?;
    let reclaimable = statistics
        .lines()
        .find_map(|line| line.strip_prefix(files.reclaimable)?.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_figure_is_read_in_bytes() {
        let text = "MemTotal:       16384000 kB\nMemFree:  1 kB\nMemAvailable:    8192000 kB\n";
        assert_eq!(available_in_meminfo(text), Some(8_192_000 * 1024));
        assert_eq!(available_in_meminfo("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn page_cache_counts_as_free_within_a_group() {
        let statistics = "anon 100\ninactive_file 300\nactive_file 50\n";
        assert_eq!(left_in_group("1000\n", "600\n", statistics, &VERSION_2), Some(700));
        assert_eq!(left_in_group("max\n", "600\n", statistics, &VERSION_2), None);
        assert_eq!(left_in_group("1000", "1600", "", &VERSION_1), Some(0));
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
