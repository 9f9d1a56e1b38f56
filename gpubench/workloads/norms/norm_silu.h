// What gpubench::norm_silu computes for a few numbers: moments, sigmoids, and what a channel's values are multiplied by.

#pragma once

#include <ATen/OpMathType.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t kChunk = 2048;          // elements, which stay in the first cache

template <typename T>
inline at::opmath_type<T> load(T value) {
  return static_cast<at::opmath_type<T>>(value);
}

// torch's own conversions of bfloat16 have branches, of which the compiler makes no SIMD.
inline float load(c10::BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

template <typename T>
inline void store(T& to, at::opmath_type<T> value) {
  to = static_cast<T>(value);
}

inline void store(c10::BFloat16& to, float value) {  // to the nearest, and to the even one of two
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  to.x = static_cast<uint16_t>(value == value ? rounded : 0x7FC0);
}

struct Moments {
  double count = 0, mean = 0, squares = 0;  // squares: of what differs from the mean

  void add(double n, double other_mean, double other_squares) {
    const double together = count + n, apart = other_mean - mean;
    mean += apart * (n / together);
    squares += other_squares + apart * apart * (count * n / together);
    count = together;
  }

  double inverse(double eps) const { return 1.0 / std::sqrt(squares / count + eps); }  // of the standard deviation
};

template <typename T>
Moments moments_of(const T* x, int64_t count) {
  using acc_t = at::opmath_type<T>;
  Moments all;
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    const T* __restrict part = x + first;
    acc_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += load(part[i]);
    const acc_t mean = sum / static_cast<acc_t>(n);
    acc_t squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; ++i) {
      const acc_t apart = load(part[i]) - mean;
      squares += apart * apart;
    }
    all.add(static_cast<double>(n), mean, squares);
  }
  return all;
}

// exp(x) for x between -87 and 87: 2^n * exp(r) with |r| <= log(2) / 2, and exp(r) by its series up to r^7, which is
// off by at most 6e-9. No function call and no branch, so that the compiler makes SIMD of it.
inline float exp_of(float x) {
  constexpr float kLog2E = 1.442695041f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRounds = 12582912.0f;  // 1.5 * 2^23: added, it leaves no bits for fractions
  constexpr int32_t kRoundsBits = 0x4B400000;
  const float shifted = x * kLog2E + kRounds;
  const float n = shifted - kRounds;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - kRoundsBits + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return series * power;
}

inline float sigmoid(float z) {
  float t = -z;
  t = t < -87.0f ? -87.0f : t;
  t = t > 87.0f ? 87.0f : t;
  return 1.0f / (1.0f + exp_of(t));
}

inline double sigmoid(double z) { return 1.0 / (1.0 + std::exp(-z)); }

template <typename acc_t>
inline acc_t silu_slope(acc_t z) {
  const acc_t s = sigmoid(z);
  return s * (acc_t(1) + z * (acc_t(1) - s));
}

template <typename acc_t>
struct Affine {  // of one channel of one sample: z = scale * x + shift
  acc_t scale, shift;

  Affine(const Moments& moments, double eps, acc_t weight, acc_t bias) {
    const double factor = moments.inverse(eps) * weight;
    scale = static_cast<acc_t>(factor);
    shift = static_cast<acc_t>(bias - moments.mean * factor);
  }
};

// With d = grad * silu'(z) and n = (x - mean) / deviation, the gradients are sum(d) of a bias, sum(d * n) of a weight,
// and of x: (weight * d - mean(weight * d) - n * mean(weight * d * n)) / deviation, means over the group.
template <typename acc_t>
struct Slope {  // of x: scale * d + tilt * x + lift
  acc_t tilt, lift;

  Slope(const Moments& moments, double eps, double sum_d, double sum_dn) {  // sums over the group of weight * d (* n)
    const double inverse = moments.inverse(eps);
    const double steep = -inverse * inverse * sum_dn / moments.count;
    tilt = static_cast<acc_t>(steep);
    lift = static_cast<acc_t>(-steep * moments.mean - inverse * sum_d / moments.count);
  }
};

}  // namespace
