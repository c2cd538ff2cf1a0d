// The names of the Metal standard library that dialect_metal.h may use, to compile it without a Mac.
#pragma once
#define kernel
#define device
#define constant
#define thread
#define threadgroup
#define double DOUBLE_IS_NOT_A_TYPE_OF_METAL
typedef unsigned int uint;
typedef __SIZE_TYPE__ size_t;
struct uint3 {
  uint x, y, z;
};
typedef _Float16 float16_t;
namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags flags);
float simd_sum(float value);
float fma(float a, float b, float c);
float fabs(float value);
float fmax(float a, float b);
namespace precise {
float exp(float value);
float sqrt(float value);
float rsqrt(float value);
}  // namespace precise
}  // namespace metal
using namespace metal;
