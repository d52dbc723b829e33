// Kernels that make or move elements and compute nothing with them.

#include <cmath>

#include "loops.h"

namespace simulator {

// Extents that an attribute states are set by the kernel: where the attribute is a tensor, Paddle leaves them open.
void resize(DenseTensor* out, const Extents& extents) { out->Resize(common::make_ddim(extents)); }

// The same elements in the same order, in the output's shape; where it works in place there is nothing to move.
template <typename T, typename Context>
void same_order(const Context& context, const DenseTensor& x, DenseTensor* out) {
  const auto extents = out->dims();
  const T* values = x.data<T>();
  T* found = context.template Alloc<T>(out);
  if (found != values) std::memmove(found, values, x.numel() * sizeof(T));
  out->Resize(extents);
}

template <typename T, typename Context>
void ReshapeKernel(const Context& context, const DenseTensor& x, const phi::IntArray& shape, DenseTensor* out) {
  const Call call("reshape", context, out);
  Extents extents = shape.GetData();  // 0 takes the extent over, -1 is what is left
  for (size_t i = 0; i < extents.size(); ++i) extents[i] = extents[i] == 0 ? x.dims()[i] : extents[i];
  const auto open = std::find(extents.begin(), extents.end(), -1);
  if (open != extents.end()) {
    *open = 1;
    const int64_t known = product(extents, 0, extents.size());
    *open = known == 0 ? 0 : x.numel() / known;
  }
  resize(out, extents);
  same_order<T>(context, x, out);
}

template <typename T, typename Context>
void FlattenKernel(const Context& context, const DenseTensor& x, int, int, DenseTensor* out) {
  const Call call("flatten", context, out);
  same_order<T>(context, x, out);
}

template <typename T, typename Context>
void UnsqueezeKernel(const Context& context, const DenseTensor& x, const phi::IntArray&, DenseTensor* out) {
  const Call call("unsqueeze", context, out);
  same_order<T>(context, x, out);
}

template <typename T, typename Context>
void SqueezeKernel(const Context& context, const DenseTensor& x, const phi::IntArray&, DenseTensor* out) {
  const Call call("squeeze", context, out);
  same_order<T>(context, x, out);
}

template <typename T, typename Context>
void AssignKernel(const Context& context, const DenseTensor& x, DenseTensor* out) {
  const Call call("assign", context, out);
  same_order<T>(context, x, out);
}

// out, row-major, from x with any strides.
template <typename T>
void gather_strided(const T* values, T* found, const Extents& extents, const Extents& strides) {
  const Extents all[1] = {strides};
  const int64_t length = extents.empty() ? 1 : extents.back(), step = extents.empty() ? 0 : strides.back();
  for_rows(extents, all, [&](int64_t to, const int64_t* from) {
    for (int64_t i = 0; i < length; ++i) found[to + i] = values[from[0] + i * step];
  });
}

template <typename T, typename Context>
void TransposeKernel(const Context& context, const DenseTensor& x, const std::vector<int>& order, DenseTensor* out) {
  const Call call("transpose", context, out);
  const Extents strides = strides_of(extents_of(x));
  Extents turned;
  for (int axis : order) turned.push_back(strides[axis_of(axis, strides.size())]);
  gather_strided(x.data<T>(), context.template Alloc<T>(out), extents_of(*out), turned);
}

template <typename T, typename Context>
void SliceKernel(const Context& context, const DenseTensor& x, const std::vector<int64_t>& axes,
                 const phi::IntArray& starts, const phi::IntArray& ends, const std::vector<int64_t>&,
                 const std::vector<int64_t>& dropped, DenseTensor* out) {
  const Call call("slice", context, out);
  Extents extents = extents_of(x);
  const Extents strides = strides_of(extents);
  const auto within = [](int64_t place, int64_t extent) {
    return std::min(std::max<int64_t>(place < 0 ? place + extent : place, 0), extent);
  };
  int64_t offset = 0;
  for (size_t i = 0; i < axes.size(); ++i) {
    int64_t& extent = extents[axis_of(axes[i], extents.size())];
    const int64_t start = within(starts.GetData()[i], extent);
    offset += start * strides[axis_of(axes[i], extents.size())];
    extent = std::max<int64_t>(within(ends.GetData()[i], extent) - start, 0);
  }
  Extents left, steps;
  for (size_t axis = 0; axis < extents.size(); ++axis) {
    bool stays = true;
    for (int64_t gone : dropped) stays = stays && axis_of(gone, extents.size()) != static_cast<int64_t>(axis);
    if (!stays) continue;
    left.push_back(extents[axis]);
    steps.push_back(strides[axis]);
  }
  resize(out, left);
  gather_strided(x.data<T>() + offset, context.template Alloc<T>(out), left, steps);
}

// Copies a block that begins at `start` along an axis, out of or into a larger tensor.
template <typename T>
void copy_block(const T* from, T* to, int64_t outer, int64_t block, int64_t from_step, int64_t to_step) {
  for (int64_t i = 0; i < outer; ++i) std::memcpy(to + i * to_step, from + i * from_step, block * sizeof(T));
}

template <typename T, typename Context>
void split_along(const Context& context, const DenseTensor& x, int64_t axis, const std::vector<DenseTensor*>& out) {
  const Extents extents = extents_of(x);
  axis = axis_of(axis, extents.size());
  const int64_t outer = product(extents, 0, axis), inner = product(extents, axis + 1, extents.size());
  const int64_t row = extents[axis] * inner;
  const T* values = x.data<T>();
  for (DenseTensor* part : out) {
    const int64_t block = part->dims()[axis] * inner;
    copy_block(values, context.template Alloc<T>(part), outer, block, row, block);
    values += block;
  }
}

template <typename T, typename Context>
void SplitKernel(const Context& context, const DenseTensor& x, const phi::IntArray& sections, const phi::Scalar& axis,
                 std::vector<DenseTensor*> out) {
  const Call call("split", context, out[0]);
  Extents extents = extents_of(x);
  const int64_t at = axis_of(axis.to<int64_t>(), extents.size()), whole = extents[at];
  int64_t known = 0;
  for (int64_t section : sections.GetData()) known += std::max<int64_t>(section, 0);
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t section = sections.GetData()[i];
    extents[at] = section < 0 ? whole - known : section;
    resize(out[i], extents);
  }
  split_along<T>(context, x, axis.to<int64_t>(), out);
}

template <typename T, typename Context>
void SplitWithNumKernel(const Context& context, const DenseTensor& x, int, const phi::Scalar& axis,
                        std::vector<DenseTensor*> out) {
  const Call call("split_with_num", context, out[0]);
  split_along<T>(context, x, axis.to<int64_t>(), out);
}

template <typename T, typename Context>
void ConcatKernel(const Context& context, const std::vector<const DenseTensor*>& parts, const phi::Scalar& along,
                  DenseTensor* out) {
  const Call call("concat", context, out);
  const Extents extents = extents_of(*out);
  const int64_t axis = axis_of(along.to<int64_t>(), extents.size());
  const int64_t outer = product(extents, 0, axis), inner = product(extents, axis + 1, extents.size());
  T* found = context.template Alloc<T>(out);
  for (const DenseTensor* part : parts) {
    if (part->numel() == 0) continue;
    const int64_t block = part->dims()[axis] * inner;
    copy_block(part->data<T>(), found, outer, block, block, extents[axis] * inner);
    found += block;
  }
}

template <typename T, typename Context>
void StackKernel(const Context& context, const std::vector<const DenseTensor*>& parts, int axis, DenseTensor* out) {
  const Call call("stack", context, out);
  const Extents extents = extents_of(*out);
  const int64_t at = axis_of(axis, extents.size());
  const int64_t outer = product(extents, 0, at), inner = product(extents, at + 1, extents.size());
  T* found = context.template Alloc<T>(out);
  for (const DenseTensor* part : parts) {
    copy_block(part->data<T>(), found, outer, inner, inner, extents[at] * inner);
    found += inner;
  }
}

// Repeats x along each axis until it has these extents: what tile and expand have in common.
template <typename T, typename Context>
void repeat(const Context& context, const DenseTensor& x, const Extents& extents, DenseTensor* out) {
  resize(out, extents);
  Extents small = extents_of(x);
  small.insert(small.begin(), extents.size() - small.size(), 1);
  const Extents strides = strides_of(small), steps = strides_of(extents);
  const T* values = x.data<T>();
  T* found = context.template Alloc<T>(out);
  for (int64_t i = 0; i < out->numel(); ++i) {
    int64_t from = 0;
    for (size_t axis = 0; axis < extents.size(); ++axis) {
      from += i / steps[axis] % extents[axis] % small[axis] * strides[axis];
    }
    found[i] = values[from];
  }
}

template <typename T, typename Context>
void TileKernel(const Context& context, const DenseTensor& x, const phi::IntArray& times, DenseTensor* out) {
  const Call call("tile", context, out);
  Extents extents = extents_of(x), factors = times.GetData();
  const size_t rank = std::max(extents.size(), factors.size());
  extents.insert(extents.begin(), rank - extents.size(), 1);
  factors.insert(factors.begin(), rank - factors.size(), 1);
  for (size_t i = 0; i < rank; ++i) extents[i] *= factors[i];
  repeat<T>(context, x, extents, out);
}

template <typename T, typename Context>
void ExpandKernel(const Context& context, const DenseTensor& x, const phi::IntArray& shape, DenseTensor* out) {
  const Call call("expand", context, out);
  Extents extents = shape.GetData();
  const size_t lead = extents.size() - x.dims().size();
  for (size_t i = lead; i < extents.size(); ++i) extents[i] = extents[i] < 0 ? x.dims()[i - lead] : extents[i];
  repeat<T>(context, x, extents, out);
}

template <typename T, typename Context>
void FullKernel(const Context& context, const phi::IntArray& shape, const phi::Scalar& value, phi::DataType,
                DenseTensor* out) {
  const Call call("full", context, out);
  out->Resize(common::make_ddim(shape.GetData()));
  std::fill_n(context.template Alloc<T>(out), out->numel(), value.to<T>());
}

template <typename T, typename Context>
void FullLikeKernel(const Context& context, const DenseTensor&, const phi::Scalar& value, phi::DataType,
                    DenseTensor* out) {
  const Call call("full_like", context, out);
  std::fill_n(context.template Alloc<T>(out), out->numel(), value.to<T>());
}

template <typename T, typename Context>
void ArangeKernel(const Context& context, const phi::Scalar& start, const phi::Scalar& end, const phi::Scalar& step,
                  DenseTensor* out) {
  const Call call("arange", context, out);
  const double first = start.to<double>(), last = end.to<double>(), by = step.to<double>();
  const int64_t count = std::max<int64_t>(0, static_cast<int64_t>(std::ceil((last - first) / by)));
  out->Resize(common::make_ddim({count}));
  T* found = context.template Alloc<T>(out);
  for (int64_t i = 0; i < count; ++i) found[i] = static_cast<T>(first + by * i);
}

template <typename T, typename Context>
void OneHotKernel(const Context& context, const DenseTensor& x, const phi::Scalar& classes, DenseTensor* out) {
  const Call call("one_hot", context, out);
  const int64_t depth = classes.to<int64_t>();
  Extents extents = extents_of(x);
  extents.push_back(depth);
  resize(out, extents);
  const T* values = x.data<T>();
  float* found = context.template Alloc<float>(out);
  std::fill_n(found, out->numel(), 0.0f);
  for (int64_t i = 0; i < x.numel(); ++i) {
    PADDLE_ENFORCE_EQ(values[i] >= 0 && values[i] < depth, true,
                      common::errors::InvalidArgument("one_hot: %d is none of %d classes", values[i], depth));
    found[i * depth + values[i]] = 1.0f;
  }
}

// Rows of `table`, which is [outer, rows, inner], in the order of `index`.
template <typename T, typename Index>
void take(const T* table, const DenseTensor& index, T* found, int64_t outer, int64_t rows, int64_t inner) {
  const Index* wanted = index.data<Index>();
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < index.numel(); ++i, found += inner) {
      const int64_t row = wanted[i] < 0 ? wanted[i] + rows : wanted[i];
      PADDLE_ENFORCE_EQ(row >= 0 && row < rows, true,
                        common::errors::OutOfRange("there is no row %d among %d", wanted[i], rows));
      std::memcpy(found, table + (o * rows + row) * inner, inner * sizeof(T));
    }
  }
}

template <typename T, typename Context>
void take_any(const Context& context, const DenseTensor& table, const DenseTensor& index, int64_t axis,
              DenseTensor* out) {
  const Extents extents = extents_of(table);
  const int64_t outer = product(extents, 0, axis), inner = product(extents, axis + 1, extents.size());
  T* found = context.template Alloc<T>(out);
  if (index.dtype() == phi::DataType::INT64) {
    take<T, int64_t>(table.data<T>(), index, found, outer, extents[axis], inner);
  } else {
    take<T, int32_t>(table.data<T>(), index, found, outer, extents[axis], inner);
  }
}

template <typename T, typename Context>
void EmbeddingKernel(const Context& context, const DenseTensor& ids, const DenseTensor& table, int64_t padding,
                     DenseTensor* out) {
  const Call call("embedding", context, out);
  PADDLE_ENFORCE_EQ(padding == -1, true,
                    common::errors::Unimplemented("The simulated NPU's embedding takes no padding"));
  take_any<T>(context, table, ids, 0, out);
}

template <typename T, typename Context>
void GatherKernel(const Context& context, const DenseTensor& x, const DenseTensor& index, const phi::Scalar& axis,
                  DenseTensor* out) {
  const Call call("gather", context, out);
  take_any<T>(context, x, index, axis_of(axis.to<int64_t>(), x.dims().size()), out);
}

template <typename T, typename Context>
void WhereKernel(const Context& context, const DenseTensor& which, const DenseTensor& x, const DenseTensor& y,
                 DenseTensor* out) {
  const Call call("where", context, out);
  const Extents extents = extents_of(*out);
  const Extents strides[3] = {repeated_strides(extents_of(which), extents), repeated_strides(extents_of(x), extents),
                              repeated_strides(extents_of(y), extents)};
  const bool* flags = which.data<bool>();
  const T *a = x.data<T>(), *b = y.data<T>();
  T* found = context.template Alloc<T>(out);
  const int64_t length = extents.empty() ? 1 : extents.back();
  const bool flat = extents.empty();
  for_rows(extents, strides, [&](int64_t to, const int64_t* from) {
    for (int64_t i = 0; i < length; ++i) {
      const bool first = flags[from[0] + (flat ? 0 : i * strides[0].back())];
      found[to + i] = first ? a[from[1] + (flat ? 0 : i * strides[1].back())]
                            : b[from[2] + (flat ? 0 : i * strides[2].back())];
    }
  });
}

}  // namespace simulator

#define ELEMENTS float, int64_t, int32_t, bool
#define REGISTER(kernel, Name, ...) \
  PD_REGISTER_PLUGIN_KERNEL(kernel, npu, ALL_LAYOUT, simulator::Name##Kernel, __VA_ARGS__)

REGISTER(reshape, Reshape, ELEMENTS) {}
REGISTER(flatten, Flatten, ELEMENTS) {}
REGISTER(unsqueeze, Unsqueeze, ELEMENTS) {}
REGISTER(squeeze, Squeeze, ELEMENTS) {}
REGISTER(assign, Assign, ELEMENTS) {}
REGISTER(transpose, Transpose, ELEMENTS) {}
REGISTER(slice, Slice, ELEMENTS) {}
REGISTER(split, Split, ELEMENTS) {}
REGISTER(split_with_num, SplitWithNum, ELEMENTS) {}
REGISTER(concat, Concat, ELEMENTS) {}
REGISTER(stack, Stack, ELEMENTS) {}
REGISTER(tile, Tile, ELEMENTS) {}
REGISTER(expand, Expand, ELEMENTS) {}
REGISTER(full, Full, ELEMENTS) {}
REGISTER(full_like, FullLike, ELEMENTS) {}
REGISTER(arange, Arange, float, int64_t, int32_t) {}
REGISTER(one_hot, OneHot, int64_t, int32_t) { kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED); }
REGISTER(embedding, Embedding, float) {}
REGISTER(gather, Gather, ELEMENTS) {}
REGISTER(where, Where, ELEMENTS) {}
