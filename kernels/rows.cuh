// How a tile's rows belong to samples, and sums over rows.
//
// Sums over rows become a gradient in two launches, without atomics and in a fixed order: a *_columns kernel leaves the
// sums of runs of at most RUN rows of one sample in `parts` `[samples, runs, sums, width]`, where runs = ceil(rows of
// the tile / RUN) and samples those the tile touches, and sum_runs (sum_runs.cu) adds them, run by run, to the
// gradient.
#pragma once
#include "common.cuh"

constexpr int RUN = 64;

/// Row i of the tile is row `start + i` of `[B, tokens]`. Where samples do not matter, `tokens` is 2^62.
struct Rows {
    i64 start, tokens;

    __device__ __forceinline__ i64 sample(i64 row) const { return (start + row) / tokens; }
    __device__ __forceinline__ i64 token(i64 row) const { return (start + row) % tokens; }
};

/// A per-sample row of `width` numbers: sample s's is at `values + s * stride`; stride 0 is one row for all.
struct PerSample {
    const float* values;
    i64 stride;

    __device__ __forceinline__ const float* of(i64 sample) const { return values + sample * stride; }
};

/// A run of a tile's rows.
struct RunOfRows {
    i64 first, end;
};

/// The rows of run `blockIdx.y` of the tile's sample number `blockIdx.z`; may be none.
__device__ __forceinline__ RunOfRows run_of(Rows rows, i64 n) {
    const i64 sample = rows.start / rows.tokens + blockIdx.z;
    const i64 from = sample * rows.tokens - rows.start,
              to = from + rows.tokens; // the sample's, counted from the tile's first
    const i64 low = from > 0 ? from : 0, high = to < n ? to : n;
    const i64 first = low + i64(blockIdx.y) * RUN, end = first + RUN < high ? first + RUN : high;
    return {first, end};
}

/// Where the block's run leaves its sum number `which` of `count`.
__device__ __forceinline__ float* part_of(float* parts, int which, int count, int width) {
    const i64 run = i64(blockIdx.z) * gridDim.y + blockIdx.y;
    return parts + (run * count + which) * width;
}
