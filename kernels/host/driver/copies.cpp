// Copies and fills of the emulated driver, done at once; one that goes beyond its allocation is an error.
#include "memory.h"
#include <cstdio>
#include <cstring>

namespace {

int copy(void* to, const void* from, size_t bytes, uint64_t there) {
    if (bytes && !within(there, bytes)) {
        fprintf(stderr, "emulated driver: a copy of %zu bytes goes beyond an allocation\n", bytes);
        return INVALID;
    }
    memcpy(to, from, bytes);
    return 0;
}

} // namespace

extern "C" {
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
    return copy(pointer(to), from, bytes, to);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
    return copy(to, pointer(from), bytes, from);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) {
    if (bytes && !within(from, bytes)) return INVALID;
    return copy(pointer(to), pointer(from), bytes, to);
}
int cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, void*) {
    memcpy(pointer(to), pointer(from), bytes);
    return 0;
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void*) {
    if (!within(at, bytes)) return INVALID;
    memset(pointer(at), value, bytes);
    return 0;
}
}
