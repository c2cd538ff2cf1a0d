// What the kernels need of the language, under names of their own: CUDA.

#define FUNCTION __device__ inline
#define CONSTANT constexpr
#define LOCAL
#define SHARED(type, name, count) __shared__ type name[count]
#define UNROLL _Pragma("unroll")

typedef unsigned int uint;

FUNCTION void wait_for_threadgroup() { __syncthreads(); }
FUNCTION float sum_of_lanes(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}
FUNCTION float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
FUNCTION float square_root(float value) { return sqrtf(value); }
FUNCTION float inverse_square_root(float value) { return 1.0f / sqrtf(value); }
FUNCTION float exponential(float value) { return expf(value); }
FUNCTION float magnitude(float value) { return fabsf(value); }
FUNCTION float larger(float a, float b) { return fmaxf(a, b); }
