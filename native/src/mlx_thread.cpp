#include "mlx_thread.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <optional>
#include <string>

#include "convnextv2/error.hpp"

namespace convnextv2 {

struct MlxThread::Task {
  const std::function<void()>& body;
  std::optional<Error> error;  // a value, so that no exception object is shared by two threads
  bool done = false;
};

MlxThread& MlxThread::instance() {
  static MlxThread* const thread = new MlxThread;  // never destroyed: its streams could not be made again
  return *thread;
}

MlxThread::MlxThread() : process_(getpid()) {
  std::thread([this] { work(); }).detach();
}

void MlxThread::run(const std::function<void()>& body) {
  if (getpid() != process_) {
    throw Error(
        CONVNEXTV2_FAILED,
        "MLX was used before this process was forked and cannot be used after it: fork before anything is opened");
  }
  Task task{body, std::nullopt};
  std::unique_lock lock(mutex_);
  if (ending_ != std::thread::id() && ending_ != std::this_thread::get_id()) {
    throw Error(CONVNEXTV2_FAILED, "the process is ending");
  }
  tasks_.push(&task);
  changed_.notify_all();
  changed_.wait(lock, [&task] { return task.done; });
  if (task.error) throw *task.error;
}

void MlxThread::finish_at_exit() {
  [[maybe_unused]] static const int registered = std::atexit([] { instance().finish(); });
}

void MlxThread::finish() {
  if (getpid() != process_) return;
  std::unique_lock lock(mutex_);
  ending_ = std::this_thread::get_id();
  changed_.wait(lock, [this] { return tasks_.empty(); });
}

void MlxThread::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !tasks_.empty(); });
    Task& task = *tasks_.front();
    lock.unlock();
    try {
      task.body();
    } catch (const Error& error) {
      task.error.emplace(error.status(), error.what());
    } catch (const std::bad_alloc&) {
      task.error.emplace(CONVNEXTV2_NO_MEMORY, "there is not enough memory");
    } catch (const std::exception& error) {
      std::string message = std::string("MLX: ") + error.what();
      std::replace(message.begin(), message.end(), '\n', ' ');
      task.error.emplace(CONVNEXTV2_FAILED, message);
    } catch (...) {
      task.error.emplace(CONVNEXTV2_FAILED, "MLX: an unknown error");
    }
    lock.lock();
    tasks_.pop();
    task.done = true;
    changed_.notify_all();
  }
}

}  // namespace convnextv2
