// Depthwise 7x7 convolution with padding 3, its bias and the LayerNorm over the channels, in one pass.
//
// A threadgroup computes ROWS x COLUMNS pixels of one image with all their channels. Thread i of n owns the channels
// i, i + n, i + 2n, ..., so that neighbouring lanes read neighbouring channels. It walks down the rows of its input
// window: the COLUMNS + 6 values of the row and the 49 taps of the channel lie in registers, and every value serves all
// the outputs that see it. Sums and statistics are float32 for every T.
//
// Places are counted in 32 bits from the image's first element: an image has less than 2^31 (gpu.MOST_ELEMENTS). No
// load is guarded: outside of the image the nearest value is loaded and 0 taken, so that no load waits for another.

CONSTANT int KERNEL = 7;
CONSTANT int PADDING = 3;

FUNCTION int clamped(int value, int size) { return value < 0 ? 0 : value < size ? value : size - 1; }

// One channel of the tile whose first pixel is (top, left) of the image: (ROWS, COLUMNS) sums of products, plus bias.
template <int ROWS, int COLUMNS, typename Image, typename Taps>
FUNCTION void depthwise_conv2d(
    Image image, int height, int width, uint channels, uint channel, Taps taps, float bias, int top, int left,
    LOCAL float (&outputs)[ROWS * COLUMNS]) {
  float tap[KERNEL * KERNEL];
  UNROLL for (int i = 0; i < KERNEL * KERNEL; ++i) {
    tap[i] = float(taps[uint(i) * channels + channel]);
  }
  UNROLL for (int i = 0; i < ROWS * COLUMNS; ++i) {
    outputs[i] = bias;
  }
  uint places[COLUMNS + KERNEL - 1];  // of a row's values, from its first
  UNROLL for (int column = 0; column < COLUMNS + KERNEL - 1; ++column) {
    places[column] = uint(clamped(left + column - PADDING, width)) * channels + channel;
  }
  UNROLL for (int row = 0; row < ROWS + KERNEL - 1; ++row) {
    const int y = top + row - PADDING;
    const uint start = uint(clamped(y, height)) * uint(width) * channels;
    float line[COLUMNS + KERNEL - 1];
    UNROLL for (int column = 0; column < COLUMNS + KERNEL - 1; ++column) {
      const int x = left + column - PADDING;
      const float value = float(image[start + places[column]]);
      line[column] = y >= 0 && y < height && x >= 0 && x < width ? value : 0.0f;
    }
    UNROLL for (int output_row = 0; output_row < ROWS; ++output_row) {
      const int tap_row = row - output_row;
      if (tap_row >= 0 && tap_row < KERNEL) {
        UNROLL for (int column = 0; column < COLUMNS; ++column) {
          float sum = outputs[output_row * COLUMNS + column];
          UNROLL for (int tap_column = 0; tap_column < KERNEL; ++tap_column) {
            sum = multiply_add(line[column + tap_column], tap[tap_row * KERNEL + tap_column], sum);
          }
          outputs[output_row * COLUMNS + column] = sum;
        }
      }
    }
  }
}

// x (N, H, W, C), taps (7, 7, C), bias (C,) -> output (N, H, W, C). With NORMALISE the LayerNorm of norm_weight and
// norm_bias (C,) over the channels; with RESIDUAL also residual = x + residual_bias, for the block's last product.
template <
    typename T, int CHANNELS_PER_THREAD, int ROWS, int COLUMNS, bool NORMALISE, bool RESIDUAL, typename Pixels,
    typename Taps, typename Bias, typename NormWeight, typename NormBias, typename Epsilon, typename ResidualBias,
    typename Output, typename Residual, typename Sums>
FUNCTION void depthwise_layer_norm(
    Pixels pixels, int height, int width, int channels, Taps taps, Bias bias, NormWeight norm_weight,
    NormBias norm_bias, Epsilon epsilon, ResidualBias residual_bias, Output output, Residual residual,
    Sums sums, Sums square_sums, uint thread_index, uint threads, uint tile, uint image) {
  constexpr int PIXELS = ROWS * COLUMNS;
  const int tiles_across = (width + COLUMNS - 1) / COLUMNS;
  const int top = int(tile) / tiles_across * ROWS;
  const int left = int(tile) % tiles_across * COLUMNS;
  const size_t first = size_t(image) * size_t(height) * size_t(width) * size_t(channels);

  float values[CHANNELS_PER_THREAD][PIXELS];
  float mean[PIXELS];
  float scale[PIXELS];
  UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
    mean[pixel] = 0.0f;
    scale[pixel] = 0.0f;
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
  if (NORMALISE) {  // the first threads divide and take the root, each for one pixel
    share<PIXELS>(
        sum_over_threads<PIXELS>(mean, sums, thread_index, threads) / float(channels), mean, sums, thread_index);
    UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
      if (int(thread_index) + k * int(threads) < channels) {
        UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
          const float deviation = values[k][pixel] - mean[pixel];
          scale[pixel] = multiply_add(deviation, deviation, scale[pixel]);
        }
      }
    }
    const float variance = sum_over_threads<PIXELS>(scale, square_sums, thread_index, threads) / float(channels);
    share<PIXELS>(inverse_square_root(variance + float(epsilon[0])), scale, square_sums, thread_index);
  }
  UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
    const int channel = int(thread_index) + k * int(threads);
    if (channel < channels) {
      const float weight = NORMALISE ? float(norm_weight[channel]) : 1.0f;
      const float shift = NORMALISE ? float(norm_bias[channel]) : 0.0f;
      const float added = RESIDUAL ? float(residual_bias[channel]) : 0.0f;
      UNROLL for (int row = 0; row < ROWS; ++row) {
        const int y = top + row;
        const uint start = uint(clamped(y, height)) * uint(width);
        float kept[COLUMNS];
        UNROLL for (int column = 0; RESIDUAL && column < COLUMNS; ++column) {
          const uint place = (start + uint(clamped(left + column, width))) * uint(channels) + uint(channel);
          kept[column] = float((pixels + first)[place]) + added;
        }
        UNROLL for (int column = 0; column < COLUMNS; ++column) {
          const int x = left + column;
          if (y < height && x < width) {
            const int pixel = row * COLUMNS + column;
            const uint place = (start + uint(x)) * uint(channels) + uint(channel);
            float value = values[k][pixel];
            if (NORMALISE) {
              value = multiply_add((value - mean[pixel]) * scale[pixel], weight, shift);
            }
            (output + first)[place] = T(value);
            if (RESIDUAL) {
              (residual + first)[place] = T(kept[column]);
            }
          }
        }
      }
    }
  }
}
