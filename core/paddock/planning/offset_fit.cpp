// First fit of buffers in a given order: what greedy offset assignment does again and again.
//
// A plain C interface at the end; no call throws, and each comes back at its deadline.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace {

using Int = std::int64_t;
using Clock = std::chrono::steady_clock;

struct Placed {
  std::int32_t lower, upper;
  Int offset, end;
  bool operator<(const Placed& other) const { return offset < other.offset; }
};

// Each buffer in turn at the lowest offset that those before it leave free; false at the deadline. What is placed is
// kept sorted by offset, as a whole and for each stretch of time, so that short-lived buffers look at few others.
bool first_fit(int buffers, const std::int32_t* order, const std::int32_t* lower, const std::int32_t* upper,
               const Int* size, const Int* alignment, double seconds, Int* offsets) {
  const auto allowed = static_cast<Int>(std::min(std::max(seconds, 0.0), 1e6) * 1000);
  const auto deadline = Clock::now() + std::chrono::milliseconds(allowed);
  const std::int32_t last = buffers ? *std::max_element(upper, upper + buffers) : 0;
  double lived = 1;
  for (int j = 0; j < buffers; ++j) lived += upper[j] - lower[j];
  // Stretches of some lifetimes each, and not more of them than pays.
  const double stretch = std::max(4 * lived / std::max(buffers, 1), last / 256.0);
  const std::int32_t width = static_cast<std::int32_t>(std::min<double>(stretch, last)) + 1;
  std::vector<std::vector<Placed>> stretches(last / width + 1);
  std::vector<Placed> all, near;
  for (int i = 0; i < buffers; ++i) {
    if ((i & 15) == 0 && Clock::now() > deadline) return false;
    const int j = order[i];
    const std::int32_t born = lower[j], dies = upper[j], first = born / width, final = (dies - 1) / width;
    const std::vector<Placed>* looked = &stretches[first];
    if (first < final) {
      std::size_t many = 0;
      for (std::int32_t k = first; k <= final; ++k) many += stretches[k].size();
      if (many < all.size() / 8) {
        near.clear();
        for (std::int32_t k = first; k <= final; ++k)
          for (const Placed& other : stretches[k])
            if (other.lower < dies && born < other.upper) near.push_back(other);
        std::sort(near.begin(), near.end());
        looked = &near;
      } else {
        looked = &all;
      }
    }
    Int offset = 0;
    for (const Placed& other : *looked) {
      if (other.offset >= offset + size[j]) break;
      if (other.lower < dies && born < other.upper && other.end > offset)
        offset = (other.end + alignment[j] - 1) / alignment[j] * alignment[j];
    }
    offsets[j] = offset;
    const Placed placed{born, dies, offset, offset + size[j]};
    all.insert(std::upper_bound(all.begin(), all.end(), placed), placed);
    for (std::int32_t k = first; k <= final; ++k)
      stretches[k].insert(std::upper_bound(stretches[k].begin(), stretches[k].end(), placed), placed);
  }
  return true;
}

}  // namespace

#if defined(_WIN32)
#define PADDOCK_EXPORT extern "C" __declspec(dllexport)
#else
#define PADDOCK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// 1 where all are placed, `order` a permutation; 0 at the deadline; -1: memory is short.
PADDOCK_EXPORT std::int32_t paddock_first_fit(std::int32_t buffers, const std::int32_t* order, const std::int32_t* lower,
                                              const std::int32_t* upper, const std::int64_t* size,
                                              const std::int64_t* alignment, double seconds, std::int64_t* offsets) {
  try {
    return first_fit(buffers, order, lower, upper, size, alignment, seconds, offsets);
  } catch (...) {
    return -1;
  }
}
