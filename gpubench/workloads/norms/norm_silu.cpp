// y = silu(group_norm(x)) of gpubench::norm_silu on a CPU, and its gradient: x is read twice and y written once, with
// nothing between. For the backward pass x alone is kept; moments and sigmoids are computed again.
//
// Tensors are [batch, channels, *sides], channels outermost or innermost in memory; the result has the layout of x.
// Mean and variance are computed chunk by chunk in the precision of the arithmetic, and the chunks are put together in
// double precision (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
// Variances", 1979). bfloat16 and float16 are computed in float: only what is loaded and stored is half.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "norm_silu.h"

namespace {

constexpr int64_t kRows = 64;             // pixels of a chunk where channels are innermost
constexpr int64_t kWorthAThread = 32768;  // elements

struct Shape {
  int64_t batch, channels, pixels, groups;

  int64_t width() const { return channels / groups; }
  int64_t chunks() const { return (pixels + kRows - 1) / kRows; }  // where channels are innermost
  int64_t rows(int64_t chunk) const { return std::min(kRows, pixels - chunk * kRows); }
};

template <typename T>
void forward_outermost(const T* x, T* y, const at::opmath_type<T>* weight, const at::opmath_type<T>* bias, Shape shape,
                       double eps) {
  using acc_t = at::opmath_type<T>;
  const int64_t width = shape.width(), pixels = shape.pixels;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (width * pixels));
  at::parallel_for(0, shape.batch * shape.groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const Moments moments = moments_of(x + unit * width * pixels, width * pixels);
      for (int64_t c = 0; c < width; ++c) {
        const int64_t channel = unit % shape.groups * width + c;
        const Affine<acc_t> affine(moments, eps, weight[channel], bias[channel]);
        const T* __restrict from = x + (unit * width + c) * pixels;
        T* __restrict to = y + (unit * width + c) * pixels;
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) {
          const acc_t z = load(from[i]) * affine.scale + affine.shift;
          store(to[i], z * sigmoid(z));
        }
      }
    }
  });
}

template <typename T>
void backward_outermost(const T* grad, const T* x, T* grad_x, const at::opmath_type<T>* weight,
                        const at::opmath_type<T>* bias, double* sums_d, double* sums_dn, Shape shape, double eps) {
  using acc_t = at::opmath_type<T>;
  const int64_t width = shape.width(), pixels = shape.pixels;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (width * pixels));
  at::parallel_for(0, shape.batch * shape.groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const Moments moments = moments_of(x + unit * width * pixels, width * pixels);
      const acc_t mean = static_cast<acc_t>(moments.mean);
      double group_d = 0, group_dn = 0;
      for (int64_t c = 0; c < width; ++c) {
        const int64_t channel = unit % shape.groups * width + c, row = unit * width + c;
        const Affine<acc_t> affine(moments, eps, weight[channel], bias[channel]);
        double sum_d = 0, sum_dn = 0;
        for (int64_t first = 0; first < pixels; first += kChunk) {
          const int64_t n = std::min(kChunk, pixels - first);
          const T* __restrict from = x + row * pixels + first;
          const T* __restrict slope = grad + row * pixels + first;
          acc_t part_d = 0, part_dn = 0;
#pragma omp simd reduction(+ : part_d, part_dn)
          for (int64_t i = 0; i < n; ++i) {
            const acc_t value = load(from[i]);
            const acc_t d = load(slope[i]) * silu_slope(value * affine.scale + affine.shift);
            part_d += d;
            part_dn += d * (value - mean);
          }
          sum_d += part_d;
          sum_dn += part_dn;
        }
        sums_d[row] = sum_d;
        sums_dn[row] = sum_dn * moments.inverse(eps);
        group_d += sums_d[row] * weight[channel];
        group_dn += sums_dn[row] * weight[channel];
      }
      const Slope<acc_t> slope_x(moments, eps, group_d, group_dn);
      for (int64_t c = 0; c < width; ++c) {
        const int64_t channel = unit % shape.groups * width + c, row = unit * width + c;
        const Affine<acc_t> affine(moments, eps, weight[channel], bias[channel]);
        const T* __restrict from = x + row * pixels;
        const T* __restrict slope = grad + row * pixels;
        T* __restrict to = grad_x + row * pixels;
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) {
          const acc_t value = load(from[i]);
          const acc_t d = load(slope[i]) * silu_slope(value * affine.scale + affine.shift);
          store(to[i], affine.scale * d + (slope_x.tilt * value + slope_x.lift));
        }
      }
    }
  });
}

// Calls work(sample, chunk, first pixel of all, rows) for each chunk of pixels.
template <typename Work>
void over_chunks(Shape shape, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (kRows * shape.channels));
  at::parallel_for(0, shape.batch * shape.chunks(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t sample = unit / shape.chunks(), chunk = unit % shape.chunks();
      work(sample, chunk, sample * shape.pixels + chunk * kRows, shape.rows(chunk));
    }
  });
}

template <typename T>
std::vector<Moments> moments_innermost(const T* x, Shape shape) {
  using acc_t = at::opmath_type<T>;
  const int64_t channels = shape.channels, chunks = shape.chunks();
  // Of each chunk and channel: the mean, and the squares of what differs from it.
  std::vector<acc_t> means(shape.batch * chunks * channels), squares(shape.batch * chunks * channels);
  over_chunks(shape, [&](int64_t sample, int64_t chunk, int64_t first, int64_t rows) {
    acc_t* __restrict mean = means.data() + (sample * chunks + chunk) * channels;
    acc_t* __restrict square = squares.data() + (sample * chunks + chunk) * channels;
    for (int64_t row = first; row < first + rows; ++row) {
      const T* __restrict from = x + row * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) mean[c] += load(from[c]);
    }
    const acc_t share = acc_t(1) / static_cast<acc_t>(rows);
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) mean[c] *= share;
    for (int64_t row = first; row < first + rows; ++row) {
      const T* __restrict from = x + row * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const acc_t apart = load(from[c]) - mean[c];
        square[c] += apart * apart;
      }
    }
  });
  std::vector<Moments> found(shape.batch * shape.groups);
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t here = (sample * chunks + chunk) * channels;
      const double rows = static_cast<double>(shape.rows(chunk));
      for (int64_t c = 0; c < channels; ++c) {
        found[sample * shape.groups + c / shape.width()].add(rows, means[here + c], squares[here + c]);
      }
    }
  }
  return found;
}

template <typename acc_t>
struct Affines {  // of all channels of all samples
  std::vector<acc_t> scale, shift;

  Affines(const std::vector<Moments>& moments, const acc_t* weight, const acc_t* bias, Shape shape, double eps) {
    for (int64_t sample = 0; sample < shape.batch; ++sample) {
      for (int64_t c = 0; c < shape.channels; ++c) {
        const Affine<acc_t> one(moments[sample * shape.groups + c / shape.width()], eps, weight[c], bias[c]);
        scale.push_back(one.scale);
        shift.push_back(one.shift);
      }
    }
  }
};

template <typename T>
void forward_innermost(const T* x, T* y, const at::opmath_type<T>* weight, const at::opmath_type<T>* bias, Shape shape,
                       double eps) {
  using acc_t = at::opmath_type<T>;
  const int64_t channels = shape.channels;
  const Affines<acc_t> affines(moments_innermost(x, shape), weight, bias, shape, eps);
  over_chunks(shape, [&](int64_t sample, int64_t, int64_t first, int64_t rows) {
    const acc_t* __restrict scale = affines.scale.data() + sample * channels;
    const acc_t* __restrict shift = affines.shift.data() + sample * channels;
    for (int64_t row = first; row < first + rows; ++row) {
      const T* __restrict from = x + row * channels;
      T* __restrict to = y + row * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const acc_t z = load(from[c]) * scale[c] + shift[c];
        store(to[c], z * sigmoid(z));
      }
    }
  });
}

template <typename T>
void backward_innermost(const T* grad, const T* x, T* grad_x, const at::opmath_type<T>* weight,
                        const at::opmath_type<T>* bias, double* sums_d, double* sums_dn, Shape shape, double eps) {
  using acc_t = at::opmath_type<T>;
  const int64_t channels = shape.channels, chunks = shape.chunks(), groups = shape.groups, width = shape.width();
  const std::vector<Moments> moments = moments_innermost(x, shape);
  const Affines<acc_t> affines(moments, weight, bias, shape, eps);
  std::vector<acc_t> means(shape.batch * channels);  // of each channel's group
  for (int64_t place = 0; place < shape.batch * channels; ++place) {
    means[place] = static_cast<acc_t>(moments[place / channels * groups + place % channels / width].mean);
  }
  std::vector<acc_t> parts_d(shape.batch * chunks * channels), parts_dn(shape.batch * chunks * channels);
  over_chunks(shape, [&](int64_t sample, int64_t chunk, int64_t first, int64_t rows) {
    const acc_t* __restrict scale = affines.scale.data() + sample * channels;
    const acc_t* __restrict shift = affines.shift.data() + sample * channels;
    const acc_t* __restrict mean = means.data() + sample * channels;
    acc_t* __restrict part_d = parts_d.data() + (sample * chunks + chunk) * channels;
    acc_t* __restrict part_dn = parts_dn.data() + (sample * chunks + chunk) * channels;
    for (int64_t row = first; row < first + rows; ++row) {
      const T* __restrict from = x + row * channels;
      const T* __restrict slope = grad + row * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const acc_t value = load(from[c]);
        const acc_t d = load(slope[c]) * silu_slope(value * scale[c] + shift[c]);
        part_d[c] += d;
        part_dn[c] += d * (value - mean[c]);
      }
    }
  });
  std::vector<acc_t> tilts, lifts;  // of each channel
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    for (int64_t g = 0; g < groups; ++g) {
      const Moments& of_group = moments[sample * groups + g];
      double group_d = 0, group_dn = 0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        double sum_d = 0, sum_dn = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          sum_d += parts_d[(sample * chunks + chunk) * channels + c];
          sum_dn += parts_dn[(sample * chunks + chunk) * channels + c];
        }
        sums_d[sample * channels + c] = sum_d;
        sums_dn[sample * channels + c] = sum_dn * of_group.inverse(eps);
        group_d += sum_d * weight[c];
        group_dn += sum_dn * of_group.inverse(eps) * weight[c];
      }
      const Slope<acc_t> slope_x(of_group, eps, group_d, group_dn);
      tilts.insert(tilts.end(), width, slope_x.tilt);
      lifts.insert(lifts.end(), width, slope_x.lift);
    }
  }
  over_chunks(shape, [&](int64_t sample, int64_t, int64_t first, int64_t rows) {
    const acc_t* __restrict scale = affines.scale.data() + sample * channels;
    const acc_t* __restrict shift = affines.shift.data() + sample * channels;
    const acc_t* __restrict tilt = tilts.data() + sample * channels;
    const acc_t* __restrict lift = lifts.data() + sample * channels;
    for (int64_t row = first; row < first + rows; ++row) {
      const T* __restrict from = x + row * channels;
      const T* __restrict slope = grad + row * channels;
      T* __restrict to = grad_x + row * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const acc_t value = load(from[c]);
        const acc_t d = load(slope[c]) * silu_slope(value * scale[c] + shift[c]);
        store(to[c], scale[c] * d + (tilt[c] * value + lift[c]));
      }
    }
  });
}

bool is_innermost(const at::Tensor& x) {
  if (x.is_contiguous()) return false;
  return (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) ||
         (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d));
}

Shape shape_of(const at::Tensor& x, int64_t groups) {
  return {x.size(0), x.size(1), x.numel() / (x.size(0) * x.size(1)), groups};
}

at::Tensor forward(const at::Tensor& x_, const at::Tensor& weight_, const at::Tensor& bias_, int64_t groups,
                   double eps) {
  TORCH_CHECK(x_.dim() >= 2 && groups > 0 && x_.size(1) % groups == 0,
              "norm_silu takes x [B, C, *S] whose channels the groups divide, not ", x_.sizes(), " and ", groups);
  TORCH_CHECK(weight_.dim() == 1 && bias_.dim() == 1 && weight_.size(0) == x_.size(1) && bias_.size(0) == x_.size(1),
              "norm_silu takes weight and bias [C] of x ", x_.sizes(), ", not ", weight_.sizes(), bias_.sizes());
  const bool innermost = is_innermost(x_);
  const at::Tensor x = innermost ? x_ : x_.contiguous();
  at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "norm_silu", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto wide = c10::CppTypeToScalarType<acc_t>::value;
    const at::Tensor weight = weight_.to(wide).contiguous(), bias = bias_.to(wide).contiguous();
    const auto normalise = innermost ? &forward_innermost<scalar_t> : &forward_outermost<scalar_t>;
    normalise(x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), weight.const_data_ptr<acc_t>(),
              bias.const_data_ptr<acc_t>(), shape_of(x, groups), eps);
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_, const at::Tensor& x_,
                                                        const at::Tensor& weight_, const at::Tensor& bias_,
                                                        int64_t groups, double eps) {
  const bool innermost = is_innermost(x_);
  const at::Tensor x = innermost ? x_ : x_.contiguous();
  const at::Tensor grad = grad_.to(x.scalar_type()).contiguous(
      !innermost ? at::MemoryFormat::Contiguous
                 : x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d);
  at::Tensor grad_x = at::empty_like(x);
  at::Tensor sums = at::zeros({2, x.size(0), x.size(1)}, x.options().dtype(at::kDouble));
  if (x.numel() != 0) {
    double* sums_d = sums.mutable_data_ptr<double>();
    double* sums_dn = sums_d + x.size(0) * x.size(1);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "norm_silu_backward", [&] {
      using acc_t = at::opmath_type<scalar_t>;
      const auto wide = c10::CppTypeToScalarType<acc_t>::value;
      const at::Tensor weight = weight_.to(wide).contiguous(), bias = bias_.to(wide).contiguous();
      const auto differentiate = innermost ? &backward_innermost<scalar_t> : &backward_outermost<scalar_t>;
      differentiate(grad.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), grad_x.mutable_data_ptr<scalar_t>(),
                    weight.const_data_ptr<acc_t>(), bias.const_data_ptr<acc_t>(), sums_d, sums_dn,
                    shape_of(x, groups), eps);
    });
  }
  const at::Tensor of_all = sums.sum(1);  // over the batch
  return {grad_x, of_all[1].to(weight_.scalar_type()), of_all[0].to(bias_.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(gpubench, CPU, library) {
  library.impl("norm_silu", &forward);
  library.impl("norm_silu_backward", &backward);
}
