// The recurrence h[t] = a[t] * h[t-1] + b[t] of gpubench::linear_scan on a CPU, and its gradient.
//
// Tensors are [batch, time, channels]; `start`, h[-1], is [batch, channels]. Time is walked one step after the other,
// channels by SIMD, and blocks of channels by OpenMP, which at::parallel_for is. bfloat16 and float16 are computed in
// float: only what is loaded and stored is half.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace {

constexpr int64_t kNarrowest = 64;        // channels of a block: four cache lines of float
constexpr int64_t kWidest = 512;          // of which the state stays in the first cache
constexpr int64_t kWorthAThread = 32768;  // elements

struct Block {
  int64_t first;    // element of [batch, time, channels]: its first channel at time 0
  int64_t channel;  // element of [batch, channels]: its first channel
  int64_t width;    // channels
};

template <typename Work>
void over_blocks(const at::Tensor& like, const Work& work) {
  const int64_t batch = like.size(0), time = like.size(1), channels = like.size(2);
  if (like.numel() == 0) return;
  const int64_t share = batch * channels / at::get_num_threads();
  const int64_t width = std::clamp(share / kNarrowest * kNarrowest, kNarrowest, kWidest);
  const int64_t blocks = (channels + width - 1) / width;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (time * width));
  at::parallel_for(0, batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t row = index / blocks, channel = index % blocks * width;
      work(Block{row * time * channels + channel, row * channels + channel, std::min(width, channels - channel)});
    }
  });
}

template <typename T>
void forward_block(Block block, int64_t time, int64_t channels, const T* a, const T* b, const T* start, T* h) {
  using acc_t = at::opmath_type<T>;
  acc_t state[kWidest];
  for (int64_t j = 0; j < block.width; ++j) state[j] = static_cast<acc_t>(start[block.channel + j]);
  for (int64_t t = 0; t < time; ++t) {
    const int64_t here = block.first + t * channels;
    const T* __restrict a_t = a + here;
    const T* __restrict b_t = b + here;
    T* __restrict h_t = h + here;
#pragma omp simd
    for (int64_t j = 0; j < block.width; ++j) {
      state[j] = static_cast<acc_t>(a_t[j]) * state[j] + static_cast<acc_t>(b_t[j]);
      h_t[j] = static_cast<T>(state[j]);
    }
  }
}

// The same recurrence backwards in time: with g[t] = grad[t] + a[t+1] * g[t+1], the gradients are g[t] of b[t],
// g[t] * h[t-1] of a[t], and a[0] * g[0] of the start.
template <typename T>
void backward_block(Block block, int64_t time, int64_t channels, const T* grad, const T* a, const T* h, const T* start,
                    T* grad_a, T* grad_b, T* grad_start) {
  using acc_t = at::opmath_type<T>;
  acc_t carried[kWidest] = {};  // a[t+1] * g[t+1]
  for (int64_t t = time - 1; t >= 0; --t) {
    const int64_t here = block.first + t * channels;
    const T* __restrict a_t = a + here;
    const T* __restrict grad_t = grad + here;
    const T* __restrict before = t ? h + here - channels : start + block.channel;
    T* __restrict grad_a_t = grad_a + here;
    T* __restrict grad_b_t = grad_b + here;
#pragma omp simd
    for (int64_t j = 0; j < block.width; ++j) {
      const acc_t g = static_cast<acc_t>(grad_t[j]) + carried[j];
      grad_b_t[j] = static_cast<T>(g);
      grad_a_t[j] = static_cast<T>(g * static_cast<acc_t>(before[j]));
      carried[j] = static_cast<acc_t>(a_t[j]) * g;
    }
  }
  for (int64_t j = 0; j < block.width; ++j) grad_start[block.channel + j] = static_cast<T>(carried[j]);
}

at::Tensor forward(const at::Tensor& a_, const at::Tensor& b_, const at::Tensor& start_) {
  TORCH_CHECK(b_.dim() == 3 && a_.sizes() == b_.sizes() && start_.dim() == 2 && start_.size(0) == b_.size(0) &&
                  start_.size(1) == b_.size(2),
              "linear_scan takes a and b [B, T, C] and start [B, C], not ", a_.sizes(), b_.sizes(), start_.sizes());
  TORCH_CHECK(a_.scalar_type() == b_.scalar_type() && start_.scalar_type() == b_.scalar_type(),
              "linear_scan takes tensors of one dtype");
  const at::Tensor a = a_.contiguous(), b = b_.contiguous(), start = start_.contiguous();
  at::Tensor h = at::empty_like(b);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, b.scalar_type(), "linear_scan", [&] {
    over_blocks(b, [&](Block block) {
      forward_block(block, b.size(1), b.size(2), a.const_data_ptr<scalar_t>(), b.const_data_ptr<scalar_t>(),
                    start.const_data_ptr<scalar_t>(), h.mutable_data_ptr<scalar_t>());
    });
  });
  return h;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_, const at::Tensor& a_, const at::Tensor& h_, const at::Tensor& start_) {
  const at::Tensor grad = grad_.contiguous(), a = a_.contiguous(), h = h_.contiguous(), start = start_.contiguous();
  at::Tensor grad_a = at::empty_like(a), grad_b = at::empty_like(a), grad_start = at::empty_like(start);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, a.scalar_type(), "linear_scan_backward", [&] {
    over_blocks(a, [&](Block block) {
      backward_block(block, a.size(1), a.size(2), grad.const_data_ptr<scalar_t>(), a.const_data_ptr<scalar_t>(),
                     h.const_data_ptr<scalar_t>(), start.const_data_ptr<scalar_t>(),
                     grad_a.mutable_data_ptr<scalar_t>(), grad_b.mutable_data_ptr<scalar_t>(),
                     grad_start.mutable_data_ptr<scalar_t>());
    });
  });
  return {grad_a, grad_b, grad_start};
}

}  // namespace

TORCH_LIBRARY_IMPL(gpubench, CPU, library) {
  library.impl("linear_scan", &forward);
  library.impl("linear_scan_backward", &backward);
}
