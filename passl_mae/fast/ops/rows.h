// Row-wise and element-wise pieces: exp, GELU, softmax, LayerNorm, sums over rows.
//
// Plain loops that the compiler vectorises. No -ffast-math: NaN and infinity have to come out at
// the loss, where training looks for them. Comparisons are written so that NaN passes them.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fast {

constexpr int64_t kChunk = 64;  // rows summed at once: fixed, so sums do not depend on threads

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// e^x to about 1 ulp for x in [-87, 88], clamped outside (Cephes, expf).
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * bits_as<float>((bits_as<uint32_t>(shifted) << 23) + (127u << 23));  // y * 2^n
}

// The normal distribution function, (1 + erf(x / sqrt 2)) / 2, to 1e-7 (rational, as in Eigen).
inline float normal_cdf(float x) {
  float z = x * 0.70710678118f;
  z = z < -4.0f ? -4.0f : z;
  z = z > 4.0f ? 4.0f : z;
  const float z2 = z * z;
  float p = -2.72614225801306e-10f;
  p = p * z2 + 2.77068142495902e-08f;
  p = p * z2 + -2.10102402082508e-06f;
  p = p * z2 + -5.69250639462346e-05f;
  p = p * z2 + -7.34990630326855e-04f;
  p = p * z2 + -2.95459980854025e-03f;
  p = p * z2 + -1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * z2 + -2.13374055278905e-04f;
  q = q * z2 + -1.68282697438203e-03f;
  q = q * z2 + -7.37332916720468e-03f;
  q = q * z2 + -1.42647390514189e-02f;
  return 0.5f + 0.5f * (z * p / q);
}

// y = GELU(x), n elements.
inline void gelu(int64_t n, const float* x, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * normal_cdf(x[i]);
}

// From x and the gradient of GELU(x), in place: grad becomes that of x; y = GELU(x) again.
inline void gelu_backward(int64_t n, const float* x, float* grad, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float cdf = normal_cdf(x[i]), density = 0.39894228f * exp_of(-0.5f * x[i] * x[i]);
    y[i] = x[i] * cdf;
    grad[i] *= cdf + x[i] * density;
  }
}

// row = softmax(scale * row), in place.
inline void softmax(int64_t n, float scale, float* row) {
  float top = row[0];
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = row[i] > top ? row[i] : top;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    row[i] = exp_of((row[i] - top) * scale);
    sum += row[i];
  }
  const float factor = 1.0f / sum;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

// grad = the gradient before softmax(scale * .), in place, from the probabilities p.
inline void softmax_backward(int64_t n, float scale, const float* p, float* grad) {
  float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i) dot += p[i] * grad[i];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) grad[i] = scale * p[i] * (grad[i] - dot);
}

inline void add_to(int64_t n, const float* x, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

// out [cols] = sums over the rows of x [rows, cols], chunk by chunk: precise and in one order.
inline void sum_rows(int64_t rows, int64_t cols, const float* x, float* out, int threads) {
  constexpr int64_t width = 64;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t j = 0; j < cols; j += width) {
    const int64_t w = std::min(width, cols - j);
    float total[width] = {};
    for (int64_t i0 = 0; i0 < rows; i0 += kChunk) {
      float part[width] = {};
      for (int64_t i = i0; i < std::min(rows, i0 + kChunk); ++i) {
        const float* row = x + i * cols + j;
        if (w == width)
          for (int64_t l = 0; l < width; ++l) part[l] += row[l];
        else
          for (int64_t l = 0; l < w; ++l) part[l] += row[l];
      }
      for (int64_t l = 0; l < width; ++l) total[l] += part[l];
    }
    std::copy(total, total + w, out + j);
  }
}

// y = (x - mean) * rstd * scale + bias over rows of d; keeps mean and rstd [rows].
inline void layer_norm(int64_t rows, int64_t d, float epsilon, const float* x, const float* scale,
                       const float* bias, float* y, float* mean, float* rstd, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const float* in = x + i * d;
    float* out = y + i * d;
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; ++j) sum += in[j];
    const float mu = sum / d;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < d; ++j) squares += (in[j] - mu) * (in[j] - mu);
    const float r = 1.0f / std::sqrt(squares / d + epsilon);
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) out[j] = (in[j] - mu) * r * scale[j] + bias[j];
    mean[i] = mu;
    rstd[i] = r;
  }
}

// Gradients of layer_norm: dx [rows, d], dscale [d], dbias [d].
inline void layer_norm_backward(int64_t rows, int64_t d, const float* x, const float* scale,
                                const float* mean, const float* rstd, const float* dy, float* dx,
                                float* dscale, float* dbias, int threads) {
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  std::vector<float> parts(2 * chunks * d, 0.0f);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    float* part_scale = parts.data() + 2 * chunk * d;
    float* part_bias = part_scale + d;
    for (int64_t i = chunk * kChunk; i < std::min(rows, (chunk + 1) * kChunk); ++i) {
      const float *in = x + i * d, *g = dy + i * d;
      const float mu = mean[i], r = rstd[i];
      float* out = dx + i * d;
      float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t j = 0; j < d; ++j) {
        const float normed = (in[j] - mu) * r, scaled = g[j] * scale[j];
        sum += scaled;
        dot += scaled * normed;
        part_scale[j] += g[j] * normed;
        part_bias[j] += g[j];
      }
      sum /= d;
      dot /= d;
#pragma omp simd
      for (int64_t j = 0; j < d; ++j)
        out[j] = r * (g[j] * scale[j] - sum - (in[j] - mu) * r * dot);
    }
  }
  std::fill(dscale, dscale + d, 0.0f);
  std::fill(dbias, dbias + d, 0.0f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    add_to(d, parts.data() + 2 * chunk * d, dscale);
    add_to(d, parts.data() + 2 * chunk * d + d, dbias);
  }
}

}  // namespace fast
