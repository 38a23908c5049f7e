// What a ring of ranks does between its steps: it merges partial results of attention, and adds gradients
// (src/attention/ring.rs).
#include "common.cuh"

static_assert(ring_merge_threads == THREADS && add_assign_threads == THREADS);

/// Merges `more` `[rows, d]`, what the same queries got from other keys, into `o`, and its `lse` `[rows]` likewise.
/// Weights are exp(lse - max), of which one is 1 and the other, e, does not overflow, over their sum. A warp takes a
/// row; grid: ceil(rows / (THREADS / 32)).
extern "C" __global__ void __launch_bounds__(THREADS)
    ring_merge(float* o, double* lse, const float* more, const double* more_lse, i64 rows, int d) {
    const i64 row = i64(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    float mine = 0, other = 0;
    if (lane == 0) {
        const double a = lse[row], b = more_lse[row], e = exp(-fabs(a - b));
        const float most = float(1 / (1 + e)), rest = float(e / (1 + e));
        mine = a > b ? most : rest, other = a > b ? rest : most;
        lse[row] = fmax(a, b) + log1p(e);
    }
    mine = __shfl_sync(WARP, mine, 0);
    other = __shfl_sync(WARP, other, 0);
    for (int i = lane; i < d; i += 32) {
        const i64 at = row * d + i;
        o[at] = mine * o[at] + other * more[at];
    }
}

/// x += y, of n numbers; grid: ceil(n / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS) add_assign(float* x, const float* y, i64 n) {
    const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (i < n) x[i] += y[i];
}
