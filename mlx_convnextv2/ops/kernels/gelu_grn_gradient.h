// The gradient of GELU and Global Response Normalization (section 4 of the ConvNeXt V2 paper, arXiv:2301.00808).
//
// With a = GELU(hidden), g a channel's norm, m the mean of all channels' norms plus 1e-6 and s = 1 + weight * g / m, the
// result is a * s + bias. For the cotangent d of the result let u = weight * sum(d * a); then g has the gradient
// (u - mean(u * g) / m) / m, and a has d * s + a * (that of g) / g. As forwards three steps follow each other.

// hidden and cotangent (N, P, D) -> over each strip of pixels the sums of cotangent * GELU(hidden) and of the
// cotangent, (N, strips, D) each in float32, divided as strips.h says and summed as gelu_sum_of_squares sums.
// `parts` and `other_parts` hold MOST_SIMDGROUPS * LANES * VECTOR numbers.
template <int VECTOR, typename Hidden, typename Cotangent, typename Products, typename Sums, typename Parts>
FUNCTION void gelu_grn_sums(
    Hidden hidden, int pixels, int channels, Cotangent cotangent, Products products, Sums sums, Parts parts,
    Parts other_parts, uint thread_index, uint threads, uint channel_group, uint strip, uint strips, uint image) {
  const uint simdgroups = threads / LANES;
  const uint part = strip * simdgroups + thread_index / LANES;
  const uint width = LANES * uint(VECTOR);
  const uint own = thread_index % LANES * uint(VECTOR);
  const int channel = int(channel_group * width + own);
  float product[VECTOR];
  float sum[VECTOR];
  UNROLL for (int v = 0; v < VECTOR; ++v) {
    product[v] = 0.0f;
    sum[v] = 0.0f;
  }
  const int end = channel < channels ? first_pixel(pixels, part + 1, strips * simdgroups) : 0;
  for (int pixel = first_pixel(pixels, part, strips * simdgroups); pixel < end; pixel += AHEAD) {
    const size_t first = (size_t(image) * size_t(pixels) + size_t(pixel)) * size_t(channels) + size_t(channel);
    float values[AHEAD][VECTOR];
    float gradients[AHEAD][VECTOR];
    load_ahead<VECTOR>(hidden, first, end - pixel, channels, values);
    load_ahead<VECTOR>(cotangent, first, end - pixel, channels, gradients);
    UNROLL for (int i = 0; i < AHEAD; ++i) {
      UNROLL for (int v = 0; v < VECTOR; ++v) {
        const float gradient = pixel + i < end ? gradients[i][v] : 0.0f;
        const float value = pixel + i < end ? gelu(values[i][v]) : 0.0f;
        product[v] = multiply_add(gradient, value, product[v]);
        sum[v] += gradient;
      }
    }
  }
  UNROLL for (int v = 0; v < VECTOR; ++v) {
    parts[thread_index / LANES * width + own + uint(v)] = product[v];
    other_parts[thread_index / LANES * width + own + uint(v)] = sum[v];
  }
  wait_for_threadgroup();
  const int summed = int(channel_group * width + thread_index);
  if (thread_index < width && summed < channels) {
    float total = 0.0f;
    float other_total = 0.0f;
    for (uint simdgroup = 0; simdgroup < simdgroups; ++simdgroup) {
      total += parts[simdgroup * width + thread_index];
      other_total += other_parts[simdgroup * width + thread_index];
    }
    const size_t place = (size_t(image) * size_t(strips) + size_t(strip)) * size_t(channels) + size_t(summed);
    products[place] = total;
    sums[place] = other_total;
  }
}

// GELU's sums of squares and those products (N, strips, D), GRN's weight (D,) -> for each channel of each image s, what
// multiplies a in its gradient, and weight's gradient: (N, D) in float32. One threadgroup for each image.
template <
    typename Squares, typename Products, typename Weight, typename Scale, typename Through, typename OfWeight,
    typename Totals>
FUNCTION void grn_gradient(
    Squares squares, int strips, int channels, Products products, Weight weight, Scale scale, Through through,
    OfWeight of_weight, Totals totals, uint thread_index, uint threads, uint image) {
  float own[2] = {0.0f, 0.0f};  // the sums of the norms and of u * norm
  const size_t first = size_t(image) * size_t(channels);
  for (int channel = int(thread_index); channel < channels; channel += int(threads)) {
    float square = 0.0f;
    float product = 0.0f;
    for (int strip = 0; strip < strips; ++strip) {
      const size_t place = (size_t(image) * size_t(strips) + size_t(strip)) * size_t(channels) + size_t(channel);
      square += squares[place];
      product += products[place];
    }
    const float norm = square_root(larger(square, 1.1754944e-38f));  // the floor is the plain version's
    // Read again below by the thread that wrote them.
    scale[first + size_t(channel)] = norm;
    through[first + size_t(channel)] = square > 1.1754944e-38f ? 1.0f / norm : 0.0f;  // at the floor no gradient
    of_weight[first + size_t(channel)] = product;
    own[0] += norm;
    own[1] = multiply_add(float(weight[channel]) * product, norm, own[1]);
  }
  share<2>(
      sum_over_threads<2>(own, totals, thread_index, threads) / float(channels), own, totals, thread_index);
  const float mean = own[0] + 1e-6f;
  const float through_mean = own[1] / mean;
  for (int channel = int(thread_index); channel < channels; channel += int(threads)) {
    const float norm = scale[first + size_t(channel)];
    const float product = of_weight[first + size_t(channel)];
    const float factor = float(weight[channel]);
    scale[first + size_t(channel)] = multiply_add(factor, norm / mean, 1.0f);
    through[first + size_t(channel)] *= (factor * product - through_mean) / mean;
    of_weight[first + size_t(channel)] = product * (norm / mean);
  }
}

// The gradient of hidden (N, P, D), from scale and through (N, D), divided as strips.h says.
template <typename T, int VECTOR, typename Hidden, typename Cotangent, typename Scale, typename Through, typename Output>
FUNCTION void gelu_grn_gradient(
    Hidden hidden, int pixels, int channels, Cotangent cotangent, Scale scale, Through through, Output output,
    uint thread_index, uint threads, uint channel_group, uint strip, uint strips, uint image) {
  const uint simdgroups = threads / LANES;
  const uint part = strip * simdgroups + thread_index / LANES;
  const int channel = int((channel_group * LANES + thread_index % LANES) * uint(VECTOR));
  if (channel >= channels) {
    return;
  }
  float factor[VECTOR];
  float through_factor[VECTOR];
  UNROLL for (int v = 0; v < VECTOR; ++v) {
    factor[v] = scale[size_t(image) * size_t(channels) + size_t(channel + v)];
    through_factor[v] = through[size_t(image) * size_t(channels) + size_t(channel + v)];
  }
  const int end = first_pixel(pixels, part + 1, strips * simdgroups);
  for (int pixel = first_pixel(pixels, part, strips * simdgroups); pixel < end; pixel += AHEAD) {
    const size_t first = (size_t(image) * size_t(pixels) + size_t(pixel)) * size_t(channels) + size_t(channel);
    float values[AHEAD][VECTOR];
    float gradients[AHEAD][VECTOR];
    load_ahead<VECTOR>(hidden, first, end - pixel, channels, values);
    load_ahead<VECTOR>(cotangent, first, end - pixel, channels, gradients);
    UNROLL for (int i = 0; i < AHEAD; ++i) {
      if (pixel + i < end) {
        UNROLL for (int v = 0; v < VECTOR; ++v) {
          float derivative = 0.0f;
          const float value = gelu_and_derivative(values[i][v], derivative);
          const float of_gelu = multiply_add(gradients[i][v], factor[v], value * through_factor[v]);
          (output + first)[uint(i * channels + v)] = T(of_gelu * derivative);
        }
      }
    }
  }
}
