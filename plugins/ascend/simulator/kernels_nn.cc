// Matrix products, convolutions, pooling, batch norms and top-k: in float32, each sum in one thread.

#include <cmath>
#include <limits>
#include <numeric>

#include "loops.h"

namespace simulator {

// A matrix of a batch, row-major, turned where that is asked for.
class Matrix {
 public:
  Matrix(const float* values, int64_t rows, int64_t columns, bool turned) : values_(values) {
    if (!turned) return;
    own_.resize(rows * columns);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) own_[r * columns + c] = values[c * rows + r];
    }
    values_ = own_.data();
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  const float* values() const { return values_; }

 private:
  std::vector<float> own_;
  const float* values_;
};

// Batches of matrices as NumPy's matmul multiplies them: extents of one axis are a row on the left, a column on the
// right. Paddle's own idea of the output's extents leaves out what is repeated on the left, so they are made here.
struct Product {
  Product(Extents x, bool turn_x, Extents y, bool turn_y) : left(x), right(y), turn_left(turn_x), turn_right(turn_y) {
    if (x.size() == 1) left.insert(turn_left ? left.end() : left.begin(), 1);
    if (y.size() == 1) right.insert(turn_right ? right.begin() : right.end(), 1);
    m = left[left.size() - 2], k = left.back(), n = turn_right ? right[right.size() - 2] : right.back();
    if (turn_left) std::swap(m, k);
    left.resize(left.size() - 2);
    right.resize(right.size() - 2);
    batch = Extents(std::max(left.size(), right.size()), 1);
    for (size_t i = 0; i < left.size(); ++i) batch[batch.size() - left.size() + i] = left[i];
    for (size_t i = 0; i < right.size(); ++i) {
      int64_t& extent = batch[batch.size() - right.size() + i];
      if (extent == 1) extent = right[i];
    }
    made = batch;
    if (x.size() > 1) made.push_back(m);
    if (y.size() > 1) made.push_back(n);
  }

  void compute(const float* a, const float* b, float* out) {
    const int64_t count = product(batch, 0, batch.size());
    if (count * m * n == 0) return;
    if (!turn_left && product(right, 0, right.size()) == 1) {  // all rows on the left meet one matrix: one product
      return multiply(a, Matrix(b, k, n, turn_right).values(), out, count * m, n, k);
    }
    batch.push_back(1);  // the loop's last axis
    left.push_back(1);
    right.push_back(1);
    const Extents strides[2] = {repeated_strides(left, batch), repeated_strides(right, batch)};
    for_rows(batch, strides, [&](int64_t to, const int64_t* from) {
      const Matrix x(a + from[0] * m * k, m, k, turn_left);
      const Matrix y(b + from[1] * k * n, k, n, turn_right);
      multiply(x.values(), y.values(), out + to * m * n, m, n, k);
    });
  }

  Extents left, right, batch, made;
  bool turn_left, turn_right;
  int64_t m, n, k;
};

template <typename T, typename Context>
void MatmulKernel(const Context& context, const DenseTensor& x, const DenseTensor& y, bool turn_x, bool turn_y,
                  DenseTensor* out) {
  const Call call("matmul", context, out);
  Product product(extents_of(x), turn_x, extents_of(y), turn_y);
  out->Resize(common::make_ddim(product.made));
  product.compute(x.data<T>(), y.data<T>(), context.template Alloc<T>(out));
}

template <typename T, typename Context>
void MatmulWithFlattenKernel(const Context& context, const DenseTensor& x, const DenseTensor& y, int x_columns,
                             int y_columns, DenseTensor* out) {
  const Call call("matmul_with_flatten", context, out);
  const Extents left = extents_of(x), right = extents_of(y);
  const int64_t m = product(left, 0, x_columns), k = product(left, x_columns, left.size());
  const int64_t n = product(right, y_columns, right.size());
  multiply(x.data<T>(), y.data<T>(), context.template Alloc<T>(out), m, n, k);
}

// Where a window lies along one axis: `before` is the padding before the first element.
struct Axis {
  int64_t in, out, kernel, stride, before, dilation;
};

// The padding before the first element along axis 0 or 1 of an image; the output's extent tells the rest.
int64_t padding(const std::vector<int64_t>& paddings, const std::string& algorithm, const Axis& axis, int which) {
  if (algorithm == "VALID") return 0;
  if (algorithm == "SAME") {
    const int64_t reach = (axis.kernel - 1) * axis.dilation + 1;
    return std::max<int64_t>(0, (axis.out - 1) * axis.stride + reach - axis.in) / 2;
  }
  return paddings.size() == 4 ? paddings[2 * which] : paddings[which];
}

// A matrix with a row for each element of the window and channel, and a column for each place of the output.
void columns_of(const float* image, int64_t channels, const Axis& y, const Axis& x, float* found) {
  for (int64_t c = 0; c < channels; ++c, image += y.in * x.in) {
    for (int64_t ky = 0; ky < y.kernel; ++ky) {
      for (int64_t kx = 0; kx < x.kernel; ++kx) {
        for (int64_t oy = 0; oy < y.out; ++oy) {
          const int64_t iy = oy * y.stride - y.before + ky * y.dilation;
          for (int64_t ox = 0; ox < x.out; ++ox) {
            const int64_t ix = ox * x.stride - x.before + kx * x.dilation;
            const bool inside = iy >= 0 && iy < y.in && ix >= 0 && ix < x.in;
            *found++ = inside ? image[iy * x.in + ix] : 0.0f;
          }
        }
      }
    }
  }
}

void convolve(const float* images, const Extents& in, const float* filter, const Extents& weights, const Axis& y,
              const Axis& x, int64_t groups, float* out) {
  const int64_t channels = in[1] / groups, made = weights[0] / groups;
  const int64_t places = y.out * x.out, depth = channels * y.kernel * x.kernel;
  const bool plain = y.kernel * x.kernel == 1 && y.stride * x.stride == 1 && y.before + x.before == 0 &&
                     y.in == y.out && x.in == x.out;
  std::vector<float> columns(plain ? 0 : depth * places);
  for (int64_t image = 0; image < in[0]; ++image) {
    for (int64_t group = 0; group < groups; ++group) {
      const float* from = images + (image * groups + group) * channels * y.in * x.in;
      if (!plain) columns_of(from, channels, y, x, columns.data());
      multiply(filter + group * made * depth, plain ? from : columns.data(),
               out + (image * groups + group) * made * places, made, places, depth);
    }
  }
}

template <typename T, typename Context>
void convolution(const Context& context, const DenseTensor& input, const DenseTensor& filter,
                 const std::vector<int>& strides, const std::vector<int>& paddings, const std::string& algorithm,
                 const std::vector<int>& dilations, int groups, const std::string& format, DenseTensor* out) {
  PADDLE_ENFORCE_EQ(format == "NHWC", false, common::errors::Unimplemented("The simulated NPU convolves NCHW only"));
  T* found = context.template Alloc<T>(out);
  const Extents in = extents_of(input), weights = extents_of(filter), made = extents_of(*out);
  const std::vector<int64_t> given(paddings.begin(), paddings.end());
  Axis axes[2];
  for (int i = 0; i < 2; ++i) {
    axes[i] = {in[2 + i], made[2 + i], weights[2 + i], strides[i], 0, dilations[i]};
    axes[i].before = padding(given, algorithm, axes[i], i);
  }
  convolve(input.data<T>(), in, filter.data<T>(), weights, axes[0], axes[1], groups, found);
}

template <typename T, typename Context>
void Conv2dKernel(const Context& context, const DenseTensor& input, const DenseTensor& filter,
                  const std::vector<int>& strides, const std::vector<int>& paddings, const std::string& algorithm,
                  const std::vector<int>& dilations, int groups, const std::string& format, DenseTensor* out) {
  const Call call("conv2d", context, out);
  convolution<T>(context, input, filter, strides, paddings, algorithm, dilations, groups, format, out);
}

template <typename T, typename Context>
void DepthwiseConv2dKernel(const Context& context, const DenseTensor& input, const DenseTensor& filter,
                           const std::vector<int>& strides, const std::vector<int>& paddings,
                           const std::string& algorithm, int groups, const std::vector<int>& dilations,
                           const std::string& format, DenseTensor* out) {
  const Call call("depthwise_conv2d", context, out);
  convolution<T>(context, input, filter, strides, paddings, algorithm, dilations, groups, format, out);
}

// y = (x - mean) / sqrt(variance + epsilon) * scale + bias for each channel, by the statistics that were learned.
template <typename T, typename Context>
void normalize(const Context& context, const DenseTensor& x, const DenseTensor& mean, const DenseTensor& variance,
               const DenseTensor* scale, const DenseTensor* bias, float epsilon, const std::string& format,
               DenseTensor* y) {
  const Extents extents = extents_of(x);
  const size_t axis = format == "NHWC" ? extents.size() - 1 : 1;
  const int64_t channels = extents[axis], inner = product(extents, axis + 1, extents.size());
  const T* values = x.data<T>();
  T* found = context.template Alloc<T>(y);
  for (int64_t row = 0; row < x.numel() / inner; ++row, values += inner, found += inner) {
    const int64_t c = row % channels;
    const T unit = T(1) / std::sqrt(variance.data<T>()[c] + T(epsilon));
    const T factor = unit * (scale == nullptr ? T(1) : scale->data<T>()[c]);
    const T shift = (bias == nullptr ? T(0) : bias->data<T>()[c]) - mean.data<T>()[c] * factor;
    for (int64_t i = 0; i < inner; ++i) found[i] = values[i] * factor + shift;
  }
}

template <typename T, typename Context>
void BatchNormKernel(const Context& context, const DenseTensor& x, const DenseTensor& mean,
                     const DenseTensor& variance, const paddle::optional<DenseTensor>& scale,
                     const paddle::optional<DenseTensor>& bias, bool is_test, float, float epsilon,
                     const std::string& format, bool use_global_stats, bool trainable_statistics, DenseTensor* y,
                     DenseTensor* mean_out, DenseTensor* variance_out, DenseTensor* saved_mean,
                     DenseTensor* saved_variance, DenseTensor*) {
  const Call call("batch_norm", context, y);
  PADDLE_ENFORCE_EQ((is_test || use_global_stats) && !trainable_statistics, true,
                    common::errors::Unimplemented("The simulated NPU's batch_norm does not train"));
  normalize<T>(context, x, mean, variance, scale.get_ptr(), bias.get_ptr(), epsilon, format, y);
  const auto keep = [&](const DenseTensor& from, DenseTensor* to) {  // the statistics as they were
    if (to == nullptr) return;
    const T* values = from.data<T>();
    T* kept = context.template Alloc<T>(to);
    if (kept != values) std::copy_n(values, from.numel(), kept);
  };
  keep(mean, mean_out);
  keep(variance, variance_out);
  keep(mean, saved_mean);
  keep(variance, saved_variance);
}

// Where the windows of a pooling lie along one axis.
struct Windows {
  Axis axis;
  bool adaptive;

  // The first element of a window and the one behind its last; padding that counts is included.
  std::pair<int64_t, int64_t> at(int64_t place) const {
    if (adaptive) return {place * axis.in / axis.out, ((place + 1) * axis.in + axis.out - 1) / axis.out};
    const int64_t start = place * axis.stride - axis.before;
    return {start, std::min(start + axis.kernel, axis.in + axis.before)};
  }
};

template <typename T, typename Context>
void Pool2dKernel(const Context& context, const DenseTensor& x, const phi::IntArray& kernel,
                  const std::vector<int64_t>& strides, const std::vector<int64_t>& paddings, bool, bool exclusive,
                  const std::string& format, const std::string& kind, bool global, bool adaptive,
                  const std::string& algorithm, DenseTensor* out) {
  const Call call("pool2d", context, out);
  const bool last = format == "NHWC";  // Paddle's passes turn some poolings so
  const Extents in = extents_of(x), made = extents_of(*out), from = strides_of(in), to = strides_of(made);
  const int c = last ? 3 : 1, first = last ? 1 : 2;
  const auto size = kernel.GetData();
  Windows windows[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t extent = in[first + i];
    Axis axis{extent, made[first + i], global ? extent : size[i], strides[i], 0, 1};
    axis.before = global ? 0 : padding(paddings, algorithm, axis, i);
    windows[i] = {axis, adaptive};
  }
  const T* values = x.data<T>();
  T* found = context.template Alloc<T>(out);
  for (int64_t plane = 0; plane < in[0] * in[c]; ++plane) {
    const T* image = values + plane / in[c] * from[0] + plane % in[c] * from[c];
    T* pooled = found + plane / in[c] * to[0] + plane % in[c] * to[c];
    for (int64_t oy = 0; oy < made[first]; ++oy) {
      for (int64_t ox = 0; ox < made[first + 1]; ++ox) {
        const auto [top, bottom] = windows[0].at(oy);
        const auto [left, right] = windows[1].at(ox);
        T largest = -std::numeric_limits<T>::infinity();
        double sum = 0;
        int64_t count = 0;
        for (int64_t iy = std::max<int64_t>(top, 0); iy < std::min(bottom, windows[0].axis.in); ++iy) {
          for (int64_t ix = std::max<int64_t>(left, 0); ix < std::min(right, windows[1].axis.in); ++ix, ++count) {
            const T value = image[iy * from[first] + ix * from[first + 1]];
            largest = std::max(largest, value);
            sum += value;
          }
        }
        if (!exclusive && !adaptive) count = (bottom - top) * (right - left);
        pooled[oy * to[first] + ox * to[first + 1]] = kind == "max" ? largest : static_cast<T>(sum / count);
      }
    }
  }
}

// Ties go to the lower index.
template <typename T, typename Context>
void TopkKernel(const Context& context, const DenseTensor& x, const phi::Scalar& k, int axis, bool largest, bool,
                DenseTensor* out, DenseTensor* indices) {
  const Call call("topk", context, out);
  const Extents extents = extents_of(x);
  const int64_t at = axis_of(axis, extents.size()), wanted = k.to<int64_t>();
  const int64_t length = extents[at], step = product(extents, at + 1, extents.size());
  Extents made = extents;
  made[at] = wanted;
  out->Resize(common::make_ddim(made));  // Paddle leaves this extent open where k is a tensor
  indices->Resize(common::make_ddim(made));
  const T* values = x.data<T>();
  T* found = context.template Alloc<T>(out);
  int64_t* places = context.template Alloc<int64_t>(indices);
  std::vector<int64_t> order(length);
  for (int64_t outer = 0; outer < product(extents, 0, at); ++outer) {
    for (int64_t inner = 0; inner < step; ++inner) {
      const T* line = values + outer * length * step + inner;
      std::iota(order.begin(), order.end(), int64_t{0});
      std::partial_sort(order.begin(), order.begin() + wanted, order.end(), [&](int64_t a, int64_t b) {
        const T va = line[a * step], vb = line[b * step];
        return va != vb ? (largest ? va > vb : va < vb) : a < b;
      });
      for (int64_t i = 0; i < wanted; ++i) {
        found[(outer * wanted + i) * step + inner] = line[order[i] * step];
        places[(outer * wanted + i) * step + inner] = order[i];
      }
    }
  }
}

}  // namespace simulator

#define REGISTER(kernel, Name, ...) \
  PD_REGISTER_PLUGIN_KERNEL(kernel, npu, ALL_LAYOUT, simulator::Name##Kernel, __VA_ARGS__)

REGISTER(matmul, Matmul, float) {}
REGISTER(matmul_with_flatten, MatmulWithFlatten, float) {}
REGISTER(conv2d, Conv2d, float) {}
REGISTER(depthwise_conv2d, DepthwiseConv2d, float) {}
REGISTER(batch_norm, BatchNorm, float) {}
REGISTER(pool2d, Pool2d, float) {}
REGISTER(topk, Topk, float) { kernel->OutputAt(1).SetDataType(phi::DataType::INT64); }
