// Kernels at places whose indices do not fit into 32 bits, against the same rows at the beginning of memory: bits must
// be the same.
#pragma once
#include "check.h"

using emulator::Sparse;

/// Launches some of a grid's blocks, as launch.h says.
#define LAUNCH_BLOCKS(NAME, grid, blocks, ...)                                                                         \
    emulator::launch(grid, NAME##_threads, NAME##_shared, Order::Ascending, [&] { NAME(__VA_ARGS__); }, blocks)

using Blocks = std::vector<dim3>;

/// A block's index.
inline dim3 block_at(unsigned x, unsigned y = 0, unsigned z = 0) {
    return {x, y, z};
}

template <class T>
void put(T* to, const std::vector<T>& values) {
    std::copy(values.begin(), values.end(), to);
}

/// What a kernel has left far away, and at the beginning.
template <class T>
void same(const char* what, const T* far, const T* near, i64 n) {
    for (i64 i = 0; i < n; ++i) {
        if (!memcmp(far + i, near + i, sizeof(T)))
            continue;
        fprintf(stderr, "check: %s: element %lld has other bits far away\n", what, i);
        exit(2);
    }
    printf("%s\n", what);
}
