// The gated residual out = x + gate y, with a gate for each sample, and its backward: dy = dout gate, dgate = sum y
// dout over the sample's rows. x's gradient is dout itself.
#include "rows.cuh"

namespace {

static_assert(gate_forward_f32_threads == THREADS && gate_backward_f32_threads == THREADS);

/// x, y, out `[n, width]`; grid: (ceil(width / THREADS), ceil(n / RUN)).
template <class T>
__device__ __forceinline__ void gate_forward(const T* x, const T* y, T* out, PerSample gate, Rows rows, i64 n,
                                             int width) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= width) return;
    const i64 first = i64(blockIdx.y) * RUN;
    for (i64 row = first; row < n && row < first + RUN; ++row) {
        const i64 at = row * width + i;
        store(out + at, load(x + at) + gate.of(rows.sample(row))[i] * load(y + at));
    }
}

/// dy `[n, width]`, and parts `[samples, runs, 1, width]`: dgate; grid: (ceil(width / THREADS), runs, samples).
template <class T>
__device__ __forceinline__ void gate_backward(const T* y, const T* d_out, T* dy, float* parts, PerSample gate,
                                              Rows rows, i64 n, int width) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= width) return;
    const auto [first, end] = run_of(rows, n);
    float sum = 0;
    for (i64 row = first; row < end; ++row) {
        const i64 at = row * width + i;
        const float d = load(d_out + at);
        store(dy + at, d * gate.of(rows.sample(row))[i]);
        sum += d * load(y + at);
    }
    part_of(parts, 0, 1, width)[i] = sum;
}

} // namespace

#define GATE(TYPE, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        gate_forward_##TYPE(const T* x, const T* y, T* out, PerSample gate, Rows rows, i64 n, int width) { \
        gate_forward(x, y, out, gate, rows, n, width);                                                     \
    }                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) gate_backward_##TYPE(                            \
        const T* y, const T* d_out, T* dy, float* parts, PerSample gate, Rows rows, i64 n, int width) {    \
        gate_backward(y, d_out, dy, parts, gate, rows, n, width);                                          \
    }

GATE(f32, float)
GATE(bf16, bf16)
