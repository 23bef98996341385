// Bytes of images to the floats that a model takes: pixels moved whole, and a table a channel, in
// one pass. On the caller's thread alone: the others are the training's.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace fast {

struct InputShape {
  int64_t batch, height, width, channels;  // of the images, [batch, height, width, channels]
  int64_t out_height, out_width;
};

// A row of the result in all channels. `line` is a row of the image and a black pixel after it,
// `starts` where in it each pixel begins. kChannels is 0 where the channels are only known here.
template <int kChannels>
void look_up_row(const InputShape& s, const uint8_t* line, const int64_t* starts,
                 const float* tables, float* out) {
  const int64_t channels = kChannels ? kChannels : s.channels;
  const int64_t plane = s.out_height * s.out_width;
  for (int64_t x = 0; x < s.out_width; ++x) {
    const uint8_t* pixel = line + starts[x];
    for (int64_t c = 0; c < channels; ++c) out[c * plane + x] = tables[c * 256 + pixel[c]];
  }
}

// out[b, c, y, x] = tables[c, images[b, rows[b, y], cols[b, x], c]], or tables[c, 0] where the row
// or the column is -1. Images lie `stride` bytes apart; the caller has checked all bounds.
template <int kChannels>
void input(const InputShape& s, const uint8_t* images, int64_t stride, const int64_t* rows,
           const int64_t* cols, const float* tables, float* out) {
  const int64_t bytes = s.width * s.channels;
  std::vector<uint8_t> line(bytes + s.channels, 0), black(bytes + s.channels, 0);
  std::vector<int64_t> starts(s.out_width);
  for (int64_t b = 0; b < s.batch; ++b) {
    const uint8_t* image = images + b * stride;
    for (int64_t x = 0; x < s.out_width; ++x) {
      const int64_t col = cols[b * s.out_width + x];
      starts[x] = col < 0 ? bytes : col * s.channels;
    }
    for (int64_t y = 0; y < s.out_height; ++y) {
      const int64_t row = rows[b * s.out_height + y];
      if (row >= 0) std::memcpy(line.data(), image + row * bytes, bytes);
      look_up_row<kChannels>(s, row < 0 ? black.data() : line.data(), starts.data(), tables,
                             out + y * s.out_width);
    }
    out += s.channels * s.out_height * s.out_width;
  }
}

}  // namespace fast
