// An app that uses MLX before it opens its classifier, in the same thread and in another.

#include <cstdio>
#include <thread>

#include "convnextv2.h"
#include "mlx/mlx.h"

int main(int count, char** words) {
  if (count != 2) return 2;
  mlx::core::eval(mlx::core::ones({3}) + mlx::core::array(1.0F));
  convnextv2_classifier* classifier = nullptr;
  const convnextv2_status status = convnextv2_open(words[1], &classifier);
  std::printf("%d %s\n", status, convnextv2_message());
  std::thread([&] { std::printf("%d\n", convnextv2_open(words[1], &classifier)); }).join();
  return 0;
}
