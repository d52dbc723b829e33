// The device: memory with a capacity, streams on which everything is done at once, settings, counters and faults.

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <unistd.h>
#include <vector>

#include "paddle/phi/backends/device_ext.h"
#include "simulator.h"

namespace simulator {
namespace {

constexpr size_t kMostDevices = 64;

struct Memory {
  size_t used = 0;
  size_t peak = 0;
};

std::mutex lock;  // of all that follows
std::map<std::string, uint64_t> calls;
Memory memories[kMostDevices];
thread_local int current = 0;

std::string text_of(const char* name) {
  const char* found = std::getenv(name);
  return found == nullptr ? "" : found;
}

// Ends the process for settings that are none: a typing error must not pass for a device without faults.
[[noreturn]] void refuse(const std::string& name, const std::string& text) {
  std::string words = "Paddock simulated NPU: cannot read " + name + "=" + text + "\n";
  if (write(2, words.data(), words.size()) < 0) _exit(2);
  _exit(1);
}

// Digits and nothing else: strtoull would take "-1" for the largest number that there is.
bool is_number(const std::string& text) {
  return !text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == std::string::npos;
}

size_t number_of(const std::string& name, const std::string& text) {
  if (!is_number(text)) refuse(name, text);
  return std::strtoull(text.c_str(), nullptr, 10);
}

// One item of the list, FAULT:KERNEL or FAULT:KERNEL@N, by kernel. Kernels are missing from the start, or not at all.
std::pair<std::string, Planned> planned_of(const std::string& name, const std::string& item) {
  static const std::map<std::string, Fault> known = {{"missing", Fault::kMissing}, {"wrong", Fault::kWrong},
                                                     {"oom", Fault::kMemory},      {"crash", Fault::kCrash},
                                                     {"hang", Fault::kHang}};
  const size_t colon = item.find(':');
  const auto found = known.find(item.substr(0, colon));
  if (colon == std::string::npos || found == known.end()) refuse(name, item);
  const std::string rest = item.substr(colon + 1);
  const size_t at = rest.find('@');
  if (at == std::string::npos) return {rest, {found->second, 1}};
  const std::string call = rest.substr(at + 1);
  if (!is_number(call) || found->second == Fault::kMissing) refuse(name, item);
  const Planned planned = {found->second, number_of(name, call)};
  if (planned.from == 0) refuse(name, item + " (calls are counted from 1)");
  return {rest.substr(0, at), planned};
}

Settings read() {
  Settings settings;
  const std::string memory = text_of("PADDOCK_SIMULATOR_MEMORY");
  if (!memory.empty()) settings.memory = number_of("PADDOCK_SIMULATOR_MEMORY", memory);
  std::istringstream faults(text_of("PADDOCK_SIMULATOR_FAULTS"));
  for (std::string item; std::getline(faults, item, ',');) {
    const bool first = settings.faults.insert(planned_of("PADDOCK_SIMULATOR_FAULTS", item)).second;
    if (!first) refuse("PADDOCK_SIMULATOR_FAULTS", item + " (a second fault of one kernel)");
  }
  return settings;
}

size_t devices() {
  const std::string text = text_of("PADDOCK_SIMULATOR_DEVICES");
  const size_t found = text.empty() ? 1 : number_of("PADDOCK_SIMULATOR_DEVICES", text);
  if (found > kMostDevices) refuse("PADDOCK_SIMULATOR_DEVICES", text);
  return found;
}

// The devices that ASCEND_RT_VISIBLE_DEVICES leaves: all of them where it is not set; as CANN's documentation has it,
// those behind the first that is none are not visible.
std::vector<size_t> visible() {
  std::vector<size_t> found;
  const char* text = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  for (size_t i = 0; text == nullptr && i < devices(); ++i) found.push_back(i);
  std::istringstream items(text == nullptr ? "" : text);
  for (std::string item; std::getline(items, item, ',');) {
    if (!is_number(item) || std::stoull(item) >= devices()) break;
    found.push_back(std::stoull(item));
  }
  return found;
}

bool known(const C_Device device) { return device->id >= 0 && device->id < static_cast<int>(kMostDevices); }

C_Status done(const C_Device) { return C_SUCCESS; }

C_Status set_device(const C_Device device) {
  if (!known(device)) return C_ERROR;
  current = device->id;
  return C_SUCCESS;
}

C_Status get_device(const C_Device device) {
  device->id = current;
  return C_SUCCESS;
}

// Nothing is pending at any time, so a stream or an event is any address that is not null.
int nothing_pending;

C_Status create_stream(const C_Device, C_Stream* stream) {
  *stream = reinterpret_cast<C_Stream>(&nothing_pending);
  return C_SUCCESS;
}

C_Status create_event(const C_Device, C_Event* event) {
  *event = reinterpret_cast<C_Event>(&nothing_pending);
  return C_SUCCESS;
}

C_Status stream_done(const C_Device, C_Stream) { return C_SUCCESS; }
C_Status event_done(const C_Device, C_Event) { return C_SUCCESS; }
C_Status record_event(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }

C_Status add_callback(const C_Device device, C_Stream stream, C_Callback callback, void* data) {
  C_Status status = C_SUCCESS;
  callback(device, stream, data, &status);
  return status;
}

C_Status allocate(const C_Device device, void** pointer, size_t size) {
  if (!known(device)) return C_ERROR;
  const std::lock_guard<std::mutex> guard(lock);
  Memory& memory = memories[device->id];
  *pointer = nullptr;
  if (size > Settings::get().memory - memory.used) return C_FAILED;
  if (posix_memalign(pointer, 64, size == 0 ? 64 : size) != 0) return C_FAILED;
  memory.used += size;
  memory.peak = std::max(memory.peak, memory.used);
  return C_SUCCESS;
}

C_Status release(const C_Device device, void* pointer, size_t size) {
  if (!known(device)) return C_ERROR;
  const std::lock_guard<std::mutex> guard(lock);
  memories[device->id].used -= size;
  std::free(pointer);
  return C_SUCCESS;
}

C_Status allocate_host(const C_Device, void** pointer, size_t size) {
  return posix_memalign(pointer, 64, size == 0 ? 64 : size) == 0 ? C_SUCCESS : C_FAILED;
}

C_Status release_host(const C_Device, void* pointer, size_t) {
  std::free(pointer);
  return C_SUCCESS;
}

C_Status fill(const C_Device, void* pointer, unsigned char value, size_t size) {
  std::memset(pointer, value, size);
  return C_SUCCESS;
}

C_Status copy(const C_Device, void* to, const void* from, size_t size) {
  std::memmove(to, from, size);
  return C_SUCCESS;
}

C_Status copy_on(const C_Device device, C_Stream, void* to, const void* from, size_t size) {
  return copy(device, to, from, size);
}

C_Status copy_between(const C_Device device, const C_Device, void* to, const void* from, size_t size) {
  return copy(device, to, from, size);
}

C_Status device_count(size_t* count) {
  *count = visible().size();
  return C_SUCCESS;
}

// Indices among those visible, as CANN's runtime counts them.
C_Status device_list(size_t* list) {
  const size_t count = visible().size();
  for (size_t i = 0; i < count; ++i) list[i] = i;
  return C_SUCCESS;
}

C_Status memory_stats(const C_Device device, size_t* total, size_t* free) {
  if (!known(device)) return C_ERROR;
  const std::lock_guard<std::mutex> guard(lock);
  *total = Settings::get().memory;
  *free = *total - memories[device->id].used;
  return C_SUCCESS;
}

C_Status smallest_chunk(const C_Device, size_t* size) {
  *size = 256;
  return C_SUCCESS;
}

C_Status a_version(const C_Device, size_t* version) {
  *version = 0;
  return C_SUCCESS;
}

void spoil(DenseTensor* tensor) {
  const int64_t count = tensor->numel();
  if (tensor->dtype() == phi::DataType::FLOAT32) {
    float* values = static_cast<float*>(tensor->data());
    for (int64_t i = 0; i < count; i += 2) values[i] = values[i] * 1.25f + 0.5f;
  } else if (tensor->dtype() == phi::DataType::INT64) {
    int64_t* values = static_cast<int64_t*>(tensor->data());
    for (int64_t i = 0; i < count; i += 2) values[i] += 1;
  }
}

}  // namespace

const Settings& Settings::get() {
  static const Settings settings = read();
  return settings;
}

Call::Call(const char* kernel, const CustomContext& context, DenseTensor* out) {
  uint64_t number = 0;
  {
    const std::lock_guard<std::mutex> guard(lock);
    number = ++calls[kernel];
  }
  const auto& faults = Settings::get().faults;
  const auto found = faults.find(kernel);
  if (found == faults.end() || number < found->second.from) return;
  switch (found->second.fault) {
    case Fault::kWrong:
      spoiled_ = out;
      break;
    case Fault::kMemory: {  // asks for more than the device has, as a kernel with too large a workspace would
      DenseTensor workspace;
      workspace.Resize(common::make_ddim({static_cast<int64_t>(Settings::get().memory) + 1}));
      context.Alloc<uint8_t>(&workspace);
      break;
    }
    case Fault::kCrash:
      std::raise(SIGSEGV);
      break;
    case Fault::kHang:
      for (;;) pause();
    default:
      break;
  }
}

Call::~Call() {
  if (spoiled_ != nullptr && spoiled_->initialized()) spoil(spoiled_);
}

}  // namespace simulator

extern "C" {

// How often each kernel was called in this process: lines "NAME COUNT". Returns the bytes that all of them take; what
// does not fit into `size` is cut off.
size_t paddock_simulator_calls(char* text, size_t size) {
  std::ostringstream lines;
  {
    const std::lock_guard<std::mutex> guard(simulator::lock);
    for (const auto& [name, count] : simulator::calls) lines << name << ' ' << count << '\n';
  }
  const std::string found = lines.str();
  std::memcpy(text, found.data(), std::min(size, found.size()));
  return found.size();
}

// Bytes taken of a device's memory, now and at most since the process began.
void paddock_simulator_memory(int device, size_t* used, size_t* peak) {
  const std::lock_guard<std::mutex> guard(simulator::lock);
  *used = simulator::memories[device].used;
  *peak = simulator::memories[device].peak;
}

void InitPlugin(CustomRuntimeParams* params) {
  using namespace simulator;
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static char type[] = "npu", kind[] = "Paddock simulated NPU";
  params->device_type = type;
  params->sub_device_type = kind;

  // Kernels are registered when the library is loaded, and taken over by Paddle after this: what is missing goes here.
  auto& kernels = phi::CustomKernelMap::Instance().Kernels();
  for (const auto& [kernel, planned] : Settings::get().faults) {
    if (kernels.find(kernel) == kernels.end()) refuse("PADDOCK_SIMULATOR_FAULTS", kernel + " (no such kernel)");
    if (planned.fault == Fault::kMissing) kernels.erase(kernel);
  }

  C_DeviceInterface* device = params->interface;
  std::memset(static_cast<void*>(device), 0, sizeof(C_DeviceInterface));
  device->init_device = done;
  device->deinit_device = done;
  device->set_device = set_device;
  device->get_device = get_device;
  device->synchronize_device = done;
  device->create_stream = create_stream;
  device->destroy_stream = stream_done;
  device->query_stream = stream_done;
  device->synchronize_stream = stream_done;
  device->stream_add_callback = add_callback;
  device->create_event = create_event;
  device->destroy_event = event_done;
  device->query_event = event_done;
  device->synchronize_event = event_done;
  device->record_event = record_event;
  device->stream_wait_event = record_event;
  device->device_memory_allocate = allocate;
  device->device_memory_deallocate = release;
  device->host_memory_allocate = allocate_host;
  device->host_memory_deallocate = release_host;
  device->device_memory_set = fill;
  device->memory_copy_h2d = copy;
  device->memory_copy_d2h = copy;
  device->memory_copy_d2d = copy;
  device->memory_copy_p2p = copy_between;
  device->async_memory_copy_h2d = copy_on;
  device->async_memory_copy_d2h = copy_on;
  device->async_memory_copy_d2d = copy_on;
  device->get_device_count = device_count;
  device->get_device_list = device_list;
  device->device_memory_stats = memory_stats;
  device->device_min_chunk_size = smallest_chunk;
  device->get_runtime_version = a_version;
  device->get_driver_version = a_version;
}

}  // extern "C"
