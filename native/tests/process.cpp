// What a process can do that streams and threads do not survive: `process late FOLDER` uses MLX before it opens its
// classifier, in the same thread and in another; `process fork FOLDER` uses the classifier of its parent and opens one;
// `process exit FOLDER` ends while other threads classify.

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>

#include "convnextv2.h"
#include "mlx/mlx.h"

namespace {

void report(convnextv2_status status) {
  std::printf("%d %s\n", static_cast<int>(status), status == CONVNEXTV2_OK ? "" : convnextv2_message());
  std::fflush(stdout);
}

convnextv2_status classify(const convnextv2_classifier* classifier) {
  static const std::vector<std::uint8_t> pixels(48);
  const convnextv2_image image{pixels.data(), 4, 4, 12, 3};
  convnextv2_prediction prediction;
  std::size_t found = 0;
  return convnextv2_classify(classifier, &image, &prediction, 1, &found);
}

bool slow = false;

// Runs after everything static is destroyed, MLX's too.
__attribute__((destructor)) void end_slowly() {
  if (slow) usleep(200000);
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  convnextv2_classifier* classifier = nullptr;
  if (std::strcmp(words[1], "late") == 0) {
    mlx::core::eval(mlx::core::ones({3}) + mlx::core::array(1.0F));
    const int first = mlx::core::new_stream(mlx::core::Device::cpu).index;
    report(convnextv2_open(words[2], &classifier));
    std::thread([&] { report(convnextv2_open(words[2], &classifier)); }).join();
    return mlx::core::new_stream(mlx::core::Device::cpu).index - first <= 2 ? 0 : 1;  // no stream for each failure
  }
  report(convnextv2_open(words[2], &classifier));
  if (std::strcmp(words[1], "exit") == 0) {
    for (int i = 0; i < 4; ++i) {
      std::thread([classifier] {
        while (classify(classifier) == CONVNEXTV2_OK) continue;
      }).detach();
    }
    usleep(50000);
    slow = true;
    return 0;
  }
  const pid_t child = fork();
  if (child == 0) {
    report(classify(classifier));
    convnextv2_close(classifier);
    report(convnextv2_open(words[2], &classifier));
    _exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  convnextv2_close(classifier);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
