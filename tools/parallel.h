// Work that waits for the disk, many at a time: the file system makes their syncs one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace espalier::tools {

// Calls work(0) … work(count - 1), each once, in several threads, and waits for all. Throws what
// the first one to fail threw; those that had not begun by then are left out.
template <class Work>
void in_parallel(std::size_t count, Work&& work) {
  constexpr std::size_t kThreads = 64;
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = count;
      }
    }
  };
  std::vector<std::thread> threads;
  while (threads.size() + 1 < std::min(count, kThreads)) threads.emplace_back(run);
  run();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace espalier::tools
