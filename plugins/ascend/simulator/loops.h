// Loops that several kernels share: over broadcast operands, reduced axes, and a matrix product.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "simulator.h"

namespace simulator {

using Extents = std::vector<int64_t>;

inline Extents extents_of(const DenseTensor& tensor) { return common::vectorize<int64_t>(tensor.dims()); }

// The product of extents[from, to).
inline int64_t product(const Extents& extents, size_t from, size_t to) {
  int64_t found = 1;
  for (size_t i = from; i < to; ++i) found *= extents[i];
  return found;
}

// An axis that may count from the end.
inline int64_t axis_of(int64_t axis, size_t rank) { return axis < 0 ? axis + static_cast<int64_t>(rank) : axis; }

// Row-major strides in elements.
inline Extents strides_of(const Extents& extents) {
  Extents strides(extents.size(), 1);
  for (size_t i = extents.size(); i-- > 1;) strides[i - 1] = strides[i] * extents[i];
  return strides;
}

// The strides of an operand where it is repeated to `extents`: 0 along what it has once.
inline Extents repeated_strides(const Extents& operand, const Extents& extents) {
  const Extents own = strides_of(operand);
  Extents strides(extents.size(), 0);
  const size_t lead = extents.size() - operand.size();
  for (size_t i = 0; i < operand.size(); ++i) strides[lead + i] = operand[i] == 1 ? 0 : own[i];
  return strides;
}

// Calls `row(output offset, offsets of the operands)` for each row of the last axis, in row-major order.
template <size_t N, typename Row>
void for_rows(const Extents& extents, const Extents (&strides)[N], Row row) {
  const size_t rank = extents.size();
  const int64_t length = rank == 0 ? 1 : extents[rank - 1];
  const int64_t rows = rank == 0 ? 1 : product(extents, 0, rank - 1);
  if (length == 0) return;
  Extents place(rank, 0);
  int64_t offsets[N] = {};
  for (int64_t r = 0; r < rows; ++r) {
    row(r * length, offsets);
    for (size_t axis = rank < 2 ? 0 : rank - 1; axis-- > 0;) {
      for (size_t n = 0; n < N; ++n) offsets[n] += strides[n][axis];
      if (++place[axis] < extents[axis]) break;
      for (size_t n = 0; n < N; ++n) offsets[n] -= strides[n][axis] * extents[axis];
      place[axis] = 0;
    }
  }
}

// out[i] = f(x[i], y[i]) with operands repeated as NumPy repeats them; out may be x or y where these have its shape.
template <typename T, typename Out, typename F>
void broadcast(const DenseTensor& x, const DenseTensor& y, Out* out, const Extents& extents, F f) {
  const T *a = x.data<T>(), *b = y.data<T>();
  const Extents strides[2] = {repeated_strides(extents_of(x), extents), repeated_strides(extents_of(y), extents)};
  const int64_t length = extents.empty() ? 1 : extents.back();
  const int64_t sa = extents.empty() ? 0 : strides[0].back(), sb = extents.empty() ? 0 : strides[1].back();
  for_rows(extents, strides, [&](int64_t to, const int64_t* from) {
    for (int64_t i = 0; i < length; ++i) out[to + i] = f(a[from[0] + i * sa], b[from[1] + i * sb]);
  });
}

// Which axes a reduction goes over; none named means all.
inline std::vector<bool> reduced_axes(const std::vector<int64_t>& dims, size_t rank) {
  std::vector<bool> reduced(rank, dims.empty());
  for (int64_t axis : dims) reduced[axis_of(axis, rank)] = true;
  return reduced;
}

// Sums over the reduced axes, in double or int64, in the order of the output's elements.
template <typename T, typename Sum>
std::vector<Sum> sums(const DenseTensor& x, const std::vector<bool>& reduced) {
  const Extents extents = extents_of(x);
  Extents kept = extents;
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = reduced[i] ? 1 : kept[i];
  std::vector<Sum> found(product(kept, 0, kept.size()), Sum{0});
  const Extents strides[1] = {repeated_strides(kept, extents)};
  const int64_t length = extents.empty() ? 1 : extents.back();
  const int64_t step = extents.empty() ? 0 : strides[0].back();
  const T* values = x.data<T>();
  for_rows(extents, strides, [&](int64_t from, const int64_t* to) {
    for (int64_t i = 0; i < length; ++i) found[to[0] + i * step] += static_cast<Sum>(values[from + i]);
  });
  return found;
}

// c[m, n] = a[m, k] * b[k, n], row-major; four rows and sixteen columns at a time, which stay in registers.
inline void multiply(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kRows = 4, kColumns = 16;
  std::vector<float> panel(std::max<int64_t>(k, 1) * kColumns);
  for (int64_t j = 0; j < n; j += kColumns) {
    const int64_t columns = std::min(kColumns, n - j);
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t q = 0; q < kColumns; ++q) panel[p * kColumns + q] = q < columns ? b[p * n + j + q] : 0.0f;
    }
    for (int64_t i = 0; i < m; i += kRows) {
      const int64_t rows = std::min(kRows, m - i);
      const float* row[kRows];
      for (int64_t r = 0; r < kRows; ++r) row[r] = a + (i + std::min(r, rows - 1)) * k;
      float sum[kRows][kColumns] = {};
      for (int64_t p = 0; p < k; ++p) {
        const float* line = panel.data() + p * kColumns;
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t q = 0; q < kColumns; ++q) sum[r][q] += row[r][p] * line[q];
        }
      }
      for (int64_t r = 0; r < rows; ++r) std::memcpy(c + (i + r) * n + j, sum[r], columns * sizeof(float));
    }
  }
}

}  // namespace simulator
