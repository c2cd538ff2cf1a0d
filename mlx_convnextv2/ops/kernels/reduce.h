// Sums over the threads of a threadgroup, in an order that does not change from run to run.

CONSTANT uint LANES = 32;           // of a simdgroup, or warp
CONSTANT uint MOST_SIMDGROUPS = 8;  // a threadgroup has at most 256 threads

// Each of `values` becomes its sum over all threads. `sums` holds COUNT * MOST_SIMDGROUPS numbers and is used once.
template <int COUNT, typename Sums>
FUNCTION void sum_over_threads(LOCAL float (&values)[COUNT], Sums sums, uint thread_index, uint threads) {
  const uint simdgroup = thread_index / LANES;
  UNROLL for (int i = 0; i < COUNT; ++i) {
    const float sum = sum_of_lanes(values[i]);
    if (thread_index % LANES == 0) {
      sums[uint(i) * MOST_SIMDGROUPS + simdgroup] = sum;
    }
  }
  wait_for_threadgroup();
  UNROLL for (int i = 0; i < COUNT; ++i) {
    float sum = 0.0f;
    for (uint other = 0; other < threads / LANES; ++other) {
      sum += sums[uint(i) * MOST_SIMDGROUPS + other];
    }
    values[i] = sum;
  }
}
