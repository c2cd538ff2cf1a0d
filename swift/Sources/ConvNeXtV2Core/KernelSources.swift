// Written by swift/generate.py: do not edit.

// swift-format-ignore-file

private let header0 = #"""
#define FUNCTION inline
#define CONSTANT constant constexpr const
#define LOCAL thread
#define SHARED(type, name, count) threadgroup type name[count]
#define UNROLL _Pragma("clang loop unroll(full)")
FUNCTION void wait_for_threadgroup() { threadgroup_barrier(metal::mem_flags::mem_threadgroup); }
FUNCTION float sum_of_lanes(float value) { return metal::simd_sum(value); }
FUNCTION float multiply_add(float a, float b, float c) { return metal::fma(a, b, c); }
FUNCTION float square_root(float value) { return metal::precise::sqrt(value); }
FUNCTION float inverse_square_root(float value) { return metal::precise::rsqrt(value); }
FUNCTION float exponential(float value) { return metal::precise::exp(value); }
FUNCTION float magnitude(float value) { return metal::fabs(value); }
FUNCTION float larger(float a, float b) { return metal::fmax(a, b); }
CONSTANT uint LANES = 32;
CONSTANT uint MOST_SIMDGROUPS = 8;
template <int COUNT, typename Sums>
FUNCTION float sum_over_threads(LOCAL float (&values)[COUNT], Sums sums, uint thread_index, uint threads) {
const uint lane = thread_index % LANES;
float own = 0.0f;
UNROLL for (int i = 0; i < COUNT; ++i) {
const float sum = sum_of_lanes(values[i]);
own = lane == uint(i) ? sum : own;
}
if (lane < uint(COUNT)) {
sums[thread_index / LANES * uint(COUNT) + lane] = own;
}
wait_for_threadgroup();
float sum = 0.0f;
if (thread_index < uint(COUNT)) {
for (uint simdgroup = 0; simdgroup < threads / LANES; ++simdgroup) {
sum += sums[simdgroup * uint(COUNT) + thread_index];
}
}
return sum;
}
template <int COUNT, typename Sums>
FUNCTION void share(float value, LOCAL float (&values)[COUNT], Sums sums, uint thread_index) {
if (thread_index < uint(COUNT)) {
sums[thread_index] = value;
}
wait_for_threadgroup();
UNROLL for (int i = 0; i < COUNT; ++i) {
values[i] = sums[i];
}
}
CONSTANT int KERNEL = 7;
CONSTANT int PADDING = 3;
FUNCTION int clamped(int value, int size) { return value < 0 ? 0 : value < size ? value : size - 1; }
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
uint places[COLUMNS + KERNEL - 1];
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
if (NORMALISE) {
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
"""#

private let header1 = #"""
#define FUNCTION inline
#define CONSTANT constant constexpr const
#define LOCAL thread
#define SHARED(type, name, count) threadgroup type name[count]
#define UNROLL _Pragma("clang loop unroll(full)")
FUNCTION void wait_for_threadgroup() { threadgroup_barrier(metal::mem_flags::mem_threadgroup); }
FUNCTION float sum_of_lanes(float value) { return metal::simd_sum(value); }
FUNCTION float multiply_add(float a, float b, float c) { return metal::fma(a, b, c); }
FUNCTION float square_root(float value) { return metal::precise::sqrt(value); }
FUNCTION float inverse_square_root(float value) { return metal::precise::rsqrt(value); }
FUNCTION float exponential(float value) { return metal::precise::exp(value); }
FUNCTION float magnitude(float value) { return metal::fabs(value); }
FUNCTION float larger(float a, float b) { return metal::fmax(a, b); }
CONSTANT uint LANES = 32;
CONSTANT uint MOST_SIMDGROUPS = 8;
FUNCTION float normal_tail(float a, float exponential_part) {
const float u = 1.0f / multiply_add(0.35f, a, 1.0f);
float tail = -0.029145985f;
tail = multiply_add(tail, u, 0.143971962f);
tail = multiply_add(tail, u, -0.255714793f);
tail = multiply_add(tail, u, 0.159174767f);
tail = multiply_add(tail, u, -0.0231102463f);
tail = multiply_add(tail, u, 0.105508175f);
tail = multiply_add(tail, u, 0.119832825f);
tail = multiply_add(tail, u, 0.139861875f);
tail = multiply_add(tail, u, 0.139621404f);
return tail * (u * exponential_part);
}
FUNCTION float gelu(float x) {
const float a = magnitude(x);
return x < 16.0f ? larger(x, 0.0f) - a * normal_tail(a, exponential(-0.5f * a * a)) : x;
}
CONSTANT int AHEAD = 4;
FUNCTION int first_pixel(int pixels, uint part, uint parts) {
const int length = (pixels + int(parts) - 1) / int(parts);
return int(part) * length < pixels ? int(part) * length : pixels;
}
template <int VECTOR, typename Hidden>
FUNCTION void load_ahead(
Hidden hidden, size_t first, int left, int channels, LOCAL float (&values)[AHEAD][VECTOR]) {
UNROLL for (int i = 0; i < AHEAD; ++i) {
UNROLL for (int v = 0; v < VECTOR; ++v) {
values[i][v] = float((hidden + first)[uint((i < left ? i : left - 1) * channels + v)]);
}
}
}
template <typename T, typename Output>
FUNCTION void store(Output output, size_t first, uint place, T value) {
(output + first)[place] = value;
}
template <typename T>
FUNCTION void store(int, size_t, uint, T) {}
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
sum[v] = multiply_add(float(value), float(value), sum[v]);
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
"""#

private let header2 = #"""
#define FUNCTION inline
#define CONSTANT constant constexpr const
#define LOCAL thread
#define SHARED(type, name, count) threadgroup type name[count]
#define UNROLL _Pragma("clang loop unroll(full)")
FUNCTION void wait_for_threadgroup() { threadgroup_barrier(metal::mem_flags::mem_threadgroup); }
FUNCTION float sum_of_lanes(float value) { return metal::simd_sum(value); }
FUNCTION float multiply_add(float a, float b, float c) { return metal::fma(a, b, c); }
FUNCTION float square_root(float value) { return metal::precise::sqrt(value); }
FUNCTION float inverse_square_root(float value) { return metal::precise::rsqrt(value); }
FUNCTION float exponential(float value) { return metal::precise::exp(value); }
FUNCTION float magnitude(float value) { return metal::fabs(value); }
FUNCTION float larger(float a, float b) { return metal::fmax(a, b); }
CONSTANT uint LANES = 32;
CONSTANT uint MOST_SIMDGROUPS = 8;
template <int COUNT, typename Sums>
FUNCTION float sum_over_threads(LOCAL float (&values)[COUNT], Sums sums, uint thread_index, uint threads) {
const uint lane = thread_index % LANES;
float own = 0.0f;
UNROLL for (int i = 0; i < COUNT; ++i) {
const float sum = sum_of_lanes(values[i]);
own = lane == uint(i) ? sum : own;
}
if (lane < uint(COUNT)) {
sums[thread_index / LANES * uint(COUNT) + lane] = own;
}
wait_for_threadgroup();
float sum = 0.0f;
if (thread_index < uint(COUNT)) {
for (uint simdgroup = 0; simdgroup < threads / LANES; ++simdgroup) {
sum += sums[simdgroup * uint(COUNT) + thread_index];
}
}
return sum;
}
template <int COUNT, typename Sums>
FUNCTION void share(float value, LOCAL float (&values)[COUNT], Sums sums, uint thread_index) {
if (thread_index < uint(COUNT)) {
sums[thread_index] = value;
}
wait_for_threadgroup();
UNROLL for (int i = 0; i < COUNT; ++i) {
values[i] = sums[i];
}
}
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
const float norm = square_root(larger(sum, 1.1754944e-38f));
scale[first + size_t(channel)] = norm;
own_norms[0] += norm;
}
share<1>(sum_over_threads<1>(own_norms, totals, thread_index, threads), own_norms, totals, thread_index);
const float mean = own_norms[0] / float(channels) + 1e-6f;
for (int channel = int(thread_index); channel < channels; channel += int(threads)) {
const float norm = scale[first + size_t(channel)];
scale[first + size_t(channel)] = multiply_add(float(weight[channel]), norm / mean, 1.0f);
}
}
"""#

private let header3 = #"""
#define FUNCTION inline
#define CONSTANT constant constexpr const
#define LOCAL thread
#define SHARED(type, name, count) threadgroup type name[count]
#define UNROLL _Pragma("clang loop unroll(full)")
FUNCTION void wait_for_threadgroup() { threadgroup_barrier(metal::mem_flags::mem_threadgroup); }
FUNCTION float sum_of_lanes(float value) { return metal::simd_sum(value); }
FUNCTION float multiply_add(float a, float b, float c) { return metal::fma(a, b, c); }
FUNCTION float square_root(float value) { return metal::precise::sqrt(value); }
FUNCTION float inverse_square_root(float value) { return metal::precise::rsqrt(value); }
FUNCTION float exponential(float value) { return metal::precise::exp(value); }
FUNCTION float magnitude(float value) { return metal::fabs(value); }
FUNCTION float larger(float a, float b) { return metal::fmax(a, b); }
CONSTANT uint LANES = 32;
CONSTANT uint MOST_SIMDGROUPS = 8;
FUNCTION float normal_tail(float a, float exponential_part) {
const float u = 1.0f / multiply_add(0.35f, a, 1.0f);
float tail = -0.029145985f;
tail = multiply_add(tail, u, 0.143971962f);
tail = multiply_add(tail, u, -0.255714793f);
tail = multiply_add(tail, u, 0.159174767f);
tail = multiply_add(tail, u, -0.0231102463f);
tail = multiply_add(tail, u, 0.105508175f);
tail = multiply_add(tail, u, 0.119832825f);
tail = multiply_add(tail, u, 0.139861875f);
tail = multiply_add(tail, u, 0.139621404f);
return tail * (u * exponential_part);
}
FUNCTION float gelu(float x) {
const float a = magnitude(x);
return x < 16.0f ? larger(x, 0.0f) - a * normal_tail(a, exponential(-0.5f * a * a)) : x;
}
CONSTANT int AHEAD = 4;
FUNCTION int first_pixel(int pixels, uint part, uint parts) {
const int length = (pixels + int(parts) - 1) / int(parts);
return int(part) * length < pixels ? int(part) * length : pixels;
}
template <int VECTOR, typename Hidden>
FUNCTION void load_ahead(
Hidden hidden, size_t first, int left, int channels, LOCAL float (&values)[AHEAD][VECTOR]) {
UNROLL for (int i = 0; i < AHEAD; ++i) {
UNROLL for (int v = 0; v < VECTOR; ++v) {
values[i][v] = float((hidden + first)[uint((i < left ? i : left - 1) * channels + v)]);
}
}
}
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
"""#

extension KernelSource {
    package static let depthwiseLayerNormResidual = KernelSource(
        name: "convnextv2_depthwise_layer_norm_residual",
        inputs: ["pixels", "taps", "bias", "norm_weight", "norm_bias", "epsilon", "residual_bias"],
        outputs: ["output", "residual"],
        header: header0,
        source: #"""
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint threads = threads_per_threadgroup.x;
  const uint3 group = threadgroup_position_in_grid;
  SHARED(float, sums, ROWS * COLUMNS * MOST_SIMDGROUPS);
  SHARED(float, square_sums, ROWS * COLUMNS * MOST_SIMDGROUPS);
  depthwise_layer_norm<T, CHANNELS_PER_THREAD, ROWS, COLUMNS, true, true>(
      pixels, pixels_shape[1], pixels_shape[2], pixels_shape[3], taps, bias, norm_weight, norm_bias, epsilon,
      residual_bias, output, residual, sums, square_sums, thread_index, threads,
      group.x, group.y);
"""#)
}

extension KernelSource {
    package static let geluSumOfSquares = KernelSource(
        name: "convnextv2_gelu_sum_of_squares",
        inputs: ["hidden"],
        outputs: ["output", "sums"],
        header: header1,
        source: #"""
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint threads = threads_per_threadgroup.x;
  const uint3 group = threadgroup_position_in_grid;
  const uint3 groups = threadgroups_per_grid;
  SHARED(float, parts, MOST_SIMDGROUPS * LANES * VECTOR);
  gelu_sum_of_squares<T, VECTOR>(
      hidden, hidden_shape[1], hidden_shape[2], output, sums, parts, thread_index,
      threads, group.x, group.y, groups.y, group.z);
"""#)
}

extension KernelSource {
    package static let sumOfSquaresOfGelu = KernelSource(
        name: "convnextv2_sum_of_squares_of_gelu",
        inputs: ["hidden"],
        outputs: ["sums"],
        header: header1,
        source: #"""
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint threads = threads_per_threadgroup.x;
  const uint3 group = threadgroup_position_in_grid;
  const uint3 groups = threadgroups_per_grid;
  SHARED(float, parts, MOST_SIMDGROUPS * LANES * VECTOR);
  gelu_sum_of_squares<T, VECTOR>(
      hidden, hidden_shape[1], hidden_shape[2], 0, sums, parts, thread_index,
      threads, group.x, group.y, groups.y, group.z);
"""#)
}

extension KernelSource {
    package static let grnScale = KernelSource(
        name: "convnextv2_grn_scale",
        inputs: ["sums", "weight"],
        outputs: ["scale"],
        header: header2,
        source: #"""
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint threads = threads_per_threadgroup.x;
  const uint3 group = threadgroup_position_in_grid;
  SHARED(float, totals, MOST_SIMDGROUPS);
  grn_scale(sums, sums_shape[1], sums_shape[2], weight, scale, totals, thread_index, threads, group.x);
"""#)
}

extension KernelSource {
    package static let geluScaled = KernelSource(
        name: "convnextv2_gelu_scaled",
        inputs: ["hidden", "scale"],
        outputs: ["output"],
        header: header3,
        source: #"""
  const uint thread_index = thread_position_in_threadgroup.x;
  const uint threads = threads_per_threadgroup.x;
  const uint3 group = threadgroup_position_in_grid;
  const uint3 groups = threadgroups_per_grid;
  gelu_scaled<T, VECTOR>(
      hidden, hidden_shape[1], hidden_shape[2], scale, output, thread_index, threads, group.x, group.y, groups.y,
      group.z);
"""#)
}
