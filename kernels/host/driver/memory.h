// The emulated GPUs' memory, which is this process's.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int INVALID = 1, OUT_OF_MEMORY = 2; // CUresult
constexpr size_t PAGE = 4096;

/// Where the driver has what the program has at `at`: elsewhere if that is pinned.
void* view(const void* at);

inline void* pointer(uint64_t at) {
    return reinterpret_cast<void*>(at);
}
