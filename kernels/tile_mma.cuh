// The two matrix products that attention is made of, a warp at a time: mma.sync of fragments that ldmatrix fetches.
#pragma once

/// Rows of a tile that passes by, where the accumulators leave few registers: fragments of both operands want some.
constexpr int LONG = 32;

/// What this thread's copies have brought may be multiplied after the next barrier.
__device__ __forceinline__ void publish() {}

/// sums = a bᵀ over D features, of tile `a` of the block's rows and tile `b` of 8 N rows.
template <int D, int M, int N>
__device__ __forceinline__ void product(float (&sums)[M][N][4], Shared<bf16> a, Shared<bf16> b) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int one = lane / 8 % 2, two = lane / 16; // which of an ldmatrix's four, in two ways
    clear(sums);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            ldmatrix<false>(left[m], a + at<D, M * WARPS * 16>((m * WARPS + warp) * 16 + one * 8 + lane % 8, k * 2 + two));
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 right[4];
            ldmatrix<false>(right, b + at<D, N * 8>(n * 8 + two * 8 + lane % 8, k * 2 + one));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(sums[m][n], left[m], right[0], right[1]);
                mma(sums[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/// sums += p b, of `p`, the block's rows of 16 K numbers in registers, and tile `b` of 16 K rows.
template <int D, int M, int K>
__device__ __forceinline__ void add_product(float (&sums)[M][D / 8][4], const u32 (&p)[M][K][4], Shared<bf16> b) {
    const int lane = threadIdx.x % 32, one = lane / 8 % 2, two = lane / 16;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 right[4];
            ldmatrix<true>(right, b + at<D, K * 16>(k * 16 + one * 8 + lane % 8, n + two));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(sums[m][n], p[m][k], right[0], right[1]);
                mma(sums[m][n + 1], p[m][k], right[2], right[3]);
            }
        }
    }
}
