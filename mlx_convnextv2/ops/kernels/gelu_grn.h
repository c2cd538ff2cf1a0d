// GELU and Global Response Normalization (section 4 of the ConvNeXt V2 paper, arXiv:2301.00808).
//
// GRN divides each channel's norm over all pixels by the mean of all channels' norms, so that three steps follow each
// other: sums of squares over strips of pixels, the channels' scales (grn_scale.h), and their use.

template <typename T, typename Output>
FUNCTION void store(Output output, size_t first, uint place, T value) {
  (output + first)[place] = value;
}
// To 0 nothing is stored.
template <typename T>
FUNCTION void store(int, size_t, uint, T) {}

// hidden (N, P, D) -> GELU(hidden), unless output is 0, and the sums of its squares over each strip of pixels,
// (N, strips, D) in float32. A thread sums in the order of the pixels, and then one adds the simdgroups' sums in theirs,
// so that no sum depends on which thread comes first. `parts` holds MOST_SIMDGROUPS * LANES * VECTOR numbers.
template <typename T, int VECTOR, typename Hidden, typename Output, typename Sums, typename Parts>
FUNCTION void gelu_sum_of_squares(
    Hidden hidden, int pixels, int channels, Output output, Sums sums, Parts parts, uint thread_index, uint threads,
    uint channel_group, uint strip, uint strips, uint image) {
  const uint simdgroups = threads / LANES;
  const uint part = strip * simdgroups + thread_index / LANES;
  const uint width = LANES * uint(VECTOR);
  const uint own = thread_index % LANES * uint(VECTOR);
  const int channel = int(channel_group * width + own);
  float sum[VECTOR];
  UNROLL for (int v = 0; v < VECTOR; ++v) {
    sum[v] = 0.0f;
  }
  const int end = channel < channels ? first_pixel(pixels, part + 1, strips * simdgroups) : 0;
  for (int pixel = first_pixel(pixels, part, strips * simdgroups); pixel < end; pixel += AHEAD) {
    const size_t first = (size_t(image) * size_t(pixels) + size_t(pixel)) * size_t(channels) + size_t(channel);
    float values[AHEAD][VECTOR];
    load_ahead<VECTOR>(hidden, first, end - pixel, channels, values);
    UNROLL for (int i = 0; i < AHEAD; ++i) {
      if (pixel + i < end) {
        UNROLL for (int v = 0; v < VECTOR; ++v) {
          const T value = T(gelu(values[i][v]));
          sum[v] = multiply_add(float(value), float(value), sum[v]);  // of what is stored
          store(output, first, uint(i * channels + v), value);
        }
      }
    }
  }
  UNROLL for (int v = 0; v < VECTOR; ++v) {
    parts[thread_index / LANES * width + own + uint(v)] = sum[v];
  }
  wait_for_threadgroup();
  const int summed = int(channel_group * width + thread_index);
  if (thread_index < width && summed < channels) {
    float total = 0.0f;
    for (uint simdgroup = 0; simdgroup < simdgroups; ++simdgroup) {
      total += parts[simdgroup * width + thread_index];
    }
    sums[(size_t(image) * size_t(strips) + size_t(strip)) * size_t(channels) + size_t(summed)] = total;
  }
}
