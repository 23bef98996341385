// Depthwise convolution: every channel [height, width] with a kernel of its own.
//
// A plane is laid out with zeros around it, in rows of `pitch`; then a tap of the kernel is a shift
// of the whole plane by a fixed number of floats, and the planes of small images (1 x 1 to 16 x 16),
// where a library's product per channel costs more than its numbers, are a few long loops. A stride
// leaves out places of the result with stride 1.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace fast {

struct DepthwiseShape {
  int64_t batch, channels, height, width, kernel, stride, pad_top, pad_left;

  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }
  int64_t pitch() const { return width + kernel - 1; }
  int64_t area() const { return height * pitch(); }  // of a result, with its unused columns
  // The last lanes read past a plane.
  int64_t padded() const { return (height + kernel - 1) * pitch() + kernel + 2 * kLanes; }
  int64_t result() const { return area() + 2 * kLanes; }
  int threads() const {
    const double taps = double(kernel) * kernel;
    return threads_for(2.0 * taps * batch * channels * height * width);
  }
};

// The taps that meet the plane at all: for 1 x 1 the middle one.
struct Taps {
  int64_t top, bottom, left, right;
  Taps(const DepthwiseShape& s, int64_t pad_top, int64_t pad_left)
      : top(std::max<int64_t>(0, pad_top - s.height + 1)),
        bottom(std::min(s.kernel, pad_top + s.height)),
        left(std::max<int64_t>(0, pad_left - s.width + 1)),
        right(std::min(s.kernel, pad_left + s.width)) {}
};

inline Lanes lanes_at(const float* p) { return *reinterpret_cast<const Lanes*>(p); }

// out[i] = sum over taps of w[tap] * in[i + the tap's shift], for i in [0, area).
inline void correlate(const DepthwiseShape& s, const Taps& taps, const float* in, const float* w,
                      float* out) {
  for (int64_t i = 0; i < s.area(); i += 2 * kLanes) {
    Lanes first = {}, second = {};
    for (int64_t y = taps.top; y < taps.bottom; ++y) {
      for (int64_t x = taps.left; x < taps.right; ++x) {
        const float* const from = in + i + y * s.pitch() + x;
        const float weight = w[y * s.kernel + x];
        first += weight * lanes_at(from);
        second += weight * lanes_at(from + kLanes);
      }
    }
    *reinterpret_cast<Lanes*>(out + i) = first;
    *reinterpret_cast<Lanes*>(out + i + kLanes) = second;
  }
}

// A plane [rows, columns] into zeroed memory, from (top, left) on, with gaps of `stride`.
inline void spread(const float* plane, int64_t rows, int64_t columns, int64_t stride, int64_t pitch,
                   int64_t top, int64_t left, float* to) {
  for (int64_t i = 0; i < rows; ++i) {
    float* const row = to + (top + i * stride) * pitch + left;
    if (stride == 1) {
      std::memcpy(row, plane + i * columns, columns * sizeof(float));
    } else {
      for (int64_t j = 0; j < columns; ++j) row[j * stride] = plane[i * columns + j];
    }
  }
}

// The inverse: every `stride`-th place of the rows of `from`.
inline void pick(const float* from, int64_t rows, int64_t columns, int64_t stride, int64_t pitch,
                 float* plane) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* const row = from + i * stride * pitch;
    for (int64_t j = 0; j < columns; ++j) plane[i * columns + j] = row[j * stride];
  }
}

// x [batch, channels, height, width] and w [channels, kernel, kernel] to
// y [batch, channels, out_height, out_width].
inline void depthwise(const DepthwiseShape& s, const float* x, const float* w, float* y) {
  const int64_t in_size = s.height * s.width, out_size = s.out_height() * s.out_width();
  const Taps taps(s, s.pad_top, s.pad_left);
#pragma omp parallel num_threads(s.threads())
  {
    float* const padded = scratch<5>(s.padded());
    float* const sums = scratch<6>(s.result());
    std::fill(padded, padded + s.padded(), 0.0f);
#pragma omp for
    for (int64_t plane = 0; plane < s.batch * s.channels; ++plane) {
      spread(x + plane * in_size, s.height, s.width, 1, s.pitch(), s.pad_top, s.pad_left, padded);
      correlate(s, taps, padded, w + plane % s.channels * s.kernel * s.kernel, sums);
      pick(sums, s.out_height(), s.out_width(), s.stride, s.pitch(), y + plane * out_size);
    }
  }
}

// Gradients of x and w from that of y. A channel is summed over the batch by one thread, in order,
// so the bits do not depend on the number of threads.
inline void depthwise_backward(const DepthwiseShape& s, const float* x, const float* w,
                               const float* dy, float* dx, float* dw) {
  const int64_t in_size = s.height * s.width, out_size = s.out_height() * s.out_width();
  const int64_t size = s.kernel * s.kernel, last = s.kernel - 1;
  const Taps taps(s, s.pad_top, s.pad_left);
  const Taps turned(s, last - s.pad_top, last - s.pad_left);
#pragma omp parallel num_threads(s.threads())
  {
    float* const padded = scratch<5>(s.padded());
    float* const sums = scratch<6>(s.result());
    float* const grad = scratch<7>(s.padded());   // of y: for dx, padded as x would be
    float* const plain = scratch<8>(s.result());  // of y: for dw, from the first place on
    float* const backwards = scratch<9>(size);
    Lanes* const totals = reinterpret_cast<Lanes*>(scratch<10>(size * kLanes));
    std::fill(padded, padded + s.padded(), 0.0f);
    std::fill(grad, grad + s.padded(), 0.0f);
    std::fill(plain, plain + s.result(), 0.0f);
#pragma omp for
    for (int64_t channel = 0; channel < s.channels; ++channel) {
      const float* const kernel = w + channel * size;
      for (int64_t tap = 0; tap < size; ++tap) backwards[tap] = kernel[size - 1 - tap];
      std::fill(totals, totals + size, Lanes{});
      for (int64_t image = 0; image < s.batch; ++image) {
        const int64_t plane = image * s.channels + channel;
        const float* const given = dy + plane * out_size;
        spread(given, s.out_height(), s.out_width(), s.stride, s.pitch(), last - s.pad_top,
               last - s.pad_left, grad);
        correlate(s, turned, grad, backwards, sums);
        pick(sums, s.height, s.width, 1, s.pitch(), dx + plane * in_size);

        spread(x + plane * in_size, s.height, s.width, 1, s.pitch(), s.pad_top, s.pad_left,
               padded);
        spread(given, s.out_height(), s.out_width(), s.stride, s.pitch(), 0, 0, plain);
        for (int64_t row = taps.top; row < taps.bottom; ++row) {
          for (int64_t column = taps.left; column < taps.right; ++column) {
            const float* const from = padded + row * s.pitch() + column;
            Lanes first = {}, second = {};
            for (int64_t i = 0; i < s.area(); i += 2 * kLanes) {
              first += lanes_at(plain + i) * lanes_at(from + i);
              second += lanes_at(plain + i + kLanes) * lanes_at(from + i + kLanes);
            }
            totals[row * s.kernel + column] += first + second;
          }
        }
      }
      for (int64_t tap = 0; tap < size; ++tap) {
        float sum = 0.0f;
        for (int64_t lane = 0; lane < kLanes; ++lane) sum += totals[tap][lane];
        dw[channel * size + tap] = sum;
      }
    }
  }
}

}  // namespace fast
