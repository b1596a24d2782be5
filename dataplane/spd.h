// The outbound policies of one device (RFC 4301 §4.4.1), found without a scan: policies with the
// same two prefix lengths share a hash table, so a lookup costs one probe for each pair of lengths
// in use, however many policies there are.
//
// One writer (the control thread), any number of readers; what was removed is freed by reclaim(),
// after a grace period.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "dataplane/event_queue.h"
#include "dataplane/inner.h"
#include "dataplane/ptr_index.h"
#include "dataplane/types.h"

namespace espalier::dataplane {

struct OutboundSa;

// A policy, shared by the devices that it applies to. What every packet needs comes first: one
// cache line.
struct alignas(64) Policy {
  Policy(PolicyId i, const PolicySpec& s) : id(i), action(s.action), matcher(s.selector), spec(s) {}
  std::atomic<OutboundSa*> sa{nullptr};  // the newest of its reqid
  PolicyId id;
  PolicyAction action;
  // Some device that the policy applies to has other end points than `sa`: they are to be compared.
  std::atomic<bool> compare_ends{false};
  SelectorMatcher matcher;
  PolicySpec spec;
  mutable EventLimiter acquires;
};

class Spd {
 public:
  Spd();
  ~Spd();
  Spd(const Spd&) = delete;
  Spd& operator=(const Spd&) = delete;

  // Any thread: the policy with the lowest priority number that matches; of equal ones the one with
  // the longer prefixes. Null if there is none.
  [[nodiscard]] const Policy* find(const InnerKey& key) const noexcept;
  // Any thread: for batches, as PtrIndex has it. First prefetch() for all, then prefetch_bucket(),
  // then find().
  void prefetch(const InnerKey& key) const noexcept;
  void prefetch_bucket(const InnerKey& key) const noexcept;

  // Control thread. `policy` must stay until removed and a grace period has passed.
  void add(const Policy& policy);
  void remove(const Policy& policy);
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  void reclaim() noexcept;

 private:
  struct Shape;   // the policies of one family and one pair of prefix lengths
  struct Bucket;  // those with the same two prefixes, by priority
  struct BucketTraits;
  using Shapes = std::vector<Shape*>;  // in the order of their best priority

  void publish(std::vector<Shape*> shapes);

  std::atomic<const Shapes*> shapes_;
  std::vector<std::unique_ptr<Shape>> owned_;
  std::size_t size_ = 0;
  std::vector<std::unique_ptr<const Shapes>> old_shapes_;
  std::vector<std::unique_ptr<Bucket>> old_buckets_;
  std::vector<std::unique_ptr<const std::vector<const Policy*>>> old_lists_;
};

}  // namespace espalier::dataplane
