// What tch has no names for on GPUs, through the parts of libtorch that all of its builds share: nothing of
// CUDA is needed to compile this.
//
// Functions that may fail give 0 or a new tensor that the caller owns; else 1 or null, and a message in `error`,
// which the caller frees. No C++ exception leaves this file.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
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

template <typename Work>
int attempt(char** error, Work&& work) noexcept {
  try {
    work();
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

c10::DeviceAllocator& allocator() { return *c10::getDeviceAllocator(c10::DeviceType::CUDA); }

constexpr auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

}  // namespace

extern "C" {

// Bytes of the GPU `index` that this process can still take, those that its allocator keeps for later tensors
// included, and all that it has.
int roc4mllm_gpu_memory(int8_t index, uint64_t* free, uint64_t* total, char** error) {
  return attempt(error, [&] {
    const auto info = allocator().getMemoryInfo(index);
    *free = info.first;
    *total = info.second;
    // Before the first tensor there are no statistics.
    if (allocator().initialized()) {
      const auto stats = allocator().getDeviceStats(index);
      *free += stats.reserved_bytes[aggregate].current - stats.allocated_bytes[aggregate].current;
    }
  });
}

// The most bytes that tensors of this process took at once since `roc4mllm_gpu_forget_peak`, or ever. Fails until
// the first of them is there.
int roc4mllm_gpu_peak(int8_t index, uint64_t* peak, char** error) {
  return attempt(error, [&] {
    *peak = static_cast<uint64_t>(allocator().getDeviceStats(index).allocated_bytes[aggregate].peak);
  });
}

int roc4mllm_gpu_forget_peak(int8_t index, char** error) {
  return attempt(error, [&] { allocator().resetPeakStats(index); });
}

// A copy in memory of this machine's whose pages are locked.
at::Tensor* roc4mllm_gpu_pin(const at::Tensor* tensor, char** error) {
  at::Tensor* pinned = nullptr;
  attempt(error, [&] { pinned = new at::Tensor(tensor->pin_memory()); });
  return pinned;
}

void roc4mllm_gpu_use_cudnn_attention(bool use) { at::globalContext().setSDPUseCuDNN(use); }

bool roc4mllm_gpu_uses_cudnn_attention() { return at::globalContext().userEnabledCuDNNSDP(); }

}  // extern "C"
