// A CUDA driver without a GPU: memory is this process's, streams do their work at once, kernels are those of ours.cpp
// and candle.cpp.
//
// With it the program for GPUs runs on a CPU, slowly: what Rust allocates, copies and launches, with which arguments,
// in which order. What is missing between two streams is an error (order.h). This file has devices, contexts and
// errors.
#include "pool.h"
#include "wishes.h"
#include <cstdio>
#include <cstdlib>
#include <mutex>

void add_ours();
void add_candles();

namespace {

thread_local void* current = nullptr; // context
char context;

} // namespace

/// A function of the driver that nobody has needed yet.
extern "C" int emulated_driver_lacks(const char* name) {
    fprintf(stderr, "emulated driver: %s is not there\n", name);
    return 801; // not supported
}

extern "C" {
int cuInit(unsigned) {
    static std::once_flag once;
    std::call_once(once, [] {
        add_ours(), add_candles();
        if (wish("CUDA_DEVICE_MAX_CONNECTIONS", 8) > 8) count_call("driver started with many connections");
    });
    return wish("EMULATED_GPUS", 1) ? 0 : 100; // no device
}
int cuDriverGetVersion(int* version) {
    *version = int(wish("EMULATED_DRIVER", 13000));
    return 0;
}
int cuDeviceGetCount(int* count) {
    *count = int(wish("EMULATED_GPUS", 1));
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
    case 75: *value = int(wish("EMULATED_CAPABILITY", 80) / 10); break; // compute capability, major
    case 76: *value = int(wish("EMULATED_CAPABILITY", 80) % 10); break; // and minor
    case 115: *value = 1; break; // memory pools
    default: *value = 0;
    }
    return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = memory_size();
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
int cuCtxGetDevice(int* device) {
    *device = 0; // they are alike, and share the process's memory
    return 0;
}
int cuCtxGetCurrent(void** out) {
    *out = current;
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
}
