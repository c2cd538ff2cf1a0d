// GELU(hidden) times the channels' factors (N, D): (N, P, D) -> (N, P, D), divided as strips.h says.
template <typename T, int VECTOR, typename Hidden, typename Scale, typename Output>
FUNCTION void gelu_scaled(
    Hidden hidden, int pixels, int channels, Scale scale, Output output, uint thread_index, uint threads,
    uint channel_group, uint strip, uint strips, uint image) {
  const uint simdgroups = threads / LANES;
  const uint part = strip * simdgroups + thread_index / LANES;
  const int channel = int((channel_group * LANES + thread_index % LANES) * uint(VECTOR));
  if (channel >= channels) {
    return;
  }
  float factor[VECTOR];
  UNROLL for (int v = 0; v < VECTOR; ++v) {
    factor[v] = scale[size_t(image) * size_t(channels) + size_t(channel + v)];
  }
  const int end = first_pixel(pixels, part + 1, strips * simdgroups);
  for (int pixel = first_pixel(pixels, part, strips * simdgroups); pixel < end; pixel += AHEAD) {
    const size_t first = (size_t(image) * size_t(pixels) + size_t(pixel)) * size_t(channels) + size_t(channel);
    float values[AHEAD][VECTOR];
    load_ahead<VECTOR>(hidden, first, end - pixel, channels, values);
    UNROLL for (int i = 0; i < AHEAD; ++i) {
      if (pixel + i < end) {
        UNROLL for (int v = 0; v < VECTOR; ++v) {
          (output + first)[uint(i * channels + v)] = T(gelu(values[i][v]) * factor[v]);
        }
      }
    }
  }
}
