// What the parts of the Paddock simulated NPU share: its settings, the faults asked for, and what it counts.
//
// It is a custom device of Paddle's (device type "npu") that lives in the host's memory. It is no Ascend, and says
// nothing about one: it is there so that everything between Paddock and such a device can be tested without it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_registry.h"

namespace simulator {

using phi::CustomContext;
using phi::DenseTensor;

// A fault of one kernel, from its call number `from` (1 is the first) on.
enum class Fault { kNone, kMissing, kWrong, kMemory, kCrash, kHang };

struct Planned {
  Fault fault = Fault::kNone;
  uint64_t from = 1;
};

// Read from the environment once, when the library is loaded:
//   PADDOCK_SIMULATOR_MEMORY    bytes of each device (default 16 GiB)
//   PADDOCK_SIMULATOR_DEVICES   how many there are (default 1)
//   PADDOCK_SIMULATOR_FAULTS    a comma list of FAULT:KERNEL, where FAULT is missing, wrong, oom, crash or hang; all but
//                               missing may be FAULT:KERNEL@CALL
//   ASCEND_RT_VISIBLE_DEVICES   which of the devices are visible, in which order
struct Settings {
  size_t memory = size_t{16} << 30;
  std::map<std::string, Planned> faults;

  static const Settings& get();
};

// One call of a kernel: counted, and with the kernel's fault where it has one.
class Call {
 public:
  // `out` is the output that a wrong kernel spoils, once the call is done.
  Call(const char* kernel, const CustomContext& context, DenseTensor* out);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  DenseTensor* spoiled_ = nullptr;
};

}  // namespace simulator
