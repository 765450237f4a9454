//! roc4mllm
