// What the kernels need of the language, under names of their own: Metal.

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
