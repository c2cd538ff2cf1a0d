// The gradient of the depthwise convolution's taps and bias: for each tap the sum, over all pixels of all images, of
// the result's gradient times the input that the tap saw.
//
// A thread owns one channel and one row of taps, whose 7 sums lie in registers. It walks along its part of the rows of
// all images, COLUMNS pixels at a time: their gradients and the COLUMNS + 6 values that the taps saw. The parts are
// summed afterwards: no atomics.

// x and cotangent (N, H, W, C) -> sums (parts, 50, C) in float32, the bias after the 49 taps.
template <int COLUMNS, typename Pixels, typename Cotangent, typename Sums>
FUNCTION void depthwise_weight_gradient(
    Pixels pixels, int images, int height, int width, int channels, Cotangent cotangent, Sums sums, uint channel,
    int tap_row, uint part, uint parts) {
  if (int(channel) >= channels) {
    return;
  }
  float taps[KERNEL];
  UNROLL for (int i = 0; i < KERNEL; ++i) {
    taps[i] = 0.0f;
  }
  float bias = 0.0f;
  const int length = (images * height + int(parts) - 1) / int(parts);
  const int end = (int(part) + 1) * length < images * height ? (int(part) + 1) * length : images * height;
  for (int row = int(part) * length; row < end; ++row) {
    const int seen = row % height + tap_row - PADDING;
    const bool inside = seen >= 0 && seen < height;
    const size_t first = size_t(row) * size_t(width) * size_t(channels) + size_t(channel);
    const size_t first_seen = inside ? (size_t(row - row % height + seen)) * size_t(width) * size_t(channels) + size_t(channel) : first;
    for (int left = 0; left < width; left += COLUMNS) {
      float gradient[COLUMNS];
      UNROLL for (int column = 0; column < COLUMNS; ++column) {
        const int x = left + column;
        const float value = float((cotangent + first)[uint(clamped(x, width)) * uint(channels)]);
        gradient[column] = x < width ? value : 0.0f;
        bias += gradient[column];
      }
      float line[COLUMNS + KERNEL - 1];
      UNROLL for (int column = 0; column < COLUMNS + KERNEL - 1; ++column) {
        const int x = left + column - PADDING;
        const float value = float((pixels + first_seen)[uint(clamped(x, width)) * uint(channels)]);
        line[column] = inside && x >= 0 && x < width ? value : 0.0f;
      }
      UNROLL for (int tap = 0; tap < KERNEL; ++tap) {
        UNROLL for (int column = 0; column < COLUMNS; ++column) {
          taps[tap] = multiply_add(line[column + tap], gradient[column], taps[tap]);
        }
      }
    }
  }
  const size_t first = size_t(part) * size_t(KERNEL * KERNEL + 1) * size_t(channels) + size_t(channel);
  UNROLL for (int i = 0; i < KERNEL; ++i) {
    sums[first + size_t((tap_row * KERNEL + i) * channels)] = taps[i];
  }
  if (tap_row == 0) {
    sums[first + size_t(KERNEL * KERNEL * channels)] = bias;
  }
}
