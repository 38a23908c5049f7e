// The emulated driver's kernels, by their names: how one runs, and what it reads and writes, with the arguments of
// cuLaunchKernel.
#pragma once
#include "order.h"
#include <functional>
#include <map>
#include <string>

struct Grid {
    unsigned grid[3], block[3], shared;
};

/// `arguments[i]` points to argument i.
struct Launchable {
    std::function<void(const Grid&, void** arguments)> run;
    std::function<void(const Grid&, void** arguments, Touches&)> touches;
};

/// All kernels there are.
inline std::map<std::string, Launchable>& kernels() {
    static std::map<std::string, Launchable> all;
    return all;
}
