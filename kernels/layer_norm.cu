// LayerNorm with what follows it (a modulation, an affine map or nothing) in one pass, and its backward.
//
//     y = xhat (one + scale) + shift,   xhat = (x - mean) r,   r = 1 / sqrt(variance + eps)
//
// A modulation (adaLN) has a scale and shift for each sample and one = 1; an affine map has stride 0 and one = 0;
// nothing has scale.values = null. Backward, with g = dy (one + scale): dx = r (g - mean(g) - xhat mean(g xhat)), and
// over the rows of a sample dscale = sum dy xhat, dshift = sum dy. A row is read from memory once and then from the
// caches.
#include "rows.cuh"

namespace {

static_assert(layer_norm_forward_f32_threads == THREADS && layer_norm_backward_f32_threads == THREADS);

template <class T, class Map>
__device__ __forceinline__ float sum_over(const T* row, int width, Shared<float> scratch, Map map) {
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) sum += map(load(row + i), i);
    return block_sum(sum, scratch);
}

/// (mean, r) of a row.
template <class T>
__device__ __forceinline__ float2 statistics(const T* x, int width, float eps, Shared<float> scratch) {
    const float mean = sum_over(x, width, scratch, [](float v, int) { return v; }) / width;
    const float variance = sum_over(x, width, scratch, [&](float v, int) { return (v - mean) * (v - mean); }) / width;
    return {mean, 1 / sqrtf(variance + eps)};
}

/// x, y `[n, width]`; grid: n.
template <class T>
__device__ __forceinline__ void layer_norm_forward(const T* x, T* y, PerSample scale, PerSample shift, Rows rows,
                                                   int width, float one, float eps) {
    const i64 row = blockIdx.x;
    x += row * width, y += row * width;
    const auto [mean, r] = statistics(x, width, eps, shared<float>(0, THREADS / 32));
    const float *a = scale.of(rows.sample(row)), *b = shift.of(rows.sample(row));
    for (int i = threadIdx.x; i < width; i += THREADS) {
        const float xhat = (load(x + i) - mean) * r;
        store(y + i, scale.values ? xhat * (one + a[i]) + b[i] : xhat);
    }
}

/// dx `[n, width]`, and the rows' (mean, r) `[n]` for layer_norm_columns; grid: n.
template <class T>
__device__ __forceinline__ void layer_norm_backward(const T* x, const T* dy, T* dx, float2* saved, PerSample scale,
                                                    Rows rows, int width, float one, float eps) {
    const i64 row = blockIdx.x;
    const auto scratch = shared<float>(0, THREADS / 32);
    x += row * width, dy += row * width, dx += row * width;
    const auto [mean, r] = statistics(x, width, eps, scratch);
    const float* a = scale.of(rows.sample(row));
    const auto g = [&](int i) { return load(dy + i) * (scale.values ? one + a[i] : 1); };
    const float mean_g = sum_over(x, width, scratch, [&](float, int i) { return g(i); }) / width;
    const float mean_gx = sum_over(x, width, scratch, [&](float v, int i) { return g(i) * (v - mean) * r; }) / width;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        store(dx + i, r * (g(i) - mean_g - (load(x + i) - mean) * r * mean_gx));
    }
    if (threadIdx.x == 0) saved[row] = {mean, r};
}

/// parts `[samples, runs, 2, width]`: dscale, dshift; grid: (ceil(width / THREADS), runs, samples).
template <class T>
__device__ __forceinline__ void layer_norm_columns(const T* x, const T* dy, const float2* saved, float* parts,
                                                   Rows rows, i64 n, int width) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= width) return;
    const auto [first, end] = run_of(rows, n);
    float dscale = 0, dshift = 0;
    for (i64 row = first; row < end; ++row) {
        const auto [mean, r] = saved[row];
        const float d = load(dy + row * width + i);
        dscale += d * (load(x + row * width + i) - mean) * r;
        dshift += d;
    }
    part_of(parts, 0, 2, width)[i] = dscale;
    part_of(parts, 1, 2, width)[i] = dshift;
}

} // namespace

#define LAYER_NORM(TYPE, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward_##TYPE(                                  \
        const T* x, T* y, PerSample scale, PerSample shift, Rows rows, int width, float one, float eps) {             \
        layer_norm_forward(x, y, scale, shift, rows, width, one, eps);                                                \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward_##TYPE(                                 \
        const T* x, const T* dy, T* dx, float2* saved, PerSample scale, Rows rows, int width, float one, float eps) { \
        layer_norm_backward(x, dy, dx, saved, scale, rows, width, one, eps);                                          \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_columns_##TYPE(                                  \
        const T* x, const T* dy, const float2* saved, float* parts, Rows rows, i64 n, int width) {                    \
        layer_norm_columns(x, dy, saved, parts, rows, n, width);                                                      \
    }

LAYER_NORM(f32, float)
LAYER_NORM(bf16, bf16)
