// GELU and Global Response Normalization (section 4 of the ConvNeXt V2 paper, arXiv:2301.00808).
//
// GRN divides each channel's norm over all pixels by the mean of all channels' norms, so that three steps follow each
// other: sums of squares over strips of pixels, the channels' scales (grn_scale.h), and their use.

// Strips of equal length, the last of what is left.
FUNCTION int first_pixel(int pixels, uint strip, uint strips) {
  const int length = (pixels + int(strips) - 1) / int(strips);
  return int(strip) * length < pixels ? int(strip) * length : pixels;
}

// hidden (N, P, D), P pixels of D channels -> GELU(hidden), and the sums of its squares over each strip of pixels,
// (N, strips, D) in float32. A thread sums one channel of one strip in the order of the pixels, so that no sum depends
// on which thread comes first.
template <typename T, typename Hidden, typename Output, typename Sums>
FUNCTION void gelu_sum_of_squares(
    Hidden hidden, int pixels, int channels, Output output, Sums sums, uint channel, uint strip, uint strips,
    uint image) {
  if (int(channel) >= channels) {
    return;
  }
  float sum = 0.0f;
  const int end = first_pixel(pixels, strip + 1, strips);
  for (int pixel = first_pixel(pixels, strip, strips); pixel < end; ++pixel) {
    const size_t place = (size_t(image) * size_t(pixels) + size_t(pixel)) * size_t(channels) + size_t(channel);
    const T value = T(gelu(float(hidden[place])));
    sum = multiply_add(float(value), float(value), sum);  // of what is stored
    output[place] = value;
  }
  sums[(size_t(image) * size_t(strips) + size_t(strip)) * size_t(channels) + size_t(channel)] = sum;
}

// The sums of gelu_sum_of_squares alone, bit for bit.
template <typename T, typename Hidden, typename Sums>
FUNCTION void sum_of_squares_of_gelu(
    Hidden hidden, int pixels, int channels, Sums sums, uint channel, uint strip, uint strips, uint image) {
  if (int(channel) >= channels) {
    return;
  }
  float sum = 0.0f;
  const int end = first_pixel(pixels, strip + 1, strips);
  for (int pixel = first_pixel(pixels, strip, strips); pixel < end; ++pixel) {
    const size_t place = (size_t(image) * size_t(pixels) + size_t(pixel)) * size_t(channels) + size_t(channel);
    const float value = float(T(gelu(float(hidden[place]))));
    sum = multiply_add(value, value, sum);
  }
  sums[(size_t(image) * size_t(strips) + size_t(strip)) * size_t(channels) + size_t(channel)] = sum;
}

// GELU(hidden) times the channels' factors (N, D): (N, P, D) -> (N, P, D), a strip of pixels for each thread.
template <typename T, typename Hidden, typename Scale, typename Output>
FUNCTION void gelu_scaled(
    Hidden hidden, int pixels, int channels, Scale scale, Output output, uint channel, uint strip, uint strips,
    uint image) {
  if (int(channel) >= channels) {
    return;
  }
  const float factor = scale[size_t(image) * size_t(channels) + size_t(channel)];
  const int end = first_pixel(pixels, strip + 1, strips);
  for (int pixel = first_pixel(pixels, strip, strips); pixel < end; ++pixel) {
    const size_t place = (size_t(image) * size_t(pixels) + size_t(pixel)) * size_t(channels) + size_t(channel);
    output[place] = T(gelu(float(hidden[place])) * factor);
  }
}
