// The emulated driver's kernels: by their name, what runs one with the arguments of cuLaunchKernel.
#pragma once
#include <functional>
#include <map>
#include <string>

struct Grid {
    unsigned grid[3], block[3], shared;
};

/// Runs a kernel; `arguments[i]` points to argument i.
using Runner = std::function<void(const Grid&, void** arguments)>;

/// All kernels there are.
inline std::map<std::string, Runner>& kernels() {
    static std::map<std::string, Runner> all;
    return all;
}
