// PaddlePaddle's side of the operators: checks, memory and names. The numbers are in the headers.
//
// All take float32 tensors on the CPU; `x` is [..., in], and rows are everything before the last
// axis. Weights are [in, out], as those of paddle.nn.Linear. Images are [batch, channels, h, w].
// What prepares images is called without PaddlePaddle, from Python's ctypes: at the end.
#include "attention.h"
#include "depthwise.h"
#include "gemm.h"
#include "input.h"
#include "paddle/extension.h"
#include "rows.h"

namespace {

using paddle::Tensor;
using Shape = std::vector<int64_t>;
using namespace fast;

void check(const Tensor& t, const char* name) {
  PD_CHECK(t.is_cpu(), name, " must be on the CPU");
  PD_CHECK(t.dtype() == paddle::DataType::FLOAT32, name, " must be float32");
}

void check(const Tensor& t, const char* name, const Shape& shape) {
  check(t, name);
  PD_CHECK(t.shape() == shape, name, " has another shape than the operator needs");
}

Tensor make(const Shape& shape) {
  return paddle::empty(shape, paddle::DataType::FLOAT32, paddle::CPUPlace());
}

Shape with_last(Shape shape, int64_t last) {
  shape.back() = last;
  return shape;
}

// Rows and width of x [..., width].
struct Rows {
  int64_t count, width;
  explicit Rows(const Tensor& x) {
    check(x, "x");
    PD_CHECK(!x.shape().empty() && x.shape().back() > 0, "x must be [..., width], width > 0");
    width = x.shape().back();
    count = x.numel() / width;
  }
};

// c = a b; large products on all threads.
template <typename Finish = Nothing>
void multiply(int64_t m, int64_t n, int64_t k, View a, View b, float* c,
              const Finish& finish = {}) {
  product(m, n, k, a, b, c, n, finish, threads_for(2.0 * m * n * k));
}

// Weight and bias gradients of y = x w + b, from that of y.
void weight_gradients(int64_t rows, int64_t in, int64_t out, const float* x, const float* dy,
                      float* dw, float* db) {
  multiply(in, out, rows, transposed(rows_of(x, in)), rows_of(dy, out), dw);
  sum_rows(rows, out, dy, db, threads_for(rows * out));
}

// ---- y = x w + b

std::vector<Tensor> LinearForward(const Tensor& x, const Tensor& w, const Tensor& b) {
  const Rows rows(x);
  check(w, "weight");
  PD_CHECK(w.shape().size() == 2 && w.shape()[0] == rows.width, "weight must be [in, out]");
  const int64_t out = w.shape()[1];
  check(b, "bias", {out});
  Tensor y = make(with_last(x.shape(), out));
  const float* bias = b.data<float>();
  multiply(rows.count, out, rows.width, rows_of(x.data<float>(), rows.width),
           rows_of(w.data<float>(), out), y.data<float>(),
           [=](int64_t, int64_t first, int64_t n, float* c) { add_to(n, bias + first, c); });
  return {y};
}

std::vector<Tensor> LinearBackward(const Tensor& x, const Tensor& w, const Tensor& dy) {
  const Rows rows(x);
  const int64_t out = w.shape()[1];
  check(dy, "gradient", with_last(x.shape(), out));
  Tensor dx = make(x.shape()), dw = make(w.shape()), db = make({out});
  const float* grad = dy.data<float>();
  multiply(rows.count, rows.width, out, rows_of(grad, out),
           transposed(rows_of(w.data<float>(), out)), dx.data<float>());
  weight_gradients(rows.count, rows.width, out, x.data<float>(), grad, dw.data<float>(),
                   db.data<float>());
  return {dx, dw, db};
}

// ---- y = GELU(x w1 + b1) w2 + b2; `hidden` is what GELU sees

std::vector<Tensor> MlpForward(const Tensor& x, const Tensor& w1, const Tensor& b1,
                               const Tensor& w2, const Tensor& b2) {
  const Rows rows(x);
  check(w1, "w1");
  check(w2, "w2");
  PD_CHECK(w1.shape().size() == 2 && w1.shape()[0] == rows.width, "w1 must be [in, hidden]");
  const int64_t wide = w1.shape()[1];
  PD_CHECK(w2.shape().size() == 2 && w2.shape()[0] == wide, "w2 must be [hidden, out]");
  const int64_t out = w2.shape()[1];
  check(b1, "b1", {wide});
  check(b2, "b2", {out});
  Tensor hidden = make(with_last(x.shape(), wide)), y = make(with_last(x.shape(), out));
  float* active = scratch<3>(rows.count * wide);
  const float *bias1 = b1.data<float>(), *bias2 = b2.data<float>();
  multiply(rows.count, wide, rows.width, rows_of(x.data<float>(), rows.width),
           rows_of(w1.data<float>(), wide), hidden.data<float>(),
           [=](int64_t row, int64_t first, int64_t n, float* c) {
             add_to(n, bias1 + first, c);
             gelu(n, c, active + row * wide + first);
           });
  multiply(rows.count, out, wide, rows_of(active, wide), rows_of(w2.data<float>(), out),
           y.data<float>(),
           [=](int64_t, int64_t first, int64_t n, float* c) { add_to(n, bias2 + first, c); });
  return {y, hidden};
}

std::vector<Tensor> MlpBackward(const Tensor& x, const Tensor& w1, const Tensor& w2,
                                const Tensor& hidden, const Tensor& dy) {
  const Rows rows(x);
  const int64_t wide = w1.shape()[1], out = w2.shape()[1];
  check(dy, "gradient", with_last(x.shape(), out));
  Tensor dx = make(x.shape()), dw1 = make(w1.shape()), db1 = make({wide});
  Tensor dw2 = make(w2.shape()), db2 = make({out});
  float* active = scratch<3>(rows.count * wide);
  float* dhidden = scratch<4>(rows.count * wide);
  const float *grad = dy.data<float>(), *before = hidden.data<float>();
  multiply(rows.count, wide, out, rows_of(grad, out), transposed(rows_of(w2.data<float>(), out)),
           dhidden, [=](int64_t row, int64_t first, int64_t n, float* c) {
             const int64_t at = row * wide + first;
             gelu_backward(n, before + at, c, active + at);
           });
  weight_gradients(rows.count, wide, out, active, grad, dw2.data<float>(), db2.data<float>());
  multiply(rows.count, rows.width, wide, rows_of(dhidden, wide),
           transposed(rows_of(w1.data<float>(), wide)), dx.data<float>());
  weight_gradients(rows.count, rows.width, wide, x.data<float>(), dhidden, dw1.data<float>(),
                   db1.data<float>());
  return {dx, dw1, db1, dw2, db2};
}

// ---- LayerNorm over the last axis

std::vector<Tensor> LayerNormForward(const Tensor& x, const Tensor& scale, const Tensor& bias,
                                     float epsilon) {
  const Rows rows(x);
  check(scale, "scale", {rows.width});
  check(bias, "bias", {rows.width});
  Tensor y = make(x.shape()), mean = make({rows.count}), rstd = make({rows.count});
  layer_norm(rows.count, rows.width, epsilon, x.data<float>(), scale.data<float>(),
             bias.data<float>(), y.data<float>(), mean.data<float>(), rstd.data<float>(),
             threads_for(8.0 * x.numel()));
  return {y, mean, rstd};
}

std::vector<Tensor> LayerNormBackward(const Tensor& x, const Tensor& scale, const Tensor& mean,
                                      const Tensor& rstd, const Tensor& dy) {
  const Rows rows(x);
  check(dy, "gradient", x.shape());
  Tensor dx = make(x.shape()), dscale = make(scale.shape()), dbias = make(scale.shape());
  layer_norm_backward(rows.count, rows.width, x.data<float>(), scale.data<float>(),
                      mean.data<float>(), rstd.data<float>(), dy.data<float>(),
                      dx.data<float>(), dscale.data<float>(), dbias.data<float>(),
                      threads_for(16.0 * x.numel()));
  return {dx, dscale, dbias};
}

// ---- attention of the packed qkv [batch, tokens, 3 * dim]

AttentionShape attention_shape(const Tensor& qkv, int heads) {
  check(qkv, "qkv");
  const Shape shape = qkv.shape();
  PD_CHECK(shape.size() == 3 && heads > 0 && shape[2] % (3 * heads) == 0,
           "qkv must be [batch, tokens, 3 * heads * head_dim]");
  return {shape[0], shape[1], shape[2] / 3, heads};
}

std::vector<Tensor> AttentionForward(const Tensor& qkv, int heads) {
  const AttentionShape s = attention_shape(qkv, heads);
  Tensor out = make({s.batch, s.tokens, s.dim});
  Tensor probs = make({s.batch, s.heads, s.tokens, s.tokens});
  attention(s, qkv.data<float>(), out.data<float>(), probs.data<float>());
  return {out, probs};
}

std::vector<Tensor> AttentionBackward(const Tensor& qkv, const Tensor& probs, const Tensor& dout,
                                      int heads) {
  const AttentionShape s = attention_shape(qkv, heads);
  check(dout, "gradient", {s.batch, s.tokens, s.dim});
  Tensor dqkv = make(qkv.shape());
  attention_backward(s, qkv.data<float>(), probs.data<float>(), dout.data<float>(),
                     dqkv.data<float>());
  return {dqkv};
}

// ---- depthwise convolution of x [batch, channels, h, w] with w [channels, 1, kernel, kernel]

DepthwiseShape depthwise_shape(const Tensor& x, const Tensor& w, int stride, int pad_top,
                               int pad_left) {
  check(x, "x");
  check(w, "weight");
  const Shape in = x.shape(), filter = w.shape();
  PD_CHECK(in.size() == 4 && in[2] > 0 && in[3] > 0, "x must be [batch, channels, h, w]");
  PD_CHECK(filter.size() == 4 && filter[0] == in[1] && filter[1] == 1 && filter[2] == filter[3],
           "weight must be [channels, 1, kernel, kernel]");
  PD_CHECK(stride > 0 && pad_top >= 0 && pad_left >= 0 && pad_top < filter[2] &&
               pad_left < filter[2],
           "a stride must be positive, padding 0 to kernel - 1");
  return {in[0], in[1], in[2], in[3], filter[2], stride, pad_top, pad_left};
}

std::vector<Tensor> DepthwiseForward(const Tensor& x, const Tensor& w, int stride, int pad_top,
                                     int pad_left) {
  const DepthwiseShape s = depthwise_shape(x, w, stride, pad_top, pad_left);
  Tensor y = make({s.batch, s.channels, s.out_height(), s.out_width()});
  depthwise(s, x.data<float>(), w.data<float>(), y.data<float>());
  return {y};
}

std::vector<Tensor> DepthwiseBackward(const Tensor& x, const Tensor& w, const Tensor& dy,
                                      int stride, int pad_top, int pad_left) {
  const DepthwiseShape s = depthwise_shape(x, w, stride, pad_top, pad_left);
  check(dy, "gradient", {s.batch, s.channels, s.out_height(), s.out_width()});
  Tensor dx = make(x.shape()), dw = make(w.shape());
  depthwise_backward(s, x.data<float>(), w.data<float>(), dy.data<float>(), dx.data<float>(),
                     dw.data<float>());
  return {dx, dw};
}

}  // namespace

PD_BUILD_OP(passl_mae_linear)
    .Inputs({"X", "W", "B"})
    .Outputs({"Y"})
    .SetKernelFn(PD_KERNEL(LinearForward));
PD_BUILD_GRAD_OP(passl_mae_linear)
    .Inputs({"X", "W", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("W"), paddle::Grad("B")})
    .SetKernelFn(PD_KERNEL(LinearBackward));

PD_BUILD_OP(passl_mae_mlp)
    .Inputs({"X", "W1", "B1", "W2", "B2"})
    .Outputs({"Y", "Hidden"})
    .SetKernelFn(PD_KERNEL(MlpForward));
PD_BUILD_GRAD_OP(passl_mae_mlp)
    .Inputs({"X", "W1", "W2", "Hidden", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("W1"), paddle::Grad("B1"), paddle::Grad("W2"),
              paddle::Grad("B2")})
    .SetKernelFn(PD_KERNEL(MlpBackward));

PD_BUILD_OP(passl_mae_layer_norm)
    .Inputs({"X", "Scale", "Bias"})
    .Outputs({"Y", "Mean", "Rstd"})
    .Attrs({"epsilon: float"})
    .SetKernelFn(PD_KERNEL(LayerNormForward));
PD_BUILD_GRAD_OP(passl_mae_layer_norm)
    .Inputs({"X", "Scale", "Mean", "Rstd", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Scale"), paddle::Grad("Bias")})
    .SetKernelFn(PD_KERNEL(LayerNormBackward));

PD_BUILD_OP(passl_mae_attention)
    .Inputs({"Qkv"})
    .Outputs({"Out", "Probs"})
    .Attrs({"heads: int"})
    .SetKernelFn(PD_KERNEL(AttentionForward));
PD_BUILD_GRAD_OP(passl_mae_attention)
    .Inputs({"Qkv", "Probs", paddle::Grad("Out")})
    .Outputs({paddle::Grad("Qkv")})
    .Attrs({"heads: int"})
    .SetKernelFn(PD_KERNEL(AttentionBackward));

PD_BUILD_OP(passl_mae_depthwise)
    .Inputs({"X", "W"})
    .Outputs({"Y"})
    .Attrs({"stride: int", "pad_top: int", "pad_left: int"})
    .SetKernelFn(PD_KERNEL(DepthwiseForward));
PD_BUILD_GRAD_OP(passl_mae_depthwise)
    .Inputs({"X", "W", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("W")})
    .Attrs({"stride: int", "pad_top: int", "pad_left: int"})
    .SetKernelFn(PD_KERNEL(DepthwiseBackward));

// Of `input.h`; `shape` has six numbers, as InputShape. Everything has been checked in Python.
extern "C" __attribute__((visibility("default"))) void passl_mae_input(
    const int64_t* shape, const uint8_t* images, int64_t stride, const int64_t* rows,
    const int64_t* cols, const float* tables, float* out) {
  const InputShape s{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]};
  const auto run = s.channels == 3 ? input<3> : s.channels == 1 ? input<1> : input<0>;
  run(s, images, stride, rows, cols, tables, out);
}
