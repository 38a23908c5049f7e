// What each kernel of kernels/ reads and writes: one entry a family, found by the beginning of a kernel's name. A
// kernel without one is an error. Structs of the kernels are taken as whatever they are: only what is read of them
// counts here.
#pragma once
#include "launch.h"
#include <cstdio>
#include <cstdlib>
#include <tuple>
#include <type_traits>
#include <unistd.h>

/// The kernels' structs, by what is read of them.
template <class T>
concept SomeStrides = requires(T at) { at.batch, at.head, at.row; };
template <class T>
concept SomeRows = requires(T rows) { rows.sample(0); };
template <class T>
concept APerSample = requires(T x) { x.values, x.stride; };
template <class T>
concept ARope = requires(T rope) { rope.table; };
template <class T>
concept SomeFrames = requires(T frames) { frames.pixels; };
template <class T>
concept SomeTaps = requires(T taps) { taps.run, taps.stride; };
template <class T>
concept SomePlaces = requires(T at) { at.s[2]; };

/// A launch whose memory is to be told.
struct Call {
    const Grid& how;
    const std::string& name;
    Touches& touches;

    /// All of a `[B, H, rows, d]` tensor, of the grid (anything, H, B).
    template <class T>
    void read_heads(const T* x, SomeStrides auto at, int rows, int d) const {
        touches.read(x, {{how.grid[2], at.batch}, {how.grid[1], at.head}, {rows, at.row}, {d, 1}});
    }
    template <class T>
    void write_heads(T* x, int rows, int d) const {
        touches.write(x, size_t(how.grid[2]) * how.grid[1] * size_t(rows) * size_t(d));
    }

    /// The head dim: an argument before the scale, or the end of the name.
    int head_dim(float) const { return atoi(name.c_str() + name.rfind('d') + 1); }
    int head_dim(int d, float) const { return d; }

    /// The rows of the samples that `n` rows of a tile belong to.
    void read_samples(APerSample auto x, SomeRows auto rows, int64_t n, int width) const {
        if (!x.values || n == 0) return;
        const int64_t first = rows.sample(0);
        touches.read(x.values + first * x.stride, {{rows.sample(n - 1) - first + 1, x.stride}, {width, 1}});
    }

    /// Sums of the grid's runs of rows.
    void write_parts(float* parts, int count, int width) const {
        touches.write(parts, size_t(how.grid[2]) * how.grid[1] * size_t(count) * size_t(width));
    }

    void read_table(ARope auto rope) const {
        const int side = rope.d / 6, rest = rope.d / 2 - 2 * side;
        touches.read(rope.table, size_t(rope.time * rest + rope.height * side + rope.width * side));
    }
};

struct FlashForward {
    static constexpr const char* name = "flash_forward_";
    template <class T, class O, class L, class... Rest>
    void operator()(Call call, const T* q, const T* k, const T* v, O* o, L* lse, SomeStrides auto q_at,
                    SomeStrides auto k_at, SomeStrides auto v_at, int queries, int keys, Rest... rest) const {
        const int d = call.head_dim(rest...);
        call.read_heads(q, q_at, queries, d), call.read_heads(k, k_at, keys, d), call.read_heads(v, v_at, keys, d);
        call.write_heads(o, queries, d), call.write_heads(lse, queries, 1);
    }
};

/// What both kernels of attention's backward read.
template <class T, class... Rest>
int read_backward(Call call, const T* q, const T* k, const T* v, const T* d_o, const float* lse, const float* delta,
                  SomeStrides auto q_at, SomeStrides auto k_at, SomeStrides auto v_at, SomeStrides auto d_o_at,
                  int queries, int keys, Rest... rest) {
    const int d = call.head_dim(rest...);
    const size_t statistics = size_t(call.how.grid[2]) * call.how.grid[1] * size_t(queries);
    call.read_heads(q, q_at, queries, d), call.read_heads(d_o, d_o_at, queries, d);
    call.read_heads(k, k_at, keys, d), call.read_heads(v, v_at, keys, d);
    call.touches.read(lse, statistics), call.touches.read(delta, statistics);
    return d;
}

struct FlashBackwardKv {
    static constexpr const char* name = "flash_backward_kv_";
    template <class T, class O, class... Rest>
    void operator()(Call call, const T* q, const T* k, const T* v, const T* d_o, const float* lse, const float* delta,
                    O* dk, O* dv, SomeStrides auto q_at, SomeStrides auto k_at, SomeStrides auto v_at,
                    SomeStrides auto d_o_at, int queries, int keys, Rest... rest) const {
        const int d = read_backward(call, q, k, v, d_o, lse, delta, q_at, k_at, v_at, d_o_at, queries, keys, rest...);
        call.write_heads(dk, keys, d), call.write_heads(dv, keys, d);
    }
};

struct FlashBackwardQ {
    static constexpr const char* name = "flash_backward_q_";
    template <class T, class O, class... Rest>
    void operator()(Call call, const T* q, const T* k, const T* v, const T* d_o, const float* lse, const float* delta,
                    O* dq, SomeStrides auto q_at, SomeStrides auto k_at, SomeStrides auto v_at, SomeStrides auto d_o_at,
                    int queries, int keys, Rest... rest) const {
        const int d = read_backward(call, q, k, v, d_o, lse, delta, q_at, k_at, v_at, d_o_at, queries, keys, rest...);
        call.write_heads(dq, queries, d);
    }
};

struct LayerNormForward {
    static constexpr const char* name = "layer_norm_forward_";
    template <class T>
    void operator()(Call call, const T* x, T* y, APerSample auto scale, APerSample auto shift, SomeRows auto rows,
                    int width, float, float) const {
        const size_t n = call.how.grid[0], all = n * size_t(width);
        call.touches.read(x, all), call.touches.write(y, all);
        call.read_samples(scale, rows, int64_t(n), width);
        if (scale.values) call.read_samples(shift, rows, int64_t(n), width);
    }
};

struct LayerNormBackward {
    static constexpr const char* name = "layer_norm_backward_";
    template <class T>
    void operator()(Call call, const T* x, const T* dy, T* dx, auto* saved, APerSample auto scale, SomeRows auto rows,
                    int width, float, float) const {
        const size_t n = call.how.grid[0], all = n * size_t(width);
        call.touches.read(x, all), call.touches.read(dy, all), call.touches.write(dx, all),
            call.touches.write(saved, n);
        call.read_samples(scale, rows, int64_t(n), width);
    }
};

struct LayerNormColumns {
    static constexpr const char* name = "layer_norm_columns_";
    template <class T>
    void operator()(Call call, const T* x, const T* dy, const auto* saved, float* parts, auto, int64_t n,
                    int width) const {
        call.touches.read(x, size_t(n * width)), call.touches.read(dy, size_t(n * width)),
            call.touches.read(saved, size_t(n));
        call.write_parts(parts, 2, width);
    }
};

struct RmsRopeForward {
    static constexpr const char* name = "rms_rope_forward_";
    template <class T>
    void operator()(Call call, const T* x, T* y, const float* weight, ARope auto rope, auto, int width, float) const {
        const size_t all = size_t(call.how.grid[0]) * size_t(width);
        call.touches.read(x, all), call.touches.write(y, all), call.touches.read(weight, size_t(width)),
            call.read_table(rope);
    }
};

struct RmsRopeBackward {
    static constexpr const char* name = "rms_rope_backward_";
    template <class T>
    void operator()(Call call, const T* x, const T* dy, T* dx, float* saved, const float* weight, ARope auto rope, auto,
                    int width, float) const {
        const size_t n = call.how.grid[0], all = n * size_t(width);
        call.touches.read(x, all), call.touches.read(dy, all), call.touches.write(dx, all),
            call.touches.write(saved, n);
        call.touches.read(weight, size_t(width)), call.read_table(rope);
    }
};

struct RmsRopeColumns {
    static constexpr const char* name = "rms_rope_columns_";
    template <class T>
    void operator()(Call call, const T* x, const T* dy, const float* saved, float* parts, ARope auto rope, auto,
                    int64_t n, int width) const {
        call.touches.read(x, size_t(n * width)), call.touches.read(dy, size_t(n * width)),
            call.touches.read(saved, size_t(n));
        call.write_parts(parts, 1, width), call.read_table(rope);
    }
};

struct GateForward {
    static constexpr const char* name = "gate_forward_";
    template <class T>
    void operator()(Call call, const T* x, const T* y, T* out, APerSample auto gate, SomeRows auto rows, int64_t n,
                    int width) const {
        const auto all = size_t(n * width);
        call.touches.read(x, all), call.touches.read(y, all), call.touches.write(out, all);
        call.read_samples(gate, rows, n, width);
    }
};

struct GateBackward {
    static constexpr const char* name = "gate_backward_";
    template <class T>
    void operator()(Call call, const T* y, const T* d_out, T* dy, float* parts, APerSample auto gate,
                    SomeRows auto rows, int64_t n, int width) const {
        const auto all = size_t(n * width);
        call.touches.read(y, all), call.touches.read(d_out, all), call.touches.write(dy, all);
        call.write_parts(parts, 1, width), call.read_samples(gate, rows, n, width);
    }
};

struct GeluForward {
    static constexpr const char* name = "gelu_forward_";
    template <class T>
    void operator()(Call call, const T* x, T* y, int64_t n) const {
        call.touches.read(x, size_t(n)), call.touches.write(y, size_t(n));
    }
};

struct GeluBackward {
    static constexpr const char* name = "gelu_backward_";
    template <class T>
    void operator()(Call call, const T* x, const T* dy, T* dx, int64_t n) const {
        call.touches.read(x, size_t(n)), call.touches.read(dy, size_t(n)), call.touches.write(dx, size_t(n));
    }
};

struct SumRuns {
    static constexpr const char* name = "sum_runs";
    void operator()(Call call, const float* parts, float* gradient, int64_t stride, int runs, int which, int count,
                    int width) const {
        const unsigned samples = call.how.grid[1];
        const Touches::Dims rows = {{samples, stride}, {width, 1}};
        call.touches.read(parts + int64_t(which) * width,
                          {{int64_t(samples) * runs, int64_t(count) * width}, {width, 1}});
        call.touches.read(gradient, rows), call.touches.write(gradient, rows);
    }
};

struct NoisyPatches {
    static constexpr const char* name = "noisy_patches";
    void operator()(Call call, SomeFrames auto frames, auto, int64_t token, int count, float, float, float* x0,
                    float* noise, float* x) const {
        const int64_t all = int64_t(count) * 3 * frames.pt * frames.ph * frames.pw;
        call.touches.write(x0, size_t(all)), call.touches.write(noise, size_t(all)), call.touches.write(x, size_t(all));
        if (!x0 && !x) return;
        // Of each frame only the lines of the tokens are there.
        const int grid = frames.height / frames.ph * (frames.width / frames.pw);
        const int64_t from = token / grid * frames.pt, to = ((token + count - 1) / grid + 1) * frames.pt;
        const int64_t frame = int64_t(frames.lines) * frames.width * 3;
        call.touches.read(frames.pixels + (from - frames.first) * frame, size_t((to - from) * frame));
    }
};

struct AdamWStep {
    static constexpr const char* name = "adamw";
    void operator()(Call call, float* params, const float* grads, float* m, float* v, float* average, int64_t n, auto,
                    const auto* no_decay, int ranges) const {
        for (float* x : {params, m, v, average}) call.touches.change(x, size_t(n));
        call.touches.read(grads, size_t(n)), call.touches.read(no_decay, size_t(ranges) * 2);
    }
};

struct NormSquared {
    static constexpr const char* name = "norm_squared";
    void operator()(Call call, const float* values, double* parts, int64_t n) const {
        call.touches.read(values, size_t(n)), call.touches.write(parts, call.how.grid[0]);
    }
};

struct CopyRows {
    static constexpr const char* name = "copy_rows_";
    template <class Unit>
    void operator()(Call call, const Unit* from, Unit* to, SomePlaces auto from_at, SomePlaces auto to_at, int count1,
                    int count2, int units) const {
        const auto rows = [&](auto at) {
            return Touches::Dims{
                {call.how.grid[0] / unsigned(count1), at.s[0]}, {count1, at.s[1]}, {count2, at.s[2]}, {units, 1}};
        };
        call.touches.read(from, rows(from_at)), call.touches.write(to, rows(to_at));
    }
};

struct RingMerge {
    static constexpr const char* name = "ring_merge";
    void operator()(Call call, float* o, double* lse, const float* more, const double* more_lse, int64_t rows,
                    int d) const {
        call.touches.change(o, size_t(rows * d)), call.touches.change(lse, size_t(rows));
        call.touches.read(more, size_t(rows * d)), call.touches.read(more_lse, size_t(rows));
    }
};

struct ConvPack {
    static constexpr const char* name = "conv_pack_";
    template <class T>
    void operator()(Call call, const float* x, T* y, const float* factors, int64_t n, int channels, int) const {
        const auto all = size_t(n * channels);
        call.touches.read(x, all), call.touches.write(y, all);
        if (factors) call.touches.read(factors, size_t(channels));
    }
};

struct ConvGather {
    static constexpr const char* name = "conv_gather_";
    template <class Unit>
    void operator()(Call call, const Unit* oldest, const Unit* middle, const Unit* newest, Unit* a, int64_t first,
                    SomeTaps auto taps, int n) const {
        // All columns of the rows that the tile's pixels see; the kernel's columns do not reach every one of them.
        const int64_t pixels = n / taps.run / taps.frames, line = int64_t(taps.width) * taps.channels;
        const int64_t top = first / taps.out_width, bottom = (first + pixels - 1) / taps.out_width;
        const int64_t from = top * taps.stride + taps.row, to = bottom * taps.stride + taps.row + taps.rows;
        const Unit* frames[] = {oldest, middle, newest};
        for (int i = 0; i < taps.frames; ++i) call.touches.read(frames[i] + from * line, size_t((to - from) * line));
        call.touches.write(a, size_t(n));
    }
};

struct Softmax {
    static constexpr const char* name = "softmax_";
    template <class T>
    void operator()(Call call, const float* x, T* y, int width, float) const {
        const auto all = size_t(call.how.grid[0]) * size_t(width);
        call.touches.read(x, all), call.touches.write(y, all);
    }
};

struct Dropout {
    static constexpr const char* name = "dropout";
    void operator()(Call call, const float* x, float* y, auto, int64_t, int64_t n, int width, unsigned, float,
                    int add) const {
        const auto all = size_t(n * width);
        call.touches.read(x, all), call.touches.write(y, all);
        if (add) call.touches.read(y, all);
    }
};

struct Cast {
    static constexpr const char* name = "to_"; // bf16, f32
    void operator()(Call call, const auto* x, auto* y, int64_t n) const {
        call.touches.read(x, size_t(n)), call.touches.write(y, size_t(n));
    }
};

struct AddAssign {
    static constexpr const char* name = "add_assign";
    void operator()(Call call, float* x, const float* y, int64_t n) const {
        call.touches.change(x, size_t(n)), call.touches.read(y, size_t(n));
    }
};

using Families =
    std::tuple<FlashForward, FlashBackwardKv, FlashBackwardQ, LayerNormForward, LayerNormBackward, LayerNormColumns,
               RmsRopeForward, RmsRopeBackward, RmsRopeColumns, GateForward, GateBackward, GeluForward, GeluBackward,
               SumRuns, ConvPack, ConvGather, Softmax, Dropout, Cast, NoisyPatches, AdamWStep, NormSquared, CopyRows,
               RingMerge, AddAssign>;

/// Tells what the kernel `call.name` touches that is launched with these arguments.
template <class... Parameters>
void tell(Call call, Parameters... arguments) {
    const auto of = [&](auto family) {
        if constexpr (std::is_invocable_v<decltype(family), Call, Parameters...>) {
            if (!call.name.starts_with(family.name)) return false;
            family(call, arguments...);
            return true;
        }
        return false;
    };
    if (!std::apply([&](auto... family) { return (of(family) || ...); }, Families{})) {
        fprintf(stderr, "emulated driver: %s is not in kernels/host/driver/touches.h\n", call.name.c_str());
        _exit(FAILED);
    }
}
