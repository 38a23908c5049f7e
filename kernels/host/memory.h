// Global memory for the emulator's tests: buffers between pages that must not be touched, and buffers so long that
// indices of 32 bits do not reach their end.
#pragma once
#include "emulator.h"
#include <csignal>
#include <map>

namespace emulator {

/// Buffers that there are: where one begins, and its bytes.
inline std::map<char*, size_t> buffers;

/// `n` elements of global memory between two pages that must not be touched. They end at the second, or begin at the
/// first.
template <class T>
class Buffer {
  public:
    Buffer(size_t n, bool at_end) : n_(n) {
        const size_t page = 4096, bytes = (n * sizeof(T) + 15) / 16 * 16, whole = (bytes + page - 1) / page * page;
        size_ = whole + 2 * page;
        base_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        memset(base_, 0xFF, size_);
        mprotect(base_, page, PROT_NONE);
        mprotect(base_ + page + whole, page, PROT_NONE);
        data_ = reinterpret_cast<T*>(at_end ? base_ + page + whole - bytes : base_ + page);
        buffers[reinterpret_cast<char*>(data_)] = n * sizeof(T);
    }
    Buffer(const std::vector<T>& values, bool at_end) : Buffer(values.size(), at_end) {
        memcpy(data_, values.data(), n_ * sizeof(T));
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        buffers.erase(reinterpret_cast<char*>(data_));
        munmap(base_, size_);
    }
    T* data() { return data_; }
    std::vector<T> values() const { return std::vector<T>(data_, data_ + n_); }

  private:
    size_t n_, size_;
    char* base_;
    T* data_;
};

/// `n` elements of global memory, zero until they are written: address space, of which only the pages that are touched
/// become memory. Before it lies what a negative index of 32 bits would reach, which must not be touched, nor a page
/// after it.
template <class T>
class Sparse {
  public:
    explicit Sparse(int64_t n) {
        const size_t page = 4096, before = size_t(32) << 30, whole = (n * sizeof(T) + page - 1) / page * page;
        size_ = before + whole + page;
        base_ = static_cast<char*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (base_ == MAP_FAILED || mprotect(base_ + before, whole, PROT_READ | PROT_WRITE)) {
            fail("no address space for %lld elements", static_cast<long long>(n));
        }
        madvise(base_ + before, whole, MADV_NOHUGEPAGE); // a touched page is a page
        data_ = reinterpret_cast<T*>(base_ + before);
    }
    Sparse(const Sparse&) = delete;
    ~Sparse() { munmap(base_, size_); }
    T* data() { return data_; }

  private:
    size_t size_;
    char* base_;
    T* data_;
};

inline void on_fault(int signal, siginfo_t* info, void*) {
    if (signal == SIGILL) fail("global memory: an access is not aligned to its size");
    fail("global memory: out of bounds at %p", info->si_addr);
}

/// Makes touching a guard page a message and not a bare crash. Likewise a misaligned access, which stops a GPU, of
/// programs that are compiled with -fsanitize=alignment -fsanitize-undefined-trap-on-error.
inline void catch_faults() {
    static char stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = stack, alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    sigaction(SIGILL, &action, nullptr);
}

} // namespace emulator
