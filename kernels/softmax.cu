// Softmax of rows of scores, for the VAE's attention of one wide head (src/vae/cuda/).
#include "common.cuh"

namespace {

static_assert(softmax_f32_threads == THREADS && softmax_bf16_threads == THREADS);

/// y = softmax(scale x) of rows of `width`; y may be x; grid: the rows.
template <class T>
__device__ __forceinline__ void softmax(const float* x, T* y, int width, float scale) {
    const auto scratch = shared<float>(0, THREADS / 32);
    x += i64(blockIdx.x) * width, y += i64(blockIdx.x) * width;
    float most = -INFINITE, sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) most = fmaxf(most, scale * x[i]);
    most = block_max(most, scratch);
    for (int i = threadIdx.x; i < width; i += THREADS) sum += expf(scale * x[i] - most);
    const float share = 1 / block_sum(sum, scratch);
    for (int i = threadIdx.x; i < width; i += THREADS) store(y + i, expf(scale * x[i] - most) * share);
}

} // namespace

#define SOFTMAX(TYPE, T)                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)          \
        softmax_##TYPE(const float* x, T* y, int width, float scale) { \
        softmax(x, y, width, scale);                               \
    }

SOFTMAX(f32, float)
SOFTMAX(bf16, bf16)
