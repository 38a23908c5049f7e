// A CUDA driver without a GPU: memory is this process's, streams do their work at once, kernels are those of ours.cpp and candle.cpp.
//
// With it the program for GPUs runs on a CPU, slowly: what Rust allocates, copies and launches, with which arguments, in which order.
// Every allocation ends at a page that must not be touched, and holds NaN until it is written. Streams cannot be told apart: what is
// missing between two of them does not show.
#include "launch.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>

void add_ours();
void add_candles();

namespace {

constexpr int INVALID = 1, NOT_FOUND = 500; // CUresult
constexpr size_t ALL = size_t(16) << 30, PAGE = 4096;

/// An allocation: the pages it lies in, and how many bytes were asked for.
struct Pages {
    char* base;
    size_t size, bytes;
};

std::mutex lock;
std::map<uintptr_t, Pages> memory;
size_t taken = 0;
thread_local void* current = nullptr; // context
char context, device_handle;

std::string& reason() {
    static std::string text;
    return text;
}

int allocate(uint64_t* at, size_t bytes) {
    if (bytes == 0) return INVALID; // as CUDA does
    const std::lock_guard guard(lock);
    const size_t held = (bytes + 15) / 16 * 16, whole = (held + PAGE - 1) / PAGE * PAGE;
    if (taken + bytes > ALL) return 2; // out of memory
    auto* base = static_cast<char*>(mmap(nullptr, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED) return 2;
    mprotect(base + whole, PAGE, PROT_NONE);
    memset(base, 0xFF, whole);
    *at = reinterpret_cast<uint64_t>(base + whole - held);
    memory[*at] = {base, whole + PAGE, bytes};
    taken += bytes;
    return 0;
}

int release(uint64_t at) {
    const std::lock_guard guard(lock);
    const auto found = memory.find(at);
    if (found == memory.end()) return INVALID;
    munmap(found->second.base, found->second.size);
    taken -= found->second.bytes;
    memory.erase(found);
    return 0;
}

/// Whether `bytes` from `at` on lie within one allocation.
bool within(uint64_t at, size_t bytes) {
    const std::lock_guard guard(lock);
    auto found = memory.upper_bound(at);
    if (found == memory.begin()) return false;
    --found;
    return at + bytes <= found->first + found->second.bytes;
}

int copy(void* to, const void* from, size_t bytes, uint64_t there) {
    if (bytes && !within(there, bytes)) {
        fprintf(stderr, "emulated driver: a copy of %zu bytes goes beyond an allocation\n", bytes);
        return INVALID;
    }
    memcpy(to, from, bytes);
    return 0;
}

void* pointer(uint64_t at) {
    return reinterpret_cast<void*>(at);
}

} // namespace

/// A function of the driver that nobody has needed yet.
extern "C" int emulated_driver_lacks(const char* name) {
    fprintf(stderr, "emulated driver: %s is not there\n", name);
    return 801; // not supported
}

extern "C" {
int cuInit(unsigned) {
    static std::once_flag once;
    std::call_once(once, [] { add_ours(), add_candles(); });
    return 0;
}
int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
int cuDeviceGetCount(int* count) {
    const char* wish = getenv("EMULATED_GPUS");
    *count = wish ? atoi(wish) : 1;
    return 0;
}
int cuDeviceGet(int* device, int ordinal) {
    int count;
    cuDeviceGetCount(&count);
    *device = ordinal;
    return ordinal < 0 || ordinal >= count ? 101 : 0; // no such device
}
int cuDeviceGetName(char* name, int length, int) {
    snprintf(name, size_t(length), "emulated GPU");
    return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 75: *value = 8; break;  // compute capability, major
    case 115: *value = 1; break; // memory pools
    default: *value = 0;
    }
    return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = ALL;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** out, int) {
    *out = &context;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    return 0;
}
int cuCtxSetCurrent(void* to) {
    current = to;
    return 0;
}
int cuCtxGetCurrent(void** out) {
    *out = current;
    return 0;
}
int cuCtxSynchronize() {
    return 0;
}
int cuMemGetInfo_v2(size_t* free, size_t* all) {
    *free = ALL - taken, *all = ALL;
    return 0;
}
int cuStreamCreate(void** stream, unsigned) {
    *stream = malloc(1);
    return 0;
}
int cuStreamCreateWithPriority(void** stream, unsigned, int) {
    *stream = malloc(1);
    return 0;
}
int cuStreamDestroy_v2(void* stream) {
    free(stream);
    return 0;
}
int cuStreamSynchronize(void*) {
    return 0;
}
int cuStreamWaitEvent(void*, void*, unsigned) {
    return 0;
}
int cuStreamIsCapturing(void*, int* status) {
    *status = 0;
    return 0;
}
int cuEventCreate(void** event, unsigned) {
    *event = malloc(1);
    return 0;
}
int cuEventDestroy_v2(void* event) {
    free(event);
    return 0;
}
int cuEventRecord(void*, void*) {
    return 0;
}
int cuEventQuery(void*) {
    return 0;
}
int cuEventSynchronize(void*) {
    return 0;
}
int cuMemAllocAsync(uint64_t* at, size_t bytes, void*) {
    return allocate(at, bytes);
}
int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    return allocate(at, bytes);
}
int cuMemFreeAsync(uint64_t at, void*) {
    return release(at);
}
int cuMemFree_v2(uint64_t at) {
    return release(at);
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    *at = bytes ? aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE) : nullptr;
    return *at ? 0 : INVALID;
}
int cuMemFreeHost(void* at) {
    free(at);
    return 0;
}
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
int cuModuleLoadData(void** module, const void*) {
    *module = malloc(1);
    return 0;
}
int cuModuleUnload(void* module) {
    free(module);
    return 0;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
    const auto found = kernels().find(name);
    if (found == kernels().end()) {
        if (reason() != name) fprintf(stderr, "emulated driver: no kernel %s\n", name);
        reason() = name;
        return NOT_FOUND;
    }
    *function = &*found;
    return 0;
}
int cuFuncSetAttribute(void*, int, int) {
    return 0;
}
int cuFuncGetAttribute(int* value, int, void*) {
    *value = 0;
    return 0;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** arguments, void**) {
    if (!gx || !gy || !gz || !bx) return INVALID;
    if (gy > 65535 || gz > 65535 || bx * by * bz > 1024) return INVALID;
    static_cast<std::pair<const std::string, Runner>*>(function)->second({{gx, gy, gz}, {bx, by, bz}, shared}, arguments);
    return 0;
}
int cuGetErrorName(int error, const char** name) {
    static thread_local char text[32];
    snprintf(text, sizeof text, "CUDA error %d", error);
    *name = text;
    return 0;
}
int cuGetErrorString(int error, const char** text) {
    return cuGetErrorName(error, text);
}

// cuRAND, which Candle opens with a device and nothing here draws from.
int curandCreateGenerator(void** generator, int) {
    *generator = &device_handle;
    return 0;
}
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) {
    return 0;
}
int curandSetStream(void*, void*) {
    return 0;
}
int curandDestroyGenerator(void*) {
    return 0;
}
int curandGenerateUniform(void*, float* to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = float(i % 97) / 97;
    return 0;
}
}
