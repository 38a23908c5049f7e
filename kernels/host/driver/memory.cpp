// Memory of the emulated GPUs.
//
// Every allocation ends at a page that must not be touched, and holds NaN until it is written.
#include "memory.h"
#include "faults.h"
#include "order.h"
#include "pool.h"
#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>

namespace {

/// An allocation: the pages it lies in, and how many bytes were asked for.
struct Pages {
    char* base;
    size_t size, bytes;
};

std::mutex lock;
std::map<uintptr_t, Pages> memory;

int allocate(uint64_t* at, size_t bytes) {
    if (const int fault = faulted()) return fault;
    if (bytes == 0) return INVALID; // as CUDA does
    const std::lock_guard guard(lock);
    const size_t held = (bytes + 15) / 16 * 16, whole = (held + PAGE - 1) / PAGE * PAGE;
    if (!pool_take(bytes)) return OUT_OF_MEMORY;
    auto* base =
        static_cast<char*>(mmap(nullptr, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(base + whole, PAGE, PROT_NONE);
    memset(base, 0xFF, whole);
    *at = reinterpret_cast<uint64_t>(base + whole - held);
    memory[*at] = {base, whole + PAGE, bytes};
    return 0;
}

int release(uint64_t at) {
    const std::lock_guard guard(lock);
    const auto found = memory.find(at);
    if (found == memory.end()) return INVALID;
    munmap(found->second.base, found->second.size);
    pool_give(found->second.bytes);
    memory.erase(found);
    return 0;
}

} // namespace

extern "C" {
int cuMemGetInfo_v2(size_t* free, size_t* all) {
    *free = memory_size() - pool_reserved(), *all = memory_size();
    return 0;
}
int cuMemAllocAsync(uint64_t* at, size_t bytes, void* stream) {
    const int status = allocate(at, bytes);
    if (!status) born(*at, bytes, "cuMemAllocAsync", stream);
    return status;
}
int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    const int status = allocate(at, bytes);
    if (!status) born(*at, bytes, "cuMemAlloc");
    return status;
}
int cuMemFreeAsync(uint64_t at, void* stream) {
    dies(at, "cuMemFreeAsync", stream);
    return release(at);
}
int cuMemFree_v2(uint64_t at) {
    dies(at, "cuMemFree");
    return release(at);
}
}
