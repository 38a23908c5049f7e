// The kernels as a library of two functions, for Python's ctypes: scripts/bundle/checks/emulated.py.
#include "driver/launch.h"
#include "memory.h"

void add_ours(); // driver/ours.cpp

/// `n` bytes that end, up to the next 16, at a page that must not be touched. They are never given back.
extern "C" void* guarded(size_t n) {
    return (new emulator::Buffer<unsigned char>(n, true))->data();
}

/// Launches a kernel, `arguments[i]` pointing to argument i; 1 if there is none of this name.
extern "C" int run_kernel(const char* name, const unsigned* grid, const unsigned* block, unsigned shared,
                          void** arguments) {
    if (kernels().empty()) {
        add_ours();
        emulator::catch_faults();
    }
    const auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    found->second.run({{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared}, arguments);
    return 0;
}
