// SPDX-License-Identifier: Apache-2.0
// The memory shared with the kernel, and the calls that say what changed in it.
#include "ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

namespace kt::kvcache {
namespace {

[[noreturn]] void refuse(int error) {
  throw std::system_error(error, std::generic_category(), "io_uring");
}

}  // namespace

Ring::File::~File() {
  if (fd >= 0) ::close(fd);
}

Ring::Mapping::~Mapping() {
  if (data != nullptr) ::munmap(data, size);
}

void Ring::Mapping::map(const File& file, size_t num_bytes, uint64_t what) {
  void* at = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.fd,
                    static_cast<off_t>(what));
  if (at == MAP_FAILED) refuse(errno);
  data = static_cast<std::byte*>(at), size = num_bytes;
  ::madvise(at, num_bytes, MADV_DONTFORK);  // a child must not move our indices
}

#if defined(IORING_FEAT_RW_CUR_POS)  // headers of Linux 5.6

namespace {

// From 5.6 on, which first had plain reads and writes (IORING_OP_READ); the two others are older.
constexpr uint32_t kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS;
// Of one entry, whose length has 32 bits; the rest goes on as after any short call.
constexpr size_t kMostBytes = 1 << 30;

}  // namespace

Ring::Ring(uint32_t entries) {
  io_uring_params params{};
  file_.fd = static_cast<int>(::syscall(__NR_io_uring_setup, entries, &params));
  if (file_.fd < 0) refuse(errno);
  if ((params.features & kNeeded) != kNeeded) refuse(ENOSYS);
  const size_t submissions = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  const size_t completions = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  rings_.map(file_, std::max(submissions, completions), IORING_OFF_SQ_RING);
  entries_.map(file_, params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);

  const auto at = [this](uint32_t offset) {
    return reinterpret_cast<uint32_t*>(rings_.data + offset);
  };
  submit_tail_ = at(params.sq_off.tail), submit_mask_ = *at(params.sq_off.ring_mask);
  ended_head_ = at(params.cq_off.head), ended_tail_ = at(params.cq_off.tail);
  ended_mask_ = *at(params.cq_off.ring_mask);
  ended_ = rings_.data + params.cq_off.cqes;
  for (uint32_t i = 0; i < params.sq_entries; ++i) at(params.sq_off.array)[i] = i;
}

int Ring::enter(uint32_t to_submit, uint32_t min_ended, uint32_t flags) {
  for (;;) {
    const long done =
        ::syscall(__NR_io_uring_enter, file_.fd, to_submit, min_ended, flags, nullptr, 0);
    if (done >= 0) return static_cast<int>(done);
    if (errno != EINTR) return -errno;
  }
}

bool Ring::submit(const Transfer& transfer, void* tag) {
  // What goes through the page cache is a copy made within the call: let the kernel's own threads
  // make it, or all such copies would wait for each other here.
  const int mode = ::fcntl(transfer.fd, F_GETFL);
  const bool direct = mode >= 0 && (mode & O_DIRECT) != 0;
  const std::lock_guard lock(submitting_);
  const uint32_t tail = *submit_tail_;
  io_uring_sqe& entry = reinterpret_cast<io_uring_sqe*>(entries_.data)[tail & submit_mask_];
  entry = {};
  entry.opcode = transfer.is_read ? IORING_OP_READ : IORING_OP_WRITE;
  entry.flags = direct ? 0 : IOSQE_ASYNC;
  entry.fd = transfer.fd;
  entry.addr = reinterpret_cast<uintptr_t>(transfer.data);
  entry.len = static_cast<uint32_t>(std::min(transfer.size, kMostBytes));
  entry.off = transfer.offset;
  entry.user_data = reinterpret_cast<uintptr_t>(tag);
  __atomic_store_n(submit_tail_, tail + 1, __ATOMIC_RELEASE);
  if (enter(1, 0, 0) == 1) return true;
  __atomic_store_n(submit_tail_, tail, __ATOMIC_RELEASE);  // not seen: the kernel looks in calls
  return false;
}

void Ring::wait(std::vector<Ended>& ended) {
  uint32_t head = *ended_head_, tail;
  while ((tail = __atomic_load_n(ended_tail_, __ATOMIC_ACQUIRE)) == head)
    enter(0, 1, IORING_ENTER_GETEVENTS);
  // What their submitters wrote before is seen from here on: the order is the kernel's, but the
  // memory model knows only this.
  static_cast<void>(__atomic_load_n(submit_tail_, __ATOMIC_ACQUIRE));
  for (; head != tail; ++head) {
    const auto& done = reinterpret_cast<const io_uring_cqe*>(ended_)[head & ended_mask_];
    ended.push_back({reinterpret_cast<void*>(static_cast<uintptr_t>(done.user_data)), done.res});
  }
  __atomic_store_n(ended_head_, head, __ATOMIC_RELEASE);
}

#else

Ring::Ring(uint32_t) { refuse(ENOSYS); }
bool Ring::submit(const Transfer&, void*) { return false; }
void Ring::wait(std::vector<Ended>&) {}

#endif

}  // namespace kt::kvcache
