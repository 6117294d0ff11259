// Registers a device guard for CUDA that does nothing. A CPU build of torch has none, and autograd wants one for every
// device on which it meets a tensor; a CUDA build has its own.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
struct NoGuard final : public c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {};
C10_REGISTER_GUARD_IMPL(CUDA, NoGuard);
}  // namespace
