// GELU in its tanh form, as x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), and its backward (src/ops/gelu.rs).
#include "common.cuh"

namespace {

constexpr float A = 1.5957691216057308f, B = 0.07135481282553503f; // 2 sqrt(2 / pi), and times 0.044715
static_assert(gelu_forward_f32_threads == THREADS && gelu_backward_f32_threads == THREADS);

__device__ __forceinline__ float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}

__device__ __forceinline__ i64 element() {
    return i64(blockIdx.x) * THREADS + threadIdx.x;
}

/// grid: ceil(n / THREADS).
template <class T>
__device__ __forceinline__ void gelu_forward(const T* x, T* y, i64 n) {
    const i64 i = element();
    if (i >= n) return;
    const float v = load(x + i);
    store(y + i, v * sigmoid(v * (A + B * v * v)));
}

/// dx = dy gelu'(x); dx may be dy.
template <class T>
__device__ __forceinline__ void gelu_backward(const T* x, const T* dy, T* dx, i64 n) {
    const i64 i = element();
    if (i >= n) return;
    const float v = load(x + i), s = sigmoid(v * (A + B * v * v));
    store(dx + i, load(dy + i) * (s + v * s * (1 - s) * (A + 3 * B * v * v)));
}

} // namespace

#define GELU(TYPE, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) gelu_forward_##TYPE(const T* x, T* y, i64 n) { \
        gelu_forward(x, y, n);                                                                           \
    }                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                \
        gelu_backward_##TYPE(const T* x, const T* dy, T* dx, i64 n) {                                    \
        gelu_backward(x, dy, dx, n);                                                                     \
    }

GELU(f32, float)
GELU(bf16, bf16)
