// What libtorch's allocator for GPUs knows of their memory, through the interface that all of its allocators
// share: nothing of CUDA is needed to compile this.

#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace {

char* copy(const char* text) {
  const size_t size = std::strlen(text) + 1;
  auto* owned = static_cast<char*>(std::malloc(size));
  if (owned != nullptr) {
    std::memcpy(owned, text, size);
  }
  return owned;
}

constexpr auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

template <typename Work>
int attempt(char** error, Work&& work) noexcept {
  try {
    work(*c10::getDeviceAllocator(c10::DeviceType::CUDA));
    return 0;
  } catch (const c10::Error& failure) {
    *error = copy(failure.what_without_backtrace());
  } catch (const std::exception& failure) {
    *error = copy(failure.what());
  } catch (...) {
    *error = copy("an exception that is none of C++'s own");
  }
  return 1;
}

}  // namespace

extern "C" {

// Bytes of the GPU `index` that this process can still take, those that its allocator keeps for later tensors
// included, and all that it has. 0, or 1 and a message in `error`, which the caller frees.
int roc4mllm_device_memory(int8_t index, uint64_t* free, uint64_t* total, char** error) {
  return attempt(error, [&](c10::DeviceAllocator& allocator) {
    const auto info = allocator.getMemoryInfo(index);
    *free = info.first;
    *total = info.second;
    // Before the first tensor there are no statistics.
    if (allocator.initialized()) {
      const auto stats = allocator.getDeviceStats(index);
      *free += stats.reserved_bytes[aggregate].current - stats.allocated_bytes[aggregate].current;
    }
  });
}

// The most bytes that tensors of this process took at once since `roc4mllm_forget_device_peak`, or ever. As
// above; fails until the first of them is there.
int roc4mllm_device_peak(int8_t index, uint64_t* peak, char** error) {
  return attempt(error, [&](c10::DeviceAllocator& allocator) {
    *peak = static_cast<uint64_t>(allocator.getDeviceStats(index).allocated_bytes[aggregate].peak);
  });
}

int roc4mllm_forget_device_peak(int8_t index, char** error) {
  return attempt(error, [&](c10::DeviceAllocator& allocator) { allocator.resetPeakStats(index); });
}

}  // extern "C"
