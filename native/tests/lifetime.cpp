// Open, use and close over and over, with failures between: memory must not grow. Built with AddressSanitizer, whose
// leak check runs at the end, and without it, where the growth of the process is printed in bytes.

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>

#include "convnextv2.h"
#include "convnextv2/classifier.hpp"

namespace {

std::size_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::size_t pages = 0;
  file >> pages >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

void round(const char* folder, const char* broken) {
  convnextv2::Classifier first(folder);
  convnextv2::Classifier second = std::move(first);
  const auto [width, height] = std::pair(second.description().width, second.description().height);
  second.classify(convnextv2::Image{2 * width, height, std::vector<std::uint8_t>(2 * width * height * 3)});
  try {
    second.run({}, {1, 2, 3, 4});
  } catch (const convnextv2::Error&) {
  }
  convnextv2_classifier* classifier = nullptr;
  if (convnextv2_open(broken, &classifier) == CONVNEXTV2_OK) std::abort();
  if (convnextv2_open(folder, &classifier) != CONVNEXTV2_OK) std::abort();
  convnextv2_close(classifier);
}

}  // namespace

int main(int count, char** words) {
  if (count != 4) return 2;
  const int rounds = std::atoi(words[3]);
  for (int i = 0; i < 10; ++i) round(words[1], words[2]);
  const std::size_t before = resident_bytes();
  for (int i = 0; i < rounds; ++i) round(words[1], words[2]);
  std::printf("%lld\n", static_cast<long long>(resident_bytes()) - static_cast<long long>(before));
  return 0;
}
