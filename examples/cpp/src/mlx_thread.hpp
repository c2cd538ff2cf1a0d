// The thread that all of the library's MLX runs in. MLX's streams belong to threads, and a graph asks for its stream by
// number, so the thread lives as long as the process and keeps the streams that it made.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <queue>

namespace convnextv2 {

class MlxThread {
 public:
  static MlxThread& instance();

  // Run the body in the thread, after those that came before, and wait for it. What it throws arrives as an Error.
  void run(const std::function<void()>& body);

 private:
  struct Task;
  MlxThread();
  void work();

  std::mutex mutex_;
  std::condition_variable changed_;  // a task was added, or one is done
  std::queue<Task*> tasks_;
  int process_;
};

}  // namespace convnextv2
