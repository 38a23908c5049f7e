// The kernels of candle-kernels that longreel launches, for the emulated driver: their names, their arguments, plain loops.
#include "bf16.h"
#include "launch.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

using usize = uint64_t;

template <class T>
T argument(void** arguments, int i) {
    return *static_cast<T*>(arguments[i]);
}

/// Where element `i` of a tensor lies: in order without `info`, else by its dims and the strides that follow them.
usize place(usize i, usize dims, const usize* info, int which = 1) {
    if (!info) return i;
    usize at = 0;
    for (usize d = dims; d-- > 0; i /= info[d]) at += i % info[d] * info[which * dims + d];
    return at;
}

/// (numel, dims, info, from, to): to[i] = f(from[place of i]).
template <class S, class T, class F>
void each(const char* name, F f) {
    kernels()[name] = [f](const Grid&, void** a) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        const auto from = argument<const S*>(a, 3);
        const auto to = argument<T*>(a, 4);
        for (usize i = 0; i < n; ++i) to[i] = f(from[place(i, dims, info)]);
    };
}

template <class T, class F>
void binary(const std::string& name, F f) {
    kernels()[name] = [f](const Grid&, void** a) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        const auto left = argument<const T*>(a, 3), right = argument<const T*>(a, 4);
        const auto to = argument<T*>(a, 5);
        for (usize i = 0; i < n; ++i) to[i] = T(f(left[place(i, dims, info)], right[place(i, dims, info, 2)]));
    };
}

/// Copies and fills, of any type.
template <class T>
void moves(const std::string& type) {
    each<T, T>(("ucopy_" + type).c_str(), [](T x) { return x; });
    kernels()["copy2d_" + type] = [](const Grid&, void** a) {
        const auto from = argument<const T*>(a, 0);
        const auto to = argument<T*>(a, 1);
        const auto rows = argument<uint32_t>(a, 2), columns = argument<uint32_t>(a, 3);
        const auto from_row = argument<uint32_t>(a, 4), to_row = argument<uint32_t>(a, 5);
        for (usize i = 0; i < rows; ++i) memcpy(to + i * to_row, from + i * from_row, columns * sizeof(T));
    };
    kernels()["fill_" + type] = [](const Grid&, void** a) {
        const auto to = argument<T*>(a, 0);
        for (usize i = 0, n = argument<usize>(a, 2); i < n; ++i) to[i] = argument<T>(a, 1);
    };
    kernels()["const_set_" + type] = [](const Grid&, void** a) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        const auto to = argument<T*>(a, 4);
        for (usize i = 0; i < n; ++i) to[place(i, dims, info)] = argument<T>(a, 3);
    };
}

/// Arithmetic, of numbers.
template <class T, class Sum>
void numbers(const std::string& type) {
    moves<T>(type);
    each<T, T>(("usqr_" + type).c_str(), [](T x) { return T(x * x); });
    binary<T>("badd_" + type, [](T a, T b) { return a + b; });
    binary<T>("bsub_" + type, [](T a, T b) { return a - b; });
    binary<T>("bmul_" + type, [](T a, T b) { return a * b; });
    binary<T>("bdiv_" + type, [](T a, T b) { return a / b; });
    kernels()["affine_" + type] = [](const Grid&, void** a) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        const auto from = argument<const T*>(a, 3);
        const auto to = argument<T*>(a, 4);
        for (usize i = 0; i < n; ++i) to[i] = T(from[place(i, dims, info)] * argument<T>(a, 5) + argument<T>(a, 6));
    };
    // (numel, how many are summed, dims, info, from, to): the summed dims are the last ones.
    const auto sum = [](bool of_sums) {
        return [of_sums](const Grid&, void** a) {
            const auto numel = argument<usize>(a, 0), each = argument<usize>(a, 1), dims = argument<usize>(a, 2);
            const auto info = argument<const usize*>(a, 3);
            const auto from = argument<const T*>(a, 4);
            const auto to = argument<T*>(a, 5);
            for (usize i = 0, n = of_sums ? numel : numel / each; i < n; ++i) {
                Sum total = 0;
                for (usize k = 0; k < each; ++k) total += from[place(i * each + k, dims, info)];
                to[i] = T(total);
            }
        };
    };
    kernels()["fast_sum_" + type] = sum(false);
    kernels()["fast_sum_small_" + type] = sum(true);
}

/// How many elements a kernel is launched for.
usize elements(const std::string& name, void** arguments) {
    if (name.starts_with("copy2d")) return usize(argument<uint32_t>(arguments, 2)) * argument<uint32_t>(arguments, 3);
    return argument<usize>(arguments, name.starts_with("fill") ? 2 : 0);
}

/// These kernels count in 32 bits: EMULATED_CANDLE_MOST says how many elements one may be launched for. More end the program.
Runner counted(const std::string& name, const Runner& run) {
    return [name, run](const Grid& grid, void** arguments) {
        const char* most = getenv("EMULATED_CANDLE_MOST");
        const usize n = elements(name, arguments);
        if (most && n > strtoull(most, nullptr, 10)) {
            fprintf(stderr, "emulated driver: Candle's %s is launched for %zu elements, more than %s\n", name.c_str(), size_t(n), most);
            _Exit(3);
        }
        run(grid, arguments);
    };
}

} // namespace

void add_candles() {
    const auto ours = kernels();
    numbers<float, float>("f32"), numbers<double, double>("f64"), numbers<bf16, float>("bf16");
    moves<uint8_t>("u8"), moves<uint32_t>("u32"), moves<int64_t>("i64");
    each<float, bf16>("cast_f32_bf16", [](float x) { return bf16(x); });
    each<bf16, float>("cast_bf16_f32", [](bf16 x) { return float(x); });
    each<float, double>("cast_f32_f64", [](float x) { return double(x); });
    each<double, float>("cast_f64_f32", [](double x) { return float(x); });
    each<bf16, double>("cast_bf16_f64", [](bf16 x) { return double(float(x)); });
    each<uint8_t, float>("cast_u8_f32", [](uint8_t x) { return float(x); });
    for (auto& [name, run] : kernels()) {
        if (!ours.contains(name)) run = counted(name, run);
    }
}
