// Single-precision matrix products: packed panels and a register tile (Goto & van de Geijn 2008).
//
// One tile of C stays in registers while the product runs over the inner dimension; A and B are
// first copied into panels in the order the tile reads them, which also takes care of transposed
// operands and of odd sizes (panels are padded with zeros, the padding's results are dropped).
// Every element of C is summed by one thread in one order: results do not depend on the threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fast {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 6;
#else
constexpr int kLanes = 4, kTileRows = 6;
#endif
constexpr int kTileCols = 2 * kLanes;
// Blocks: a strip of A and a panel of B in L1, a block of A and of B in L2.
constexpr int64_t kInner = 256, kBlockRows = 8 * kTileRows, kBlockCols = 768;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// A matrix to read: element (i, j) is data[i * row_step + j * col_step].
struct View {
  const float* data;
  int64_t row_step, col_step;
};

inline View rows_of(const float* data, int64_t width) { return {data, width, 1}; }
inline View transposed(View m) { return {m.data, m.col_step, m.row_step}; }

// Memory that a thread keeps from call to call; `slot` tells apart what is in use at once.
template <int slot>
float* scratch(size_t size) {
  static thread_local std::vector<float> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// Copies `count` (<= width) vectors of length `inner` side by side: out[p * width + i].
template <int width>
void pack(const float* source, int64_t step, int64_t inner_step, int count, int64_t inner,
          float* out) {
  if (count < width) {
    for (int64_t p = 0; p < inner; ++p)
      for (int i = 0; i < width; ++i)
        out[p * width + i] = i < count ? source[i * step + p * inner_step] : 0.0f;
  } else if (step == 1) {
    for (int64_t p = 0; p < inner; ++p)
      for (int i = 0; i < width; ++i) out[p * width + i] = source[p * inner_step + i];
  } else {
    for (int64_t p = 0; p < inner; ++p)
      for (int i = 0; i < width; ++i) out[p * width + i] = source[i * step + p * inner_step];
  }
}

// C tile [kTileRows, kTileCols] = or += (strip of A) (panel of B).
inline void tile(int64_t inner, const float* a, const float* b, float* c, int64_t c_step,
                 bool add) {
  Lanes sums[kTileRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) sums[i][0] = sums[i][1] = Lanes{};
  for (int64_t p = 0; p < inner; ++p, a += kTileRows, b += kTileCols) {
    const Lanes left = *reinterpret_cast<const Lanes*>(b);
    const Lanes right = *reinterpret_cast<const Lanes*>(b + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      sums[i][0] += a[i] * left;
      sums[i][1] += a[i] * right;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    Lanes* out = reinterpret_cast<Lanes*>(c + i * c_step);
    out[0] = add ? out[0] + sums[i][0] : sums[i][0];
    out[1] = add ? out[1] + sums[i][1] : sums[i][1];
  }
}

// The same for the part [rows, cols] of a tile that lies inside C.
inline void edge_tile(int64_t inner, const float* a, const float* b, float* c, int64_t c_step,
                      bool add, int rows, int cols) {
  float whole[kTileRows * kTileCols];
  tile(inner, a, b, whole, kTileCols, false);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < cols; ++j) {
      const float sum = whole[i * kTileCols + j];
      c[i * c_step + j] = add ? c[i * c_step + j] + sum : sum;
    }
}

struct Nothing {
  void operator()(int64_t, int64_t, int64_t, float*) const {}
};

// C [m, n] = A [m, k] B [k, n]; rows of C are c_step apart.
// `finish(row, first_col, cols, c)` gets each finished part of a row while it is in the cache.
template <typename Finish = Nothing>
void product(int64_t m, int64_t n, int64_t k, View a, View b, float* c, int64_t c_step,
             const Finish& finish = {}, int threads = 1) {
  const int64_t share = (m + threads - 1) / threads;
  const int64_t in_tiles = (share + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t height = std::min(kBlockRows, std::max<int64_t>(in_tiles, kTileRows));
  const int64_t blocks = (m + height - 1) / height;
  float* const panels = scratch<0>(kInner * (kBlockCols + kTileCols));
  for (int64_t n0 = 0; n0 < n; n0 += kBlockCols) {
    const int64_t cols = std::min(kBlockCols, n - n0);
    for (int64_t k0 = 0; k0 == 0 || k0 < k; k0 += kInner) {
      const int64_t inner = std::min(kInner, k - k0);
      const bool last = k0 + kInner >= k;
#pragma omp parallel num_threads(threads) if (threads > 1)
      {
#pragma omp for schedule(static)
        for (int64_t j = 0; j < cols; j += kTileCols) {
          const float* source = b.data + k0 * b.row_step + (n0 + j) * b.col_step;
          const int count = std::min<int64_t>(kTileCols, cols - j);
          pack<kTileCols>(source, b.col_step, b.row_step, count, inner, panels + j * inner);
        }
        float* const strips = scratch<1>(kInner * (kBlockRows + kTileRows));
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t m0 = block * height, rows = std::min(height, m - m0);
          for (int64_t i = 0; i < rows; i += kTileRows) {
            const float* source = a.data + (m0 + i) * a.row_step + k0 * a.col_step;
            const int count = std::min<int64_t>(kTileRows, rows - i);
            pack<kTileRows>(source, a.row_step, a.col_step, count, inner, strips + i * inner);
          }
          for (int64_t j = 0; j < cols; j += kTileCols)
            for (int64_t i = 0; i < rows; i += kTileRows) {
              float* out = c + (m0 + i) * c_step + n0 + j;
              const int high = std::min<int64_t>(kTileRows, rows - i);
              const int wide = std::min<int64_t>(kTileCols, cols - j);
              if (high == kTileRows && wide == kTileCols)
                tile(inner, strips + i * inner, panels + j * inner, out, c_step, k0 > 0);
              else
                edge_tile(inner, strips + i * inner, panels + j * inner, out, c_step, k0 > 0,
                          high, wide);
            }
          if (last)
            for (int64_t i = 0; i < rows; ++i)
              finish(m0 + i, n0, cols, c + (m0 + i) * c_step + n0);
        }
      }
    }
  }
}

// Threads for a piece of work of so many operations: starting them takes some microseconds.
inline int threads_for(double operations) {
  return operations < 1e6 ? 1 : omp_get_max_threads();
}

}  // namespace fast
