// Depthwise 7x7 convolution with padding 3, its bias and the LayerNorm over the channels, in one pass.
//
// A threadgroup computes ROWS x COLUMNS pixels of one image with all their channels. Thread i of n owns the channels
// i, i + n, i + 2n, ..., so that neighbouring lanes read neighbouring channels. It walks down the rows of its input
// window: the COLUMNS + 6 values of the row and the 49 taps of the channel lie in registers, and every value serves all
// the outputs that see it. Sums and statistics are float32 for every T.

CONSTANT int KERNEL = 7;
CONSTANT int PADDING = 3;

// One channel of the tile whose first pixel is (top, left) of the image: (ROWS, COLUMNS) sums of products, plus bias.
// `image` points to the channel in the image's first pixel, `taps` to the channel in the first of 49 taps.
template <int ROWS, int COLUMNS, typename Image, typename Taps>
FUNCTION void depthwise_conv2d(
    Image image, int height, int width, size_t channels, Taps taps, float bias, int top, int left,
    LOCAL float (&outputs)[ROWS * COLUMNS]) {
  float tap[KERNEL * KERNEL];
  UNROLL for (int i = 0; i < KERNEL * KERNEL; ++i) {
    tap[i] = float(taps[size_t(i) * channels]);
  }
  UNROLL for (int i = 0; i < ROWS * COLUMNS; ++i) {
    outputs[i] = bias;
  }
  UNROLL for (int row = 0; row < ROWS + KERNEL - 1; ++row) {
    const int y = top + row - PADDING;
    if (y >= 0 && y < height) {
      float line[COLUMNS + KERNEL - 1];
      UNROLL for (int column = 0; column < COLUMNS + KERNEL - 1; ++column) {
        const int x = left + column - PADDING;
        line[column] = 0.0f;
        if (x >= 0 && x < width) {
          line[column] = float(image[(size_t(y) * size_t(width) + size_t(x)) * channels]);
        }
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
          pixels + first + size_t(channel), height, width, size_t(channels), taps + size_t(channel),
          float(bias[channel]), top, left, values[k]);
      UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
        mean[pixel] += values[k][pixel];
      }
    }
  }
  if (NORMALISE) {
    sum_over_threads<PIXELS>(mean, sums, thread_index, threads);
    UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
      mean[pixel] /= float(channels);
    }
    UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
      if (int(thread_index) + k * int(threads) < channels) {
        UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
          const float deviation = values[k][pixel] - mean[pixel];
          scale[pixel] = multiply_add(deviation, deviation, scale[pixel]);
        }
      }
    }
    sum_over_threads<PIXELS>(scale, square_sums, thread_index, threads);
    UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
      scale[pixel] = inverse_square_root(scale[pixel] / float(channels) + float(epsilon[0]));
    }
  }
  UNROLL for (int k = 0; k < CHANNELS_PER_THREAD; ++k) {
    const int channel = int(thread_index) + k * int(threads);
    if (channel < channels) {
      UNROLL for (int row = 0; row < ROWS; ++row) {
        UNROLL for (int column = 0; column < COLUMNS; ++column) {
          const int y = top + row;
          const int x = left + column;
          if (y < height && x < width) {
            const int pixel = row * COLUMNS + column;
            const size_t place =
                first + (size_t(y) * size_t(width) + size_t(x)) * size_t(channels) + size_t(channel);
            float value = values[k][pixel];
            if (NORMALISE) {
              value = multiply_add(
                  (value - mean[pixel]) * scale[pixel], float(norm_weight[channel]), float(norm_bias[channel]));
            }
            output[place] = T(value);
            if (RESIDUAL) {
              residual[place] = T(float(pixels[place]) + float(residual_bias[channel]));
            }
          }
        }
      }
    }
  }
}
