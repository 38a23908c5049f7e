// Adds what runs of rows have left in `parts` to a gradient, run by run, so that it has the same bits every time
// (rows.cuh).
#include "rows.cuh"

static_assert(sum_runs_threads == THREADS);

/// gradient[sample * stride + i] += the sum over runs of parts[sample, run, which, i]; `gradient` begins at the tile's
/// first sample. grid: (ceil(width / THREADS), samples).
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_runs(const float* parts, float* gradient, i64 stride, int runs, int which, int count, int width) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= width) return;
    float sum = 0;
    for (int run = 0; run < runs; ++run) sum += parts[((i64(blockIdx.y) * runs + run) * count + which) * width + i];
    gradient[blockIdx.y * stride + i] += sum;
}
