// Copies and fills of the emulated driver, done at once, as operations of their streams. One that goes beyond its
// allocation is an error.
#include "memory.h"
#include "order.h"
#include <cstring>

namespace {

/// Whether it is memory that an operation can be waited for: not pageable memory of the host, which only the call
/// itself touches.
bool lasting(const void* at) {
    return allocated(reinterpret_cast<uint64_t>(at));
}

int copy(void* to, bool writes, const void* from, bool reads, size_t bytes, void* stream, const char* where) {
    Touches touches;
    if (reads) touches.read(static_cast<const char*>(from), bytes);
    if (writes) touches.write(static_cast<char*>(to), bytes);
    operation(stream, std::string("a copy ") + where, touches);
    memcpy(view(to), view(from), bytes);
    return 0;
}

} // namespace

extern "C" {
/// Of pageable memory it has a copy when it returns (CUDA Driver API, "API synchronization behavior").
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    return copy(pointer(to), true, from, lasting(from), bytes, stream, "to the GPU");
}
/// Into pageable memory it returns when that is done.
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    const bool pinned = lasting(to);
    copy(to, pinned, pointer(from), true, bytes, stream, "to the host");
    if (!pinned) host_waits(stream);
    return 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    return copy(pointer(to), true, pointer(from), true, bytes, stream, "on the GPU");
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void* stream) {
    Touches touches;
    touches.write(static_cast<char*>(pointer(at)), bytes);
    operation(stream, "a memset", touches);
    memset(pointer(at), value, bytes);
    return 0;
}
}
