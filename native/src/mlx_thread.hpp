// The thread that all of the library's MLX runs in. MLX's streams belong to threads, and a graph asks for its stream by
// number, so the thread lives as long as the process and keeps the streams that it made.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>

namespace convnextv2 {

class MlxThread {
 public:
  static MlxThread& instance();

  // Run the body in the thread, after those that came before, and wait for it. What it throws arrives as an Error.
  void run(const std::function<void()>& body);

  // Have the end of the process wait for the calls of other threads, and refuse later ones. Called once MLX has made
  // what it destroys then, so that this comes before.
  void finish_at_exit();

 private:
  struct Task;
  MlxThread();
  void work();
  void finish();

  std::mutex mutex_;
  std::condition_variable changed_;  // a task was added, or one is done
  std::queue<Task*> tasks_;          // the one at the front runs
  std::thread::id ending_;           // the thread that ends the process
  int process_;
};

}  // namespace convnextv2
