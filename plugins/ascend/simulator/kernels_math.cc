// Kernels that compute element by element, or over an axis: arithmetic, comparisons, activations, reductions, norms.

#include <cmath>
#include <limits>

#include "loops.h"

namespace simulator {

#define BINARY(Name, kernel, expression)                                                                     \
  template <typename T, typename Context>                                                                    \
  void Name##Kernel(const Context& context, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {   \
    const Call call(kernel, context, out);                                                                   \
    broadcast<T>(x, y, context.template Alloc<T>(out), extents_of(*out), [](T a, T b) -> T { return expression; }); \
  }

BINARY(Add, "add", a + b)
BINARY(Subtract, "subtract", a - b)
BINARY(Multiply, "multiply", a * b)
BINARY(Divide, "divide", a / b)
BINARY(Maximum, "maximum", a > b || a != a ? a : b)
BINARY(Minimum, "minimum", a < b || a != a ? a : b)

#define COMPARISON(Name, kernel, expression)                                                                  \
  template <typename T, typename Context>                                                                     \
  void Name##Kernel(const Context& context, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {    \
    const Call call(kernel, context, out);                                                                    \
    bool* found = context.template Alloc<bool>(out);                                                          \
    broadcast<T>(x, y, found, extents_of(*out), [](T a, T b) { return expression; });                         \
  }

COMPARISON(GreaterThan, "greater_than", a > b)
COMPARISON(GreaterEqual, "greater_equal", a >= b)
COMPARISON(LessThan, "less_than", a < b)
COMPARISON(LessEqual, "less_equal", a <= b)
COMPARISON(Equal, "equal", a == b)
COMPARISON(NotEqual, "not_equal", a != b)

template <typename T, typename F>
void each(const DenseTensor& x, T* out, F f) {
  const T* values = x.data<T>();
  const int64_t count = x.numel();
  for (int64_t i = 0; i < count; ++i) out[i] = f(values[i]);
}

#define UNARY(Name, kernel, expression)                                                       \
  template <typename T, typename Context>                                                     \
  void Name##Kernel(const Context& context, const DenseTensor& x, DenseTensor* out) {         \
    const Call call(kernel, context, out);                                                    \
    each<T>(x, context.template Alloc<T>(out), [](T v) -> T { return expression; });          \
  }

UNARY(Relu, "relu", v > T(0) || v != v ? v : T(0))
UNARY(Relu6, "relu6", std::min(std::max(v, T(0)), T(6)))
UNARY(Sigmoid, "sigmoid", T(1) / (T(1) + std::exp(-v)))
UNARY(Silu, "silu", v / (T(1) + std::exp(-v)))
UNARY(Hardswish, "hardswish", v * std::min(std::max(v + T(3), T(0)), T(6)) / T(6))
UNARY(Tanh, "tanh", std::tanh(v))
UNARY(Exp, "exp", std::exp(v))
UNARY(Log, "log", std::log(v))
UNARY(Sqrt, "sqrt", std::sqrt(v))
UNARY(Rsqrt, "rsqrt", T(1) / std::sqrt(v))
UNARY(Square, "square", v * v)
UNARY(Sin, "sin", std::sin(v))
UNARY(Cos, "cos", std::cos(v))
UNARY(Abs, "abs", std::abs(v))

template <typename T, typename Context>
void GeluKernel(const Context& context, const DenseTensor& x, bool approximate, DenseTensor* out) {
  const Call call("gelu", context, out);
  T* found = context.template Alloc<T>(out);
  if (approximate) {
    const T root = T(0.7978845608028654);  // sqrt(2 / pi)
    each<T>(x, found, [root](T v) { return T(0.5) * v * (T(1) + std::tanh(root * (v + T(0.044715) * v * v * v))); });
  } else {
    each<T>(x, found, [](T v) { return T(0.5) * v * (T(1) + std::erf(v * T(0.7071067811865476))); });
  }
}

template <typename T, typename Context>
void ScaleKernel(const Context& context, const DenseTensor& x, const phi::Scalar& scale, const phi::Scalar& bias,
                 bool bias_after_scale, DenseTensor* out) {
  const Call call("scale", context, out);
  const T factor = scale.to<T>(), shift = bias.to<T>();
  T* found = context.template Alloc<T>(out);
  if (bias_after_scale) {
    each<T>(x, found, [=](T v) -> T { return v * factor + shift; });
  } else {
    each<T>(x, found, [=](T v) -> T { return (v + shift) * factor; });
  }
}

template <typename T, typename Context>
void ClipKernel(const Context& context, const DenseTensor& x, const phi::Scalar& least, const phi::Scalar& most,
                DenseTensor* out) {
  const Call call("clip", context, out);
  const T low = least.to<T>(), high = most.to<T>();
  each<T>(x, context.template Alloc<T>(out), [=](T v) { return v < low ? low : v > high ? high : v; });
}

template <typename T, typename Context>
void PowKernel(const Context& context, const DenseTensor& x, const phi::Scalar& exponent, DenseTensor* out) {
  const Call call("pow", context, out);
  const T power = exponent.to<T>();
  each<T>(x, context.template Alloc<T>(out), [=](T v) -> T { return std::pow(v, power); });
}

template <typename T, typename To, typename Context>
void cast_to(const Context& context, const DenseTensor& x, DenseTensor* out) {
  const T* values = x.data<T>();
  To* found = context.template Alloc<To>(out);
  for (int64_t i = 0; i < x.numel(); ++i) found[i] = static_cast<To>(values[i]);
}

template <typename T, typename Context>
void CastKernel(const Context& context, const DenseTensor& x, phi::DataType dtype, DenseTensor* out) {
  const Call call("cast", context, out);
  switch (dtype) {
    case phi::DataType::FLOAT32:
      return cast_to<T, float>(context, x, out);
    case phi::DataType::INT64:
      return cast_to<T, int64_t>(context, x, out);
    case phi::DataType::INT32:
      return cast_to<T, int32_t>(context, x, out);
    case phi::DataType::BOOL:
      return cast_to<T, bool>(context, x, out);
    default:
      PADDLE_THROW(common::errors::Unimplemented("The simulated NPU casts to float32, int64, int32 and bool only"));
  }
}

template <typename T, typename Context>
void SumKernel(const Context& context, const DenseTensor& x, const phi::IntArray& dims, phi::DataType, bool,
               DenseTensor* out) {
  const Call call("sum", context, out);
  const auto reduced = reduced_axes(dims.GetData(), x.dims().size());
  if (out->dtype() == phi::DataType::INT64) {
    const auto found = sums<T, int64_t>(x, reduced);
    std::copy(found.begin(), found.end(), context.template Alloc<int64_t>(out));
  } else {
    const auto found = sums<T, double>(x, reduced);
    std::copy(found.begin(), found.end(), context.template Alloc<T>(out));
  }
}

template <typename T, typename Context>
void MeanKernel(const Context& context, const DenseTensor& x, const phi::IntArray& dims, bool, DenseTensor* out) {
  const Call call("mean", context, out);
  const auto found = sums<T, double>(x, reduced_axes(dims.GetData(), x.dims().size()));
  const double count = static_cast<double>(x.numel()) / static_cast<double>(found.size());
  std::transform(found.begin(), found.end(), context.template Alloc<T>(out), [=](double sum) { return sum / count; });
}

template <typename T, typename Context>
void SoftmaxKernel(const Context& context, const DenseTensor& x, int axis, DenseTensor* out) {
  const Call call("softmax", context, out);
  T* found = context.template Alloc<T>(out);
  const T* values = x.data<T>();
  const Extents extents = extents_of(x);
  const size_t at = extents.empty() ? 0 : axis_of(axis, extents.size());
  const int64_t length = extents.empty() ? 1 : extents[at];
  const int64_t step = extents.empty() ? 1 : product(extents, at + 1, extents.size());
  for (int64_t start = 0; start < x.numel(); start += length * step) {
    for (int64_t inner = start; inner < start + step; ++inner) {
      T largest = -std::numeric_limits<T>::infinity();
      for (int64_t i = 0; i < length; ++i) largest = std::max(largest, values[inner + i * step]);
      double sum = 0;
      for (int64_t i = 0; i < length; ++i) {
        sum += found[inner + i * step] = std::exp(values[inner + i * step] - largest);
      }
      for (int64_t i = 0; i < length; ++i) found[inner + i * step] = static_cast<T>(found[inner + i * step] / sum);
    }
  }
}

template <typename T, typename Context>
void LayerNormKernel(const Context& context, const DenseTensor& x, const paddle::optional<DenseTensor>& scale,
                     const paddle::optional<DenseTensor>& bias, float epsilon, int begin, DenseTensor* out,
                     DenseTensor* mean, DenseTensor* variance) {
  const Call call("layer_norm", context, out);
  const Extents extents = extents_of(x);
  const int64_t rows = product(extents, 0, begin), length = product(extents, begin, extents.size());
  const T* values = x.data<T>();
  T* found = context.template Alloc<T>(out);
  T* means = mean == nullptr ? nullptr : context.template Alloc<T>(mean);
  T* variances = variance == nullptr ? nullptr : context.template Alloc<T>(variance);
  const T* factor = scale ? scale->data<T>() : nullptr;
  const T* shift = bias ? bias->data<T>() : nullptr;
  for (int64_t row = 0; row < rows; ++row) {
    const T* line = values + row * length;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < length; ++i) sum += line[i];
    const double middle = sum / length;
    for (int64_t i = 0; i < length; ++i) squares += (line[i] - middle) * (line[i] - middle);
    const double spread = squares / length, unit = 1 / std::sqrt(spread + epsilon);
    for (int64_t i = 0; i < length; ++i) {
      const double normal = (line[i] - middle) * unit;
      found[row * length + i] = static_cast<T>(normal * (factor ? factor[i] : T(1)) + (shift ? shift[i] : T(0)));
    }
    if (means != nullptr) means[row] = static_cast<T>(middle);
    if (variances != nullptr) variances[row] = static_cast<T>(spread);
  }
}

}  // namespace simulator

#define NUMBERS float, int64_t, int32_t
#define REGISTER(kernel, Name, ...) \
  PD_REGISTER_PLUGIN_KERNEL(kernel, npu, ALL_LAYOUT, simulator::Name##Kernel, __VA_ARGS__)

REGISTER(add, Add, NUMBERS) {}
REGISTER(subtract, Subtract, NUMBERS) {}
REGISTER(multiply, Multiply, NUMBERS) {}
REGISTER(divide, Divide, float) {}
REGISTER(maximum, Maximum, NUMBERS) {}
REGISTER(minimum, Minimum, NUMBERS) {}

REGISTER(greater_than, GreaterThan, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(greater_equal, GreaterEqual, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(less_than, LessThan, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(less_equal, LessEqual, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(equal, Equal, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(not_equal, NotEqual, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }

REGISTER(relu, Relu, float) {}
REGISTER(relu6, Relu6, float) {}
REGISTER(sigmoid, Sigmoid, float) {}
REGISTER(silu, Silu, float) {}
REGISTER(hardswish, Hardswish, float) {}
REGISTER(tanh, Tanh, float) {}
REGISTER(exp, Exp, float) {}
REGISTER(log, Log, float) {}
REGISTER(sqrt, Sqrt, float) {}
REGISTER(rsqrt, Rsqrt, float) {}
REGISTER(square, Square, float) {}
REGISTER(sin, Sin, float) {}
REGISTER(cos, Cos, float) {}
REGISTER(abs, Abs, float) {}
REGISTER(gelu, Gelu, float) {}

REGISTER(scale, Scale, NUMBERS) {}
REGISTER(clip, Clip, NUMBERS) {}
REGISTER(pow, Pow, float) {}
REGISTER(cast, Cast, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED); }
REGISTER(sum, Sum, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED); }
REGISTER(mean, Mean, float) {}
REGISTER(softmax, Softmax, float) {}
REGISTER(layer_norm, LayerNorm, float) {}
