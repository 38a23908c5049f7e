// Modules, kernels and launches of the emulated driver: kernels are those of ours.cpp and candle.cpp, found by their
// names.
#include "faults.h"
#include "launch.h"
#include "memory.h"
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int NOT_FOUND = 500; // CUresult

std::string& reason() {
    static std::string text;
    return text;
}

} // namespace

extern "C" {
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
    const char* missing = getenv("EMULATED_MISSING_KERNEL");
    if (found == kernels().end() || (missing && found->first == missing)) {
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
                   unsigned shared, void* stream, void** arguments, void**) {
    if (!gx || !gy || !gz || !bx) return INVALID;
    if (gy > 65535 || gz > 65535 || bx * by * bz > 1024) return INVALID;
    if (const int fault = faulted()) return fault;
    const auto& [name, kernel] = *static_cast<std::pair<const std::string, Launchable>*>(function);
    const Grid grid = {{gx, gy, gz}, {bx, by, bz}, shared};
    Touches touches;
    kernel.touches(grid, arguments, touches);
    operation(stream, name, touches);
    kernel.run(grid, arguments);
    fault_launched(name.c_str());
    return 0;
}
}
