// The kernels of candle-kernels that longreel launches, for the emulated driver: their names, their arguments, plain
// loops, and what they read and write.
#include "bf16.h"
#include "launch.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

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

/// The elements of a tensor, where `place` finds them; which it reads from the GPU's memory.
Touches::Dims elements(Touches& touches, usize n, usize dims, const usize* info, int which = 1) {
    if (!info) return {{int64_t(n), 1}};
    touches.read(info, dims);
    touches.read(info + usize(which) * dims, dims);
    Touches::Dims all;
    for (usize d = 0; d < dims; ++d) all.emplace_back(info[d], info[usize(which) * dims + d]);
    return all;
}

/// (numel, dims, info, from, to): to[i] = f(from[place of i]).
template <class S, class T, class F>
void each(const std::string& name, F f) {
    const auto run = [f](const Grid&, void** a) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        const auto from = argument<const S*>(a, 3);
        const auto to = argument<T*>(a, 4);
        for (usize i = 0; i < n; ++i) to[i] = f(from[place(i, dims, info)], a);
    };
    const auto touches = [](const Grid&, void** a, Touches& touches) {
        const auto n = argument<usize>(a, 0);
        const auto from = elements(touches, n, argument<usize>(a, 1), argument<const usize*>(a, 2));
        touches.read(argument<const S*>(a, 3), from);
        touches.write(argument<T*>(a, 4), n);
    };
    kernels()[name] = {run, touches};
}

template <class S, class T>
void cast(const std::string& name) {
    each<S, T>(name, [](S x, void**) {
        if constexpr (std::is_same_v<S, bf16>)
            return T(float(x));
        else
            return T(x);
    });
}

template <class T, class F>
void binary(const std::string& name, F f) {
    const auto run = [f](const Grid&, void** a) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        const auto left = argument<const T*>(a, 3), right = argument<const T*>(a, 4);
        const auto to = argument<T*>(a, 5);
        for (usize i = 0; i < n; ++i) to[i] = T(f(left[place(i, dims, info)], right[place(i, dims, info, 2)]));
    };
    const auto touches = [](const Grid&, void** a, Touches& touches) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        for (const int i : {1, 2}) touches.read(argument<const T*>(a, 2 + i), elements(touches, n, dims, info, i));
        touches.write(argument<T*>(a, 5), n);
    };
    kernels()[name] = {run, touches};
}

/// (from, to, rows, columns, elements from a row to the next in each).
template <class T>
void copy2d(const std::string& name) {
    const auto run = [](const Grid&, void** a) {
        const auto from = argument<const T*>(a, 0);
        const auto to = argument<T*>(a, 1);
        const auto rows = argument<uint32_t>(a, 2), columns = argument<uint32_t>(a, 3);
        const auto from_row = argument<uint32_t>(a, 4), to_row = argument<uint32_t>(a, 5);
        for (usize i = 0; i < rows; ++i) memcpy(to + i * to_row, from + i * from_row, columns * sizeof(T));
    };
    const auto touches = [](const Grid&, void** a, Touches& touches) {
        const auto rows = argument<uint32_t>(a, 2), columns = argument<uint32_t>(a, 3);
        touches.read(argument<const T*>(a, 0), {{rows, argument<uint32_t>(a, 4)}, {columns, 1}});
        touches.write(argument<T*>(a, 1), {{rows, argument<uint32_t>(a, 5)}, {columns, 1}});
    };
    kernels()[name] = {run, touches};
}

/// (to, value, numel)
template <class T>
void fill(const std::string& name) {
    const auto run = [](const Grid&, void** a) {
        const auto to = argument<T*>(a, 0);
        for (usize i = 0, n = argument<usize>(a, 2); i < n; ++i) to[i] = argument<T>(a, 1);
    };
    const auto touches = [](const Grid&, void** a, Touches& touches) {
        touches.write(argument<T*>(a, 0), argument<usize>(a, 2));
    };
    kernels()[name] = {run, touches};
}

/// (numel, dims, info, value, to)
template <class T>
void const_set(const std::string& name) {
    const auto run = [](const Grid&, void** a) {
        const auto n = argument<usize>(a, 0), dims = argument<usize>(a, 1);
        const auto info = argument<const usize*>(a, 2);
        const auto to = argument<T*>(a, 4);
        for (usize i = 0; i < n; ++i) to[place(i, dims, info)] = argument<T>(a, 3);
    };
    const auto touches = [](const Grid&, void** a, Touches& touches) {
        const auto to = elements(touches, argument<usize>(a, 0), argument<usize>(a, 1), argument<const usize*>(a, 2));
        touches.write(argument<T*>(a, 4), to);
    };
    kernels()[name] = {run, touches};
}

/// (numel, how many are summed, dims, info, from, to): the summed dims are the last ones. `of_sums`: numel counts sums.
template <class T, class Sum>
void sum(const std::string& name, bool of_sums) {
    const auto sums = [of_sums](void** a) { return argument<usize>(a, 0) / (of_sums ? 1 : argument<usize>(a, 1)); };
    const auto run = [sums](const Grid&, void** a) {
        const auto each = argument<usize>(a, 1), dims = argument<usize>(a, 2);
        const auto info = argument<const usize*>(a, 3);
        const auto from = argument<const T*>(a, 4);
        const auto to = argument<T*>(a, 5);
        for (usize i = 0, n = sums(a); i < n; ++i) {
            Sum total = 0;
            for (usize k = 0; k < each; ++k) total += from[place(i * each + k, dims, info)];
            to[i] = T(total);
        }
    };
    const auto touches = [sums](const Grid&, void** a, Touches& touches) {
        const usize n = sums(a) * argument<usize>(a, 1);
        const auto from = elements(touches, n, argument<usize>(a, 2), argument<const usize*>(a, 3));
        touches.read(argument<const T*>(a, 4), from);
        touches.write(argument<T*>(a, 5), sums(a));
    };
    kernels()[name] = {run, touches};
}

/// Copies and fills, of any type.
template <class T>
void moves(const std::string& type) {
    each<T, T>("ucopy_" + type, [](T x, void**) { return x; });
    copy2d<T>("copy2d_" + type);
    fill<T>("fill_" + type);
    const_set<T>("const_set_" + type);
}

/// Arithmetic, of numbers.
template <class T, class Sum>
void numbers(const std::string& type) {
    moves<T>(type);
    each<T, T>("usqr_" + type, [](T x, void**) { return T(x * x); });
    each<T, T>("affine_" + type, [](T x, void** a) { return T(x * argument<T>(a, 5) + argument<T>(a, 6)); });
    binary<T>("badd_" + type, [](T a, T b) { return a + b; });
    binary<T>("bsub_" + type, [](T a, T b) { return a - b; });
    binary<T>("bmul_" + type, [](T a, T b) { return a * b; });
    binary<T>("bdiv_" + type, [](T a, T b) { return a / b; });
    sum<T, Sum>("fast_sum_" + type, false);
    sum<T, Sum>("fast_sum_small_" + type, true);
}

/// How many elements a kernel is launched for.
usize count_of(const std::string& name, void** arguments) {
    if (name.starts_with("copy2d")) return usize(argument<uint32_t>(arguments, 2)) * argument<uint32_t>(arguments, 3);
    return argument<usize>(arguments, name.starts_with("fill") ? 2 : 0);
}

/// These kernels count in 32 bits: EMULATED_CANDLE_MOST says how many elements one may be launched for. More end the
/// program.
std::function<void(const Grid&, void**)> counted(const std::string& name, const std::function<void(const Grid&, void**)>& run) {
    return [name, run](const Grid& grid, void** arguments) {
        const char* most = getenv("EMULATED_CANDLE_MOST");
        const usize n = count_of(name, arguments);
        if (most && n > strtoull(most, nullptr, 10)) {
            fprintf(stderr, "emulated driver: Candle's %s is launched for %zu elements, more than %s\n", name.c_str(),
                    size_t(n), most);
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
    cast<float, bf16>("cast_f32_bf16"), cast<bf16, float>("cast_bf16_f32"), cast<float, double>("cast_f32_f64");
    cast<double, float>("cast_f64_f32"), cast<bf16, double>("cast_bf16_f64"), cast<uint8_t, float>("cast_u8_f32");
    for (auto& [name, kernel] : kernels()) {
        if (!ours.contains(name)) kernel.run = counted(name, kernel.run);
    }
}
