// The gradient of the LayerNorm that follows the depthwise convolution, which is computed again.
//
// With n the normalised convolution and g = cotangent * norm_weight, the gradient of the convolution's result is
// (g - mean(g) - n * mean(g * n)) * scale, the means being over the channels.

// x (N, H, W, C), taps (7, 7, C), bias and norm_weight (C,), cotangent (N, H, W, C) -> output (N, H, W, C), and
// vector_sums (N, tiles, 2, C) in float32: over each tile's pixels the sums of cotangent * n and of the cotangent.
// Threads and tiles are divided as in depthwise_layer_norm. The barriers of each sum free the other's memory.
template <
    typename T, int CHANNELS_PER_THREAD, int ROWS, int COLUMNS, typename Pixels, typename Taps, typename Bias,
    typename NormWeight, typename Epsilon, typename Cotangent, typename Output, typename VectorSums, typename Sums>
FUNCTION void depthwise_norm_gradient(
    Pixels pixels, int height, int width, int channels, Taps taps, Bias bias, NormWeight norm_weight, Epsilon epsilon,
    Cotangent cotangent, Output output, VectorSums vector_sums, Sums sums, Sums square_sums,
    uint thread_index, uint threads, uint tile, uint tiles, uint image) {
  constexpr int PIXELS = ROWS * COLUMNS;
  const int tiles_across = (width + COLUMNS - 1) / COLUMNS;
  const int top = int(tile) / tiles_across * ROWS;
  const int left = int(tile) % tiles_across * COLUMNS;
  const size_t first = size_t(image) * size_t(height) * size_t(width) * size_t(channels);

  float values[CHANNELS_PER_THREAD][PIXELS];
  float gradients[CHANNELS_PER_THREAD][PIXELS];
  float mean[PIXELS];
  float scale[PIXELS];
  float gradient_mean[PIXELS];
  float product_mean[PIXELS];
  UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
    mean[pixel] = 0.0f;
    scale[pixel] = 0.0f;
    gradient_mean[pixel] = 0.0f;
    product_mean[pixel] = 0.0f;
  }
  UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
    const int channel = int(thread_index) + k * int(threads);
    if (channel < channels) {
      depthwise_conv2d<ROWS, COLUMNS>(
          pixels + first, height, width, uint(channels), uint(channel), taps, float(bias[channel]), top, left,
          values[k]);
      UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
        mean[pixel] += values[k][pixel];
      }
    }
  }
  share<PIXELS>(
      sum_over_threads<PIXELS>(mean, sums, thread_index, threads) / float(channels), mean, sums, thread_index);
  UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
    if (int(thread_index) + k * int(threads) < channels) {
      UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
        values[k][pixel] -= mean[pixel];
        scale[pixel] = multiply_add(values[k][pixel], values[k][pixel], scale[pixel]);
      }
    }
  }
  const float variance = sum_over_threads<PIXELS>(scale, square_sums, thread_index, threads) / float(channels);
  share<PIXELS>(inverse_square_root(variance + float(epsilon[0])), scale, square_sums, thread_index);

  UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
    const int channel = int(thread_index) + k * int(threads);
    if (channel < channels) {
      const float weight = float(norm_weight[channel]);
      float of_weight = 0.0f;
      float of_bias = 0.0f;
      UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
        const int y = top + pixel / COLUMNS;
        const int x = left + pixel % COLUMNS;
        const uint position = uint(clamped(y, height)) * uint(width) + uint(clamped(x, width));
        const float loaded = float((cotangent + first)[position * uint(channels) + uint(channel)]);
        const float value = y < height && x < width ? loaded : 0.0f;
        values[k][pixel] *= scale[pixel];
        of_weight = multiply_add(value, values[k][pixel], of_weight);
        of_bias += value;
        gradients[k][pixel] = value * weight;
        gradient_mean[pixel] += gradients[k][pixel];
        product_mean[pixel] = multiply_add(gradients[k][pixel], values[k][pixel], product_mean[pixel]);
      }
      const size_t row = (size_t(image) * size_t(tiles) + size_t(tile)) * 2;
      vector_sums[row * size_t(channels) + size_t(channel)] = of_weight;
      vector_sums[(row + 1) * size_t(channels) + size_t(channel)] = of_bias;
    }
  }
  share<PIXELS>(
      sum_over_threads<PIXELS>(gradient_mean, sums, thread_index, threads) / float(channels), gradient_mean, sums,
      thread_index);
  share<PIXELS>(
      sum_over_threads<PIXELS>(product_mean, square_sums, thread_index, threads) / float(channels), product_mean,
      square_sums, thread_index);
  UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
    const int channel = int(thread_index) + k * int(threads);
    if (channel < channels) {
      UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
        const int y = top + pixel / COLUMNS;
        const int x = left + pixel % COLUMNS;
        if (y < height && x < width) {
          const uint place = (uint(y) * uint(width) + uint(x)) * uint(channels) + uint(channel);
          const float projected = multiply_add(-values[k][pixel], product_mean[pixel], gradients[k][pixel]);
          (output + first)[place] = T((projected - gradient_mean[pixel]) * scale[pixel]);
        }
      }
    }
  }
}
