// What the text of a kernel finds in Metal, here in C++ and executed by machine.cpp: the language's words and those names
// of its standard library that dialect_metal.h may use.
//
// Nothing of the C++ library is included, so that a name which Metal lacks does not compile.

#pragma once

#define kernel
#define device
#define constant
#define thread
#define double DOUBLE_IS_NOT_A_TYPE_OF_METAL

typedef unsigned int uint;
typedef __SIZE_TYPE__ size_t;
struct uint3 {
  uint x, y, z;
};

typedef _Float16 float16_t;
struct bfloat16_t {
  unsigned short bits;
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {  // to nearest, ties to even
    const uint word = __builtin_bit_cast(uint, value);
    const uint rounded = word + 0x7fffu + ((word >> 16) & 1u);
    bits = value != value ? static_cast<unsigned short>(0x7fc0u) : static_cast<unsigned short>(rounded >> 16);
  }
  explicit operator float() const { return __builtin_bit_cast(float, static_cast<uint>(bits) << 16); }
};

// The machine: it knows which thread runs.
namespace machine {
void wait_for_threadgroup(bool threadgroup_memory);
float sum_of_lanes(float value);
// The memory of one threadgroup array, of `count` floats; the first thread of a threadgroup to come finds it unwritten.
struct Memory;
Memory* shared(const void* declaration, size_t count);
float read(Memory* memory, long index);
void write(Memory* memory, long index, float value);
}  // namespace machine

// A pointer to threadgroup memory, whose every access the machine sees.
class Shared {
 public:
  class Element {
   public:
    Element(machine::Memory* memory, long index) : memory_(memory), index_(index) {}
    operator float() const { return machine::read(memory_, index_); }
    void operator=(float value) { machine::write(memory_, index_, value); }
    void operator+=(float value) { machine::write(memory_, index_, machine::read(memory_, index_) + value); }

   private:
    machine::Memory* memory_;
    long index_;
  };
  explicit Shared(machine::Memory* memory) : memory_(memory) {}
  template <typename Index>
  Element operator[](Index index) const {
    return Element(memory_, static_cast<long>(index));
  }

 private:
  machine::Memory* memory_;
};

// In the place of the dialect's, the one line of it that is not executed here.
#define SHARED(type, name, count)       \
  static const char name##_declared = 0; \
  const Shared name(machine::shared(&name##_declared, static_cast<size_t>(count)))

namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags flags) { machine::wait_for_threadgroup(flags == mem_flags::mem_threadgroup); }
inline float simd_sum(float value) { return machine::sum_of_lanes(value); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float fabs(float value) { return __builtin_fabsf(value); }
inline float fmax(float a, float b) { return __builtin_fmaxf(a, b); }
namespace precise {
inline float exp(float value) { return __builtin_expf(value); }
inline float sqrt(float value) { return __builtin_sqrtf(value); }
inline float rsqrt(float value) { return 1.0f / __builtin_sqrtf(value); }
}  // namespace precise
}  // namespace metal
using namespace metal;
