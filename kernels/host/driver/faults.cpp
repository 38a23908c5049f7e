// Kernels that fail on purpose. As on a GPU the launch succeeds; what waits for the GPU next gets the error, and so
// does every call after that, for the context is lost.
#include "faults.h"
#include <atomic>
#include <cstdlib>
#include <string>

namespace {

constexpr int ILLEGAL_ADDRESS = 700; // CUresult

std::atomic<int> launches{0};
std::atomic<bool> failed{false}, shown{false};

} // namespace

void fault_launched(const char* name) {
    static const std::string wanted = getenv("EMULATED_FAULT") ? getenv("EMULATED_FAULT") : "";
    const size_t colon = wanted.find(':');
    if (colon == std::string::npos || wanted.compare(0, colon, name) != 0) return;
    if (++launches == atoi(wanted.c_str() + colon + 1)) failed = true;
}

int fault_synchronized() {
    if (failed) shown = true;
    return faulted();
}

int faulted() {
    return shown ? ILLEGAL_ADDRESS : 0;
}
