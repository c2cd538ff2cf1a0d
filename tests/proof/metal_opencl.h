// What the text of a kernel finds in Metal, here in C++ for OpenCL: address spaces are those of Metal by other names
// (`constant` and `kernel` have the same), and the library's names stand for OpenCL's.
//
// libclang reads it, which needs no OpenCL, and PoCL executes it, where LANE_VALUES is the number of all threads.

#pragma OPENCL EXTENSION cl_khr_fp16 : enable

#define device __global
#define thread __private
#define threadgroup __local

typedef unsigned int uint;
typedef __SIZE_TYPE__ size_t;
typedef uint uint3 __attribute__((ext_vector_type(3)));

typedef half float16_t;
struct bfloat16_t {
  unsigned short bits;
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {  // to nearest, ties to even
    const uint word = __builtin_bit_cast(uint, value);
    const uint rounded = word + 0x7fffu + ((word >> 16) & 1u);
    bits = value != value ? static_cast<unsigned short>(0x7fc0u) : static_cast<unsigned short>(rounded >> 16);
  }
  explicit operator float() const { return __builtin_bit_cast(float, static_cast<uint>(bits) << 16); }
  explicit operator float() const __constant { return __builtin_bit_cast(float, static_cast<uint>(bits) << 16); }
};

// OpenCL's library.
__attribute__((convergent)) void barrier(uint flags);
constant constexpr uint LOCAL_MEMORY = 1, GLOBAL_MEMORY = 2;
size_t get_local_id(uint dimension);
size_t get_local_size(uint dimension);
size_t get_group_id(uint dimension);
size_t get_num_groups(uint dimension);
#define THREE(function) (uint3)(uint(function(0)), uint(function(1)), uint(function(2)))
inline uint3 thread_of_group() { return THREE(get_local_id); }
inline uint3 threads_of_group() { return THREE(get_local_size); }
inline uint3 group_of_grid() { return THREE(get_group_id); }
inline uint3 groups_of_grid() { return THREE(get_num_groups); }
float exp(float value);
float fabs(float value);
float fma(float a, float b, float c);
float fmax(float a, float b);
float sqrt(float value);

namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags flags) { barrier(flags == mem_flags::mem_threadgroup ? LOCAL_MEMORY : 0u); }
inline float fma(float a, float b, float c) { return ::fma(a, b, c); }
inline float fabs(float value) { return ::fabs(value); }
inline float fmax(float a, float b) { return ::fmax(a, b); }
namespace precise {
inline float exp(float value) { return ::exp(value); }
inline float sqrt(float value) { return ::sqrt(value); }
inline float rsqrt(float value) { return 1.0f / ::sqrt(value); }
}  // namespace precise

#ifdef LANE_VALUES
__global float lane_values[LANE_VALUES];
inline float simd_sum(float value) {  // through memory, because PoCL knows no simdgroups
  const size_t group =
      (get_group_id(2) * get_num_groups(1) + get_group_id(1)) * get_num_groups(0) + get_group_id(0);
  const size_t first = group * get_local_size(0);
  const size_t own = get_local_id(0);
  lane_values[first + own] = value;
  barrier(GLOBAL_MEMORY);
  float sum = 0.0f;
  for (size_t lane = own / 32 * 32; lane < own / 32 * 32 + 32; ++lane) {
    sum += lane_values[first + lane];
  }
  barrier(GLOBAL_MEMORY);
  return sum;
}
#else
float simd_sum(float value);
#endif
}  // namespace metal
using namespace metal;
