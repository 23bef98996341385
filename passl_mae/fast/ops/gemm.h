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
#include <cstring>
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
constexpr int64_t kInner = 256, kBlockRows = 8 * kTileRows, kBlockCols = 24 * kTileCols;

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
void pack(const float* source, int64_t step, int64_t inner_step, int64_t count, int64_t inner,
          float* out) {
  if (count == width && step == 1) {
    for (int64_t p = 0; p < inner; ++p)
      for (int i = 0; i < width; ++i) out[p * width + i] = source[p * inner_step + i];
    return;
  }
  if (count < width) std::fill(out, out + inner * width, 0.0f);
  constexpr int64_t block = 16;  // a cache line of a row
  for (int64_t p0 = 0; p0 < inner; p0 += block) {
    const int64_t end = std::min(inner, p0 + block);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t p = p0; p < end; ++p)
        out[p * width + i] = source[i * step + p * inner_step];
  }
}

// Where a tile is written: `cols` of its columns lie inside C; `add` to what is there.
struct Place {
  float* c;
  int64_t step, cols;
  bool add;
};

// C tile [rows, vectors * kLanes] = or += A [rows, inner] (panel of B), kept in registers.
template <int rows, int vectors>
__attribute__((always_inline)) inline void tile(int64_t inner, View a, const float* panel,
                                                Place to) {
  Lanes sums[rows][vectors] = {};
  for (int64_t p = 0; p < inner; ++p, panel += kTileCols) {
    Lanes right[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v)
      right[v] = *reinterpret_cast<const Lanes*>(panel + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v)
        sums[i][v] += a.data[i * a.row_step + p * a.col_step] * right[v];
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      float* out = to.c + i * to.step + v * kLanes;
      const int64_t left = to.cols - v * kLanes;
      if (left >= kLanes) {
        Lanes* part = reinterpret_cast<Lanes*>(out);
        *part = to.add ? *part + sums[i][v] : sums[i][v];
      } else {
        for (int64_t j = 0; j < left; ++j)
          out[j] = to.add ? out[j] + sums[i][v][j] : sums[i][v][j];
      }
    }
}

template <int rows>
__attribute__((always_inline)) inline void tile_of(int64_t inner, View a, const float* panel,
                                                   Place to) {
  if (to.cols > kLanes)
    tile<rows, 2>(inner, a, panel, to);
  else
    tile<rows, 1>(inner, a, panel, to);
}

// Any number of rows up to kTileRows, from tiles of three heights.
__attribute__((always_inline)) inline void tiles(int64_t high, int64_t inner, View a,
                                                 const float* panel, Place to) {
  if (high == kTileRows) return tile_of<kTileRows>(inner, a, panel, to);
  for (int64_t rows; high > 0; high -= rows) {
    rows = high >= 4 ? 4 : 1;
    if (rows == 4)
      tile_of<4>(inner, a, panel, to);
    else
      tile_of<1>(inner, a, panel, to);
    a.data += rows * a.row_step;
    to.c += rows * to.step;
  }
}

// Compiled once each, not in every product: A as it lies, and a packed strip of A.
__attribute__((noinline)) static void strided_tile(int64_t high, int64_t inner, View a,
                                                   const float* panel, Place to) {
  tiles(high, inner, a, panel, to);
}
__attribute__((noinline)) static void packed_tile(int64_t high, int64_t inner, const float* strip,
                                                  const float* panel, Place to) {
  tiles(high, inner, {strip, 1, kTileRows}, panel, to);
}

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Packs the column panel of B [inner, cols] that begins at column j.
inline void pack_panel(View b, int64_t inner, int64_t j, int64_t cols, float* panels) {
  pack<kTileCols>(b.data + j * b.col_step, b.col_step, b.row_step,
                  std::min<int64_t>(kTileCols, cols - j), inner, panels + j * inner);
}

// C [m, n] = A [m, k] B [k, n] for small matrices, on one thread: A is read where it lies.
inline void small_product(int64_t m, int64_t n, int64_t k, View a, View b, float* c,
                          int64_t c_step) {
  float* const panels = scratch<0>(k * round_up(n, kTileCols));
  for (int64_t j = 0; j < n; j += kTileCols) pack_panel(b, k, j, n, panels);
  for (int64_t j = 0; j < n; j += kTileCols)
    for (int64_t i = 0; i < m; i += kTileRows) {
      const View rows = {a.data + i * a.row_step, a.row_step, a.col_step};
      const Place to = {c + i * c_step + j, c_step, std::min<int64_t>(kTileCols, n - j), false};
      strided_tile(std::min<int64_t>(kTileRows, m - i), k, rows, panels + j * k, to);
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
  const int64_t share = round_up(std::max<int64_t>(1, (m + threads - 1) / threads), kTileRows);
  const int64_t height = std::min(kBlockRows, share);
  const int64_t blocks = (m + height - 1) / height;
  const bool in_place = a.col_step == 1 && k > 128;  // measured: long rows need no copy of A
  float* const panels = scratch<0>(kInner * kBlockCols);
  for (int64_t n0 = 0; n0 < n; n0 += kBlockCols) {
    const int64_t cols = std::min(kBlockCols, n - n0);
    for (int64_t k0 = 0; k0 == 0 || k0 < k; k0 += kInner) {
      const int64_t inner = std::min(kInner, k - k0);
      const bool last = k0 + kInner >= k;
#pragma omp parallel num_threads(threads) if (threads > 1)
      {
#pragma omp for schedule(static)
        for (int64_t j = 0; j < cols; j += kTileCols)
          pack_panel({b.data + k0 * b.row_step + n0 * b.col_step, b.row_step, b.col_step}, inner,
                     j, cols, panels);
        float* const strips = scratch<1>(kInner * kBlockRows);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t m0 = block * height, rows = std::min(height, m - m0);
          const View part = {a.data + m0 * a.row_step + k0 * a.col_step, a.row_step, a.col_step};
          if (!in_place)
            for (int64_t i = 0; i < rows; i += kTileRows)
              pack<kTileRows>(part.data + i * a.row_step, a.row_step, a.col_step,
                              std::min<int64_t>(kTileRows, rows - i), inner, strips + i * inner);
          for (int64_t j = 0; j < cols; j += kTileCols)
            for (int64_t i = 0; i < rows; i += kTileRows) {
              const int64_t high = std::min<int64_t>(kTileRows, rows - i);
              const float* panel = panels + j * inner;
              const Place to = {c + (m0 + i) * c_step + n0 + j, c_step,
                                std::min<int64_t>(kTileCols, cols - j), k0 > 0};
              if (in_place)
                strided_tile(high, inner, {part.data + i * a.row_step, a.row_step, a.col_step},
                             panel, to);
              else
                packed_tile(high, inner, strips + i * inner, panel, to);
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
