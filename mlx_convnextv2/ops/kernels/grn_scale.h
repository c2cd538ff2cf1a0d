// Global Response Normalization's factors (section 4 of the ConvNeXt V2 paper, arXiv:2301.00808).

// sums (N, strips, D) and GRN's weight (D,) -> the factor of each channel, 1 + weight * norm / (mean of norms + 1e-6),
// (N, D) in float32. One threadgroup for each image.
template <typename Sums, typename Weight, typename Scale, typename Totals>
FUNCTION void grn_scale(
    Sums sums, int strips, int channels, Weight weight, Scale scale, Totals totals, uint thread_index, uint threads,
    uint image) {
  float own_norms[1] = {0.0f};
  const size_t first = size_t(image) * size_t(channels);
  for (int channel = int(thread_index); channel < channels; channel += int(threads)) {
    float sum = 0.0f;
    for (int strip = 0; strip < strips; ++strip) {
      sum += sums[(size_t(image) * size_t(strips) + size_t(strip)) * size_t(channels) + size_t(channel)];
    }
    const float norm = square_root(larger(sum, 1.1754944e-38f));  // the floor is the plain version's
    scale[first + size_t(channel)] = norm;  // read again below by the thread that wrote it
    own_norms[0] += norm;
  }
  share<1>(sum_over_threads<1>(own_norms, totals, thread_index, threads), own_norms, totals, thread_index);
  const float mean = own_norms[0] / float(channels) + 1e-6f;
  for (int channel = int(thread_index); channel < channels; channel += int(threads)) {
    const float norm = scale[first + size_t(channel)];
    scale[first + size_t(channel)] = multiply_add(float(weight[channel]), norm / mean, 1.0f);
  }
}
