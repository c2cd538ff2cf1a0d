// Many threads at once, on two classifiers, while others are opened and closed and the app uses MLX itself: every
// answer must be the one that a single thread gets. Built with ThreadSanitizer by the tests.

#include <atomic>
#include <cstdio>
#include <random>
#include <thread>

#include "convnextv2/classifier.hpp"
#include "mlx/mlx.h"

using convnextv2::Classifier;
using convnextv2::Image;

namespace {

Image noise(unsigned seed, std::size_t width, std::size_t height) {
  std::mt19937 random(seed);
  Image image{width, height, std::vector<std::uint8_t>(width * height * 3)};
  for (auto& value : image.pixels) value = static_cast<std::uint8_t>(random());
  return image;
}

bool same(const std::vector<convnextv2::Prediction>& a, const std::vector<convnextv2::Prediction>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].index != b[i].index || a[i].label != b[i].label || a[i].score != b[i].score) return false;
  }
  return true;
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  constexpr unsigned kThreads = 8, kCalls = 6;
  const Classifier classifiers[] = {Classifier(words[1]), Classifier(words[2])};
  std::vector<Image> images;
  std::vector<std::vector<convnextv2::Prediction>> expected[2];
  for (unsigned i = 0; i < kThreads; ++i) {
    images.push_back(noise(i, 20 + 7 * i, 90 - 5 * i));
    for (int c : {0, 1}) expected[c].push_back(classifiers[c].classify(images[i]));
  }
  std::atomic<unsigned> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (unsigned call = 0; call < kCalls; ++call) {
        const unsigned which = (i + call) % kThreads;
        const int c = (i + call) % 2;
        if (!same(classifiers[c].classify(images[which]), expected[c][which])) ++wrong;
        if (call == i % kCalls && !same(Classifier(words[1 + c]).classify(images[which]), expected[c][which])) ++wrong;
      }
    });
  }
  // The app's own work: MLX on a stream of this thread.
  for (int i = 0; i < 20; ++i) {
    auto sum = mlx::core::sum(mlx::core::ones({100, 100}));
    if (sum.item<float>() != 10000.0F) ++wrong;
  }
  for (auto& thread : threads) thread.join();
  std::printf("%u wrong of %u\n", wrong.load(), kThreads * (kCalls + 1));
  return wrong.load() == 0 ? 0 : 1;
}
