// RMSNorm over a row's whole width, whose heads are then turned by their token's position (RoPE), in one pass, and its
// backward.
//
//     y = turn(x r w),   r = 1 / sqrt(mean(x^2) + eps);   with g = back(dy) w and xhat = x r:   dx = r (g - xhat mean(g
//     xhat))
//
// and over rows dw = sum back(dy) xhat. Pairs (2 i, 2 i + 1) of each head are turned; the first belong to time, then
// height, then width. Cosines and sines come in a table that is made in f64: without one, nothing is turned. Threads
// take pairs.
#include "rows.cuh"

/// (cos, sin) of each axis' positions and pairs, axis after axis: `[grid t, (d - 2 side) / 2]`, `[grid h, side / 2]`,
/// `[grid w, side / 2]` with side = 2 (d / 6).
struct Rope {
    const float2* table;
    int time, height, width; // the grid
    i64 first;               // the clip's token that is the rank's first
    int d;                   // features of a head

    /// (cos, sin) of pair `pair` of a row, for the rank's token `local`.
    __device__ __forceinline__ float2 turn(i64 local, int pair) const {
        if (!table) return {1, 0};
        const i64 token = first + local;
        const int side = d / 6, rest = d / 2 - 2 * side; // pairs
        const int p = pair % (d / 2);
        const int t = int(token / (i64(height) * width)), h = int(token / width % height), w = int(token % width);
        if (p < rest) return table[t * rest + p];
        if (p < rest + side) return table[time * rest + h * side + p - rest];
        return table[time * rest + height * side + w * side + p - rest - side];
    }
};

namespace {

static_assert(rms_rope_forward_f32_threads == THREADS && rms_rope_backward_f32_threads == THREADS);

__device__ __forceinline__ float2 turned(float2 x, float2 angle) {
    return {x.x * angle.x - x.y * angle.y, x.y * angle.x + x.x * angle.y};
}

__device__ __forceinline__ float2 turned_back(float2 x, float2 angle) {
    return turned(x, {angle.x, -angle.y});
}

template <class T>
__device__ __forceinline__ float root(const T* x, int width, float eps, Shared<float> scratch) {
    float sum = 0;
    for (int pair = threadIdx.x; pair < width / 2; pair += THREADS) {
        const float2 v = load_pair(x + pair * 2);
        sum += v.x * v.x + v.y * v.y;
    }
    return 1 / sqrtf(block_sum(sum, scratch) / width + eps);
}

/// x, y `[n, width]`, width even; grid: n.
template <class T>
__device__ __forceinline__ void rms_rope_forward(const T* x, T* y, const float* weight, Rope rope, Rows rows, int width,
                                                 float eps) {
    const i64 row = blockIdx.x;
    x += row * width, y += row * width;
    const float r = root(x, width, eps, shared<float>(0, THREADS / 32));
    for (int pair = threadIdx.x; pair < width / 2; pair += THREADS) {
        const float2 v = load_pair(x + pair * 2), w = load_pair(weight + pair * 2);
        const float2 out = turned({v.x * r * w.x, v.y * r * w.y}, rope.turn(rows.token(row), pair));
        store_pair(y + pair * 2, out.x, out.y);
    }
}

/// dx `[n, width]`, and the rows' r `[n]` for rms_rope_columns; grid: n.
template <class T>
__device__ __forceinline__ void rms_rope_backward(const T* x, const T* dy, T* dx, float* saved, const float* weight,
                                                  Rope rope, Rows rows, int width, float eps) {
    const i64 row = blockIdx.x;
    const auto scratch = shared<float>(0, THREADS / 32);
    x += row * width, dy += row * width, dx += row * width;
    const float r = root(x, width, eps, scratch);
    const auto g = [&](int pair) {
        const float2 d = turned_back(load_pair(dy + pair * 2), rope.turn(rows.token(row), pair));
        const float2 w = load_pair(weight + pair * 2);
        return float2{d.x * w.x, d.y * w.y};
    };
    float sum = 0;
    for (int pair = threadIdx.x; pair < width / 2; pair += THREADS) {
        const float2 v = load_pair(x + pair * 2), gradient = g(pair);
        sum += (gradient.x * v.x + gradient.y * v.y) * r;
    }
    const float mean_gx = block_sum(sum, scratch) / width;
    for (int pair = threadIdx.x; pair < width / 2; pair += THREADS) {
        const float2 v = load_pair(x + pair * 2), gradient = g(pair);
        store_pair(dx + pair * 2, r * (gradient.x - v.x * r * mean_gx), r * (gradient.y - v.y * r * mean_gx));
    }
    if (threadIdx.x == 0) saved[row] = r;
}

/// parts `[1, runs, 1, width]`: dw; rows.tokens is that of rope, samples do not matter; grid: (ceil(width / 2 /
/// THREADS), runs, 1).
template <class T>
__device__ __forceinline__ void rms_rope_columns(const T* x, const T* dy, const float* saved, float* parts, Rope rope,
                                                 Rows rows, i64 n, int width) {
    const int pair = blockIdx.x * THREADS + threadIdx.x;
    if (pair >= width / 2) return;
    const auto [first, end] = run_of({0, n}, n);
    float2 sum = {0, 0};
    for (i64 row = first; row < end; ++row) {
        const float2 v = load_pair(x + row * width + pair * 2);
        const float2 d = turned_back(load_pair(dy + row * width + pair * 2), rope.turn(rows.token(row), pair));
        sum.x += d.x * v.x * saved[row];
        sum.y += d.y * v.y * saved[row];
    }
    store_pair(part_of(parts, 0, 1, width) + pair * 2, sum.x, sum.y);
}

} // namespace

#define RMS_ROPE(TYPE, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        rms_rope_forward_##TYPE(const T* x, T* y, const float* weight, Rope rope, Rows rows, int width, float eps) { \
        rms_rope_forward(x, y, weight, rope, rows, width, eps);                                                      \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        rms_rope_backward_##TYPE(const T* x, const T* dy, T* dx, float* saved, const float* weight, Rope rope,       \
                                 Rows rows, int width, float eps) {                                                  \
        rms_rope_backward(x, dy, dx, saved, weight, rope, rows, width, eps);                                         \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) rms_rope_columns_##TYPE(                                   \
        const T* x, const T* dy, const float* saved, float* parts, Rope rope, Rows rows, i64 n, int width) {         \
        rms_rope_columns(x, dy, saved, parts, rope, rows, n, width);                                                 \
    }

RMS_ROPE(f32, float)
RMS_ROPE(bf16, bf16)
