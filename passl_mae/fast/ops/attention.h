// softmax(q k^T / sqrt d) v straight from the packed projection, one (image, head) at a time.
//
// qkv is [batch, tokens, 3 * dim]: q, k and v one after the other, each with its heads side by
// side. Products read it with strides, so nothing is transposed or copied apart.
#pragma once

#include <cmath>

#include "gemm.h"
#include "rows.h"

namespace fast {

struct AttentionShape {
  int64_t batch, tokens, dim, heads;
  int64_t head_dim() const { return dim / heads; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim())); }
  int threads() const {
    return threads_for(4.0 * batch * tokens * tokens * dim);
  }
  // Where the rows of an image and head begin; `part` is 0 for q, 1 for k, 2 for v.
  int64_t in_qkv(int64_t image, int64_t head, int part) const {
    return image * tokens * 3 * dim + part * dim + head * head_dim();
  }
  int64_t in_out(int64_t image, int64_t head) const {
    return image * tokens * dim + head * head_dim();
  }
};

// out [batch, tokens, dim]; keeps the probabilities [batch, heads, tokens, tokens].
inline void attention(const AttentionShape& s, const float* qkv, float* out, float* probs) {
  const int64_t n = s.tokens, d = s.head_dim(), step = 3 * s.dim;
#pragma omp parallel for schedule(static) num_threads(s.threads()) if (s.threads() > 1)
  for (int64_t unit = 0; unit < s.batch * s.heads; ++unit) {
    const int64_t image = unit / s.heads, head = unit % s.heads;
    const View q = rows_of(qkv + s.in_qkv(image, head, 0), step);
    const View k = rows_of(qkv + s.in_qkv(image, head, 1), step);
    const View v = rows_of(qkv + s.in_qkv(image, head, 2), step);
    float* p = probs + unit * n * n;
    const float scale = s.scale();
    small_product(n, n, d, q, transposed(k), p, n);
    for (int64_t i = 0; i < n; ++i) softmax(n, scale, p + i * n);
    small_product(n, d, n, rows_of(p, n), v, out + s.in_out(image, head), s.dim);
  }
}

// dqkv [batch, tokens, 3 * dim] from the gradient of `out`.
inline void attention_backward(const AttentionShape& s, const float* qkv, const float* probs,
                               const float* dout, float* dqkv) {
  const int64_t n = s.tokens, d = s.head_dim(), step = 3 * s.dim;
#pragma omp parallel for schedule(static) num_threads(s.threads()) if (s.threads() > 1)
  for (int64_t unit = 0; unit < s.batch * s.heads; ++unit) {
    const int64_t image = unit / s.heads, head = unit % s.heads;
    const View q = rows_of(qkv + s.in_qkv(image, head, 0), step);
    const View k = rows_of(qkv + s.in_qkv(image, head, 1), step);
    const View v = rows_of(qkv + s.in_qkv(image, head, 2), step);
    const View grad = rows_of(dout + s.in_out(image, head), s.dim);
    const float* p = probs + unit * n * n;
    const float scale = s.scale();
    float* ds = scratch<2>(n * n);
    small_product(n, d, n, transposed(rows_of(p, n)), grad, dqkv + s.in_qkv(image, head, 2), step);
    small_product(n, n, d, grad, transposed(v), ds, n);
    for (int64_t i = 0; i < n; ++i) softmax_backward(n, scale, p + i * n, ds + i * n);
    small_product(n, d, n, rows_of(ds, n), k, dqkv + s.in_qkv(image, head, 0), step);
    small_product(n, d, n, transposed(rows_of(ds, n)), q, dqkv + s.in_qkv(image, head, 1), step);
  }
}

}  // namespace fast
