// Executes every thread of every threadgroup of a kernel on a CPU, each as a fiber, in an order shuffled by a seed.
//
// Between two barriers the fibers of a threadgroup run one after another; at a barrier and at a sum over the lanes of a
// simdgroup they wait for each other. Threadgroup memory begins unwritten and remembers who touched each number since
// the last barrier, so that a missing barrier is found in whatever order the fibers run; device memory is malloc's, for
// the address sanitizer to guard, and outputs begin as NaN.
//
//     machine CASE OUTPUTS

#define _XOPEN_SOURCE 700
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SWITCHES_ARE_ANNOUNCED 1
#endif

struct uint3 {
  unsigned int x, y, z;
};

// Generated beside the kernel: runs one thread.
void run_thread(
    void** buffers, uint3 thread_position_in_threadgroup, uint3 threadgroup_position_in_grid,
    uint3 threadgroups_per_grid, uint3 threads_per_threadgroup);

namespace {

constexpr unsigned int LANES = 32;
constexpr std::size_t STACK_BYTES = 256 * 1024;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "fault: %s\n", message.c_str());
  std::_Exit(3);
}

enum class State { runnable, at_barrier, at_lane_sum, finished };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  State state = State::runnable;
  float lane_value = 0;
};

struct Access {
  unsigned int thread = 0;
  long epoch = -1;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_bytes = 0;
unsigned int current = 0;
long epoch = 0;  // barriers passed by this threadgroup

void** buffers = nullptr;
uint3 group, groups, threads;

void before_switch(void** fake_stack, const void* stack, std::size_t bytes) {
#ifdef SWITCHES_ARE_ANNOUNCED
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#else
  (void)fake_stack, (void)stack, (void)bytes;
#endif
}

void after_switch(void* fake_stack, const void** stack, std::size_t* bytes) {
#ifdef SWITCHES_ARE_ANNOUNCED
  __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
#else
  (void)fake_stack, (void)stack, (void)bytes;
#endif
}

void wait_as(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  before_switch(state == State::finished ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&fiber.context, &scheduler);
  after_switch(fiber.fake_stack, nullptr, nullptr);
}

void body() {
  after_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  run_thread(buffers, uint3{current, 0, 0}, group, groups, threads);
  wait_as(State::finished);
}

void resume(unsigned int index) {
  current = index;
  Fiber& fiber = fibers[index];
  before_switch(&scheduler_fake_stack, fiber.stack.get(), STACK_BYTES);
  swapcontext(&scheduler, &fiber.context);
  after_switch(scheduler_fake_stack, nullptr, nullptr);
}

// The sum over the lanes of a simdgroup, by halves, once all of its lanes wait for it.
bool sum_simdgroup(unsigned int first) {
  bool any = false, all = true;
  for (unsigned int lane = first; lane < first + LANES; ++lane) {
    any |= fibers[lane].state == State::at_lane_sum;
    all &= fibers[lane].state == State::at_lane_sum;
  }
  if (!any || !all) return false;
  float values[LANES];
  for (unsigned int lane = 0; lane < LANES; ++lane) values[lane] = fibers[first + lane].lane_value;
  for (unsigned int half = LANES / 2; half > 0; half /= 2) {
    for (unsigned int lane = 0; lane < half; ++lane) values[lane] += values[lane + half];
  }
  for (unsigned int lane = first; lane < first + LANES; ++lane) {
    fibers[lane].lane_value = values[0];
    fibers[lane].state = State::runnable;
  }
  return true;
}

unsigned int count(State state) {
  return static_cast<unsigned int>(
      std::count_if(fibers.begin(), fibers.end(), [state](const Fiber& fiber) { return fiber.state == state; }));
}

void begin(Fiber& fiber) {
  fiber.state = State::runnable;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = STACK_BYTES;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, body, 0);
}

void run_threadgroup(std::mt19937& shuffle) {
  epoch = 0;
  for (Fiber& fiber : fibers) begin(fiber);
  std::vector<unsigned int> order(threads.x);
  std::iota(order.begin(), order.end(), 0u);
  while (count(State::finished) < threads.x) {
    std::shuffle(order.begin(), order.end(), shuffle);
    bool progress = false;
    for (unsigned int index : order) {
      if (fibers[index].state == State::runnable) {
        resume(index);
        progress = true;
      }
    }
    for (unsigned int first = 0; first < threads.x; first += LANES) progress |= sum_simdgroup(first);
    if (count(State::at_barrier) == threads.x) {
      for (Fiber& fiber : fibers) fiber.state = State::runnable;
      ++epoch;
      progress = true;
    }
    if (!progress) fail("some threads wait at a barrier or a sum over lanes that others do not reach");
  }
}

std::uint64_t read_number(std::FILE* file) {
  std::uint64_t number = 0;
  if (std::fread(&number, sizeof number, 1, file) != 1) fail("the case is cut short");
  return number;
}

uint3 read_uint3(std::FILE* file) {
  const auto x = static_cast<unsigned int>(read_number(file));
  const auto y = static_cast<unsigned int>(read_number(file));
  return uint3{x, y, static_cast<unsigned int>(read_number(file))};
}

}  // namespace

namespace machine {

struct Memory {
  std::vector<float> values;
  std::vector<bool> written;
  std::vector<Access> last_write, last_read, other_read;  // other_read: by a second thread, since the barrier
};

namespace {

std::map<const void*, Memory> memories;

std::size_t checked(const Memory* memory, long index) {
  if (index < 0 || static_cast<std::size_t>(index) >= memory->values.size()) {
    fail("threadgroup memory is accessed out of bounds, at " + std::to_string(index));
  }
  return static_cast<std::size_t>(index);
}

bool by_another(const Access& access) { return access.epoch == epoch && access.thread != current; }

}  // namespace

Memory* shared(const void* declaration, std::size_t count) {
  Memory& memory = memories[declaration];
  if (memory.values.empty()) {
    memory = Memory{
        std::vector<float>(count, std::nanf("")), std::vector<bool>(count, false), std::vector<Access>(count),
        std::vector<Access>(count), std::vector<Access>(count)};
  }
  return &memory;
}

float read(Memory* memory, long index) {
  const std::size_t i = checked(memory, index);
  if (!memory->written[i]) fail("threadgroup memory is read before it is written, at " + std::to_string(index));
  if (by_another(memory->last_write[i])) {
    fail("threadgroup memory is read with no barrier after another thread's write, at " + std::to_string(index));
  }
  if (by_another(memory->last_read[i])) memory->other_read[i] = memory->last_read[i];
  memory->last_read[i] = Access{current, epoch};
  return memory->values[i];
}

void write(Memory* memory, long index, float value) {
  const std::size_t i = checked(memory, index);
  if (by_another(memory->last_write[i]) || by_another(memory->last_read[i]) || by_another(memory->other_read[i])) {
    fail("threadgroup memory is written with no barrier after another thread's access, at " + std::to_string(index));
  }
  memory->last_write[i] = Access{current, epoch};
  memory->written[i] = true;
  memory->values[i] = value;
}

void wait_for_threadgroup(bool threadgroup_memory) {
  if (!threadgroup_memory) fail("a barrier leaves threadgroup memory out");
  wait_as(State::at_barrier);
}

float sum_of_lanes(float value) {
  fibers[current].lane_value = value;
  wait_as(State::at_lane_sum);
  return fibers[current].lane_value;
}

}  // namespace machine

// A case: seed, threadgroups (3), threads (3), number of buffers; for each buffer whether it is an input, its bytes,
// and for an input its content. All numbers are 64 bits.
int main(int, char** arguments) {
  std::FILE* file = std::fopen(arguments[1], "rb");
  if (file == nullptr) fail("there is no such case");
  std::mt19937 shuffle(static_cast<std::uint32_t>(read_number(file)));
  groups = read_uint3(file);
  threads = read_uint3(file);
  if (threads.x % LANES != 0 || threads.y != 1 || threads.z != 1) fail("threadgroups must be rows of whole simdgroups");
  std::vector<void*> pointers(read_number(file));
  std::vector<std::pair<void*, std::size_t>> outputs;
  for (void*& pointer : pointers) {
    const bool is_input = read_number(file) != 0;
    const std::size_t bytes = read_number(file);
    pointer = std::malloc(bytes);
    std::memset(pointer, 0xff, bytes);  // NaN, whichever the floating type
    if (!is_input) outputs.emplace_back(pointer, bytes);
    else if (std::fread(pointer, 1, bytes, file) != bytes) fail("the case is cut short");
  }
  std::fclose(file);

  buffers = pointers.data();
  fibers.resize(threads.x);
  for (Fiber& fiber : fibers) fiber.stack.reset(new char[STACK_BYTES]);
  const std::size_t total = std::size_t{groups.x} * groups.y * groups.z;
  std::vector<std::size_t> order(total);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), shuffle);
  for (std::size_t index : order) {
    group.x = static_cast<unsigned int>(index % groups.x);
    group.y = static_cast<unsigned int>(index / groups.x % groups.y);
    group.z = static_cast<unsigned int>(index / groups.x / groups.y);
    machine::memories.clear();
    run_threadgroup(shuffle);
  }

  std::FILE* result = std::fopen(arguments[2], "wb");
  if (result == nullptr) fail("the outputs cannot be written");
  for (const auto& [pointer, bytes] : outputs) std::fwrite(pointer, 1, bytes, result);
  std::fclose(result);
  for (void* pointer : pointers) std::free(pointer);
  return 0;
}
