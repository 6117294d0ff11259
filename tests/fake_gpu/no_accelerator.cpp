// Preloaded beside torch on a machine without a GPU. Autograd asks the accelerator that torch was built for, or that
// tensors claim to be on, for its streams: with these answers there is none, and the backward pass of fake CUDA tensors
// runs on the calling thread.
#include <cstdint>
#include <optional>

namespace c10 {
enum class DeviceType : int8_t;
}

namespace at::accelerator {
bool isAccelerator(c10::DeviceType) { return false; }
std::optional<c10::DeviceType> getAccelerator(bool) { return std::nullopt; }
}  // namespace at::accelerator
