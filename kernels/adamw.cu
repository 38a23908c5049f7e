// AdamW with clipping and the moving average in one pass over flat f32 buffers, and the squared norm that clipping
// needs: what src/state/optimizer.rs and ema.rs do on a CPU.
#include "common.cuh"

/// What one step does to every element; see `Step` in src/state/optimizer.rs, whose names these are.
struct AdamW {
    float beta1, beta2, rest1, rest2; // rest: 1 - beta
    float scale;                      // of gradients, for clipping
    float rate;                       // lr / (1 - beta1^step)
    float inv_std;                    // 1 / sqrt(1 - beta2^step)
    float eps;
    float decay;   // lr times the weight decay
    float average; // 1 - the average's decay
};

static_assert(adamw_threads == THREADS && norm_squared_threads == THREADS && norm_squared_shared == THREADS * 8);

/// `average` may be null. `no_decay` is `[ranges, 2]`: ascending ranges (from, to) of elements without weight decay.
/// grid: ceil(n / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(float* params, const float* grads, float* m, float* v, float* average, i64 n, AdamW step, const i64* no_decay,
          int ranges) {
    // The first range that ends within the block's elements or after them: the same for all threads, who walk on from
    // there.
    const i64 start = i64(blockIdx.x) * THREADS, i = start + threadIdx.x;
    int range = 0;
    for (int end = ranges; range < end;) {
        const int middle = (range + end) / 2;
        if (no_decay[middle * 2 + 1] <= start) {
            range = middle + 1;
        } else {
            end = middle;
        }
    }
    if (i >= n) return;
    while (range < ranges && no_decay[range * 2 + 1] <= i) ++range;
    const float decay = range < ranges && no_decay[range * 2] <= i ? 0 : step.decay;

    const float grad = step.scale * grads[i];
    const float first = step.beta1 * m[i] + step.rest1 * grad;
    const float second = step.beta2 * v[i] + step.rest2 * grad * grad;
    float param = params[i];
    param -= decay * param + step.rate * first / (sqrtf(second) * step.inv_std + step.eps);
    m[i] = first, v[i] = second, params[i] = param;
    if (average) average[i] += step.average * (param - average[i]);
}

/// parts[block] = the sum of squares of the block's 64 THREADS values, in f64 and in a fixed order; their sum, in
/// order, is the squared norm, and not finite if a value is not. grid: ceil(n / 64 / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS) norm_squared(const float* values, double* parts, i64 n) {
    const auto sums = shared<double>(0, THREADS);
    const i64 start = i64(blockIdx.x) * THREADS * 64 + threadIdx.x;
    double sum = 0;
    for (int k = 0; k < 64; ++k) {
        const i64 i = start + k * THREADS;
        if (i < n) sum += double(values[i]) * values[i];
    }
    sums[threadIdx.x] = sum;
    for (int half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < u32(half)) sums[threadIdx.x] = sums[threadIdx.x] + sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}
