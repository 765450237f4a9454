// Operators of libtorch that tch has no binding for, called by name through libtorch's dispatcher.
//
// Every function returns a new tensor that the caller owns, or null and a message in `error`, which the
// caller frees. No C++ exception leaves this file.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <utility>

namespace {

using Scalars = c10::List<std::optional<at::Scalar>>;

char* copy(const char* text) {
  const size_t size = std::strlen(text) + 1;
  auto* owned = static_cast<char*>(std::malloc(size));
  if (owned != nullptr) {
    std::memcpy(owned, text, size);
  }
  return owned;
}

template <typename... Arguments>
at::Tensor* call(char** error, const char* name, const char* overload, Arguments&&... arguments) noexcept {
  try {
    const auto operation = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
    torch::jit::Stack stack;
    (stack.emplace_back(std::forward<Arguments>(arguments)), ...);
    operation.callBoxed(stack);
    return new at::Tensor(stack.at(0).toTensor());
  } catch (const c10::Error& failure) {
    *error = copy(failure.what_without_backtrace());
  } catch (const std::exception& failure) {
    *error = copy(failure.what());
  } catch (...) {
    *error = copy("an exception that is none of C++'s own");
  }
  return nullptr;
}

c10::IValue optional(const at::Tensor* tensor) {
  return tensor == nullptr ? c10::IValue() : c10::IValue(*tensor);
}

}  // namespace

extern "C" {

void roc4mllm_free(char* error) { std::free(error); }

// A weight [outputs, inputs] in the layout that multiplying `rows` rows by it reads fastest.
at::Tensor* roc4mllm_pack(const at::Tensor* weight, int64_t rows, char** error) {
  return call(error, "mkldnn::_reorder_linear_weight", "", *weight, rows);
}

// input W^T + bias, in the input's type; `weight` may be packed.
at::Tensor* roc4mllm_linear(
    const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, char** error) {
  return call(
      error, "mkldnn::_linear_pointwise", "", *input, *weight, optional(bias), std::string("none"), Scalars(),
      c10::IValue());
}

// An i8 weight [outputs, inputs], packed for `roc4mllm_quantized_linear`.
at::Tensor* roc4mllm_quantized_pack(const at::Tensor* weight, char** error) {
  return call(error, "onednn::qlinear_prepack", "", *weight, c10::IValue());
}

// scale * (input - zero_point) (weight_scales * weight)^T of a u8 input, in the type `kind`.
at::Tensor* roc4mllm_quantized_linear(
    const at::Tensor* input, const at::Tensor* scale, const at::Tensor* zero_point, const at::Tensor* weight,
    const at::Tensor* weight_scales, const at::Tensor* weight_zero_points, int64_t kind, char** error) {
  return call(
      error, "onednn::qlinear_pointwise", "tensor", *input, *scale, *zero_point, *weight, *weight_scales,
      *weight_zero_points, c10::IValue(), 1.0, static_cast<int64_t>(0), kind, std::string("none"), Scalars(),
      std::string());
}

}  // extern "C"
