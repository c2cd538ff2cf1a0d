// Sums over the threads of a threadgroup, in an order that does not change from run to run.

// For the first COUNT threads, the sum over all threads of values[thread_index]; COUNT <= LANES. `sums` holds
// COUNT * MOST_SIMDGROUPS numbers and serves one sum.
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

// The first COUNT threads' values become known to all: `sums` is that of sum_over_threads, just before.
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
