// What the kernels' tests share: random inputs, launches in every order, comparison with an f64 reference.
//
// A test program prints, for each quantity, its greatest error and the bound it must keep, and fails at the first that
// does not.
#pragma once
#include "../../common.cuh"
#include "../memory.h"
#ifdef TOUCHES
#include "told.h"
#endif
#include <algorithm>
#include <random>
#include <string>
#include <vector>

using emulator::Buffer;
using emulator::Order;

/// A kernel and how it is launched, for tests that are written once for several kernels. With TOUCHES, what
/// driver/touches.h tells of it is checked too.
template <class... Parameters>
struct Kernel {
    const char* name;
    void (*function)(Parameters...);
    int threads, shared;

    void operator()(dim3 grid, Order order, Parameters... arguments) const {
        const auto run = [&] { emulator::launch(grid, threads, shared, order, [&] { function(arguments...); }); };
#ifdef TOUCHES
        const Grid how = {{grid.x, grid.y, grid.z}, {unsigned(threads), 1, 1}, unsigned(shared)};
        Touches touches;
        tell(Call{how, name, touches}, arguments...);
        told::check(name, touches, run);
#else
        run();
#endif
    }
};

#define KERNEL_OF(NAME)                            \
    Kernel {                                       \
        #NAME, NAME, NAME##_threads, NAME##_shared \
    }

/// Launches NAME as launch.h says.
#define LAUNCH(NAME, grid, order, ...) KERNEL_OF(NAME)(grid, order, __VA_ARGS__)

inline std::mt19937_64 generator(7);

inline bf16 to_bf16(float value) {
    return {static_cast<unsigned short>(bf16_bits(value))};
}

inline float number(float x) {
    return x;
}

inline double number(double x) {
    return x;
}

inline float number(bf16 x) {
    return load(&x);
}

template <class T>
T rounded(float x) {
    if constexpr (sizeof(T) == 2) {
        return to_bf16(x);
    } else {
        return x;
    }
}

/// Normal numbers of a standard deviation, as T holds them.
template <class T>
std::vector<T> normal(size_t n, double deviation = 1) {
    std::normal_distribution<double> distribution(0, deviation);
    std::vector<T> values(n);
    for (T& value : values) value = rounded<T>(float(distribution(generator)));
    return values;
}

template <class T>
std::vector<double> doubles(const std::vector<T>& values) {
    std::vector<double> result;
    for (const T& value : values) result.push_back(number(value));
    return result;
}

/// The greatest error, as a share of the greatest true value, or of `scale`, whichever is greater.
template <class T>
double error(const std::vector<T>& got, const std::vector<double>& truth, double scale = 0) {
    double most = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
        const double off = std::abs(number(got[i]) - truth[i]);
        if (!(off <= most)) most = off; // NaN, too
        scale = std::max(scale, std::abs(truth[i]));
    }
    return scale > 0 ? most / scale : most;
}

inline void expect(const std::string& what, double error, double bound) {
    printf("%-64s error %8.1e, bound %8.1e\n", what.c_str(), error, bound);
    if (!(error <= bound)) {
        fprintf(stderr, "check: %s: the error %g is above %g\n", what.c_str(), error, bound);
        exit(2);
    }
}

template <class T>
void expect(const std::string& what, const std::vector<T>& got, const std::vector<double>& truth, double bound,
            double scale = 0) {
    if (got.size() != truth.size()) {
        fprintf(stderr, "check: %s: %zu values, not %zu\n", what.c_str(), got.size(), truth.size());
        exit(2);
    }
    expect(what, error(got, truth, scale), bound);
}

/// Remembers the bits of the first order's results; those of the others must be the same.
class SameBits {
  public:
    template <class T>
    void operator()(const std::string& what, const std::vector<T>& values) {
        const std::string bits(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
        for (const auto& [name, first] : seen_) {
            if (name != what) continue;
            if (first == bits) return;
            fprintf(stderr, "check: %s: the bits depend on the order of threads\n", what.c_str());
            exit(2);
        }
        seen_.push_back({what, bits});
    }

  private:
    std::vector<std::pair<std::string, std::string>> seen_;
};
