// The default memory pool of the emulated GPU, and what the process is told to count.
//
// As the driver documents it: free memory stays in the pool until a synchronisation, which gives back what is beyond
// the release threshold. Free pieces are not joined, so a pool may have enough memory in too small pieces, which
// cuMemPoolTrimTo gives back.
#include "pool.h"
#include "memory.h"
#include "wishes.h"
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

constexpr int THRESHOLD = 4, RESERVED = 5, RESERVED_HIGH = 6, USED = 7, USED_HIGH = 8; // CUmemPool_attribute
constexpr size_t GRAIN = 512;

std::mutex lock;
std::multiset<size_t> pieces; // free ones
size_t used = 0, used_high = 0, reserved = 0, reserved_high = 0;
uint64_t threshold = 0;
size_t takes = 0;
bool trimmed = false;
char pool;

size_t whole(size_t bytes) {
    return (bytes + GRAIN - 1) / GRAIN * GRAIN;
}

/// Gives free pieces back until the pool holds no more than `keep`.
size_t give_back(uint64_t keep) {
    size_t given = 0;
    while (reserved > keep && !pieces.empty()) {
        const auto largest = std::prev(pieces.end());
        given += *largest, reserved -= *largest;
        pieces.erase(largest);
    }
    return given;
}

/// What was counted, written at the end of the process.
struct Counts {
    std::mutex lock;
    std::map<std::string, size_t> all;
    ~Counts() {
        const char* path = getenv("EMULATED_CALLS");
        FILE* file = path ? fopen(path, "a") : nullptr;
        if (!file) return;
        for (const auto& [name, count] : all) fprintf(file, "%s %zu\n", name.c_str(), count);
        fclose(file);
    }
} counts;

} // namespace

void count_call(const char* name, size_t by) {
    const std::lock_guard guard(counts.lock);
    counts.all[name] += by;
}

size_t memory_size() {
    static const size_t size = wish("EMULATED_MEMORY", uint64_t(16) << 30);
    return size;
}

bool pool_take(size_t bytes) {
    const std::lock_guard guard(lock);
    // EMULATED_NO_ROOM=N: from the Nth allocation on the pool is in pieces that are too small, until it is trimmed.
    if (++takes >= wish("EMULATED_NO_ROOM", UINT64_MAX) && !trimmed) return false;
    const size_t need = whole(bytes);
    const auto piece = pieces.lower_bound(need);
    if (piece != pieces.end()) {
        if (*piece > need) pieces.insert(*piece - need);
        pieces.erase(piece);
    } else {
        if (reserved + need > memory_size()) return false;
        reserved += need;
    }
    used += need;
    used_high = std::max(used_high, used), reserved_high = std::max(reserved_high, reserved);
    return true;
}

void pool_give(size_t bytes) {
    const std::lock_guard guard(lock);
    used -= whole(bytes);
    pieces.insert(whole(bytes));
}

void pool_synchronized() {
    const std::lock_guard guard(lock);
    if (const size_t given = give_back(threshold)) count_call("bytes given back at a synchronisation", given);
}

size_t pool_reserved() {
    const std::lock_guard guard(lock);
    return reserved;
}

extern "C" {
int cuDeviceGetDefaultMemPool(void** out, int) {
    *out = &pool;
    return 0;
}
int cuMemPoolSetAttribute(void*, int attribute, void* value) {
    count_call("cuMemPoolSetAttribute");
    const std::lock_guard guard(lock);
    if (attribute != THRESHOLD) return INVALID;
    threshold = *static_cast<uint64_t*>(value);
    return 0;
}
int cuMemPoolGetAttribute(void*, int attribute, void* value) {
    const std::lock_guard guard(lock);
    const std::map<int, uint64_t> values = {{THRESHOLD, threshold}, {RESERVED, reserved}, {RESERVED_HIGH, reserved_high},
                                            {USED, used}, {USED_HIGH, used_high}};
    const auto found = values.find(attribute);
    if (found == values.end()) return INVALID;
    *static_cast<uint64_t*>(value) = found->second;
    return 0;
}
int cuMemPoolTrimTo(void*, size_t keep) {
    count_call("cuMemPoolTrimTo");
    const std::lock_guard guard(lock);
    trimmed = true;
    give_back(keep);
    return 0;
}
}
