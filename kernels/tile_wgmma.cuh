// The two matrix products that attention is made of, four warps at a time: wgmma, whose right operands, and left ones
// that are tiles, stay in shared memory. That halves what is read of them, and leaves registers for longer tiles.
#pragma once
#ifdef __CUDACC__
#include "wgmma.cuh"
#else
#include "host/wgmma.h"
#endif

static_assert(WARPS == 4); // a warpgroup, whose 64 rows a wgmma takes

/// Rows of a tile that passes by, where the accumulators leave few registers.
constexpr int LONG = 64;

/// What this thread's copies have brought may be multiplied after the next barrier.
__device__ __forceinline__ void publish() {
    wgmma_publish();
}

/// A matrix descriptor (PTX ISA, "Matrix Descriptor Format"): where it begins, and two strides in bytes. `DOWN` is from
/// eight of a tile's rows to the next eight; `across` from a column to the next, where features are the columns of the
/// product and not what it sums over.
template <int D>
__device__ __forceinline__ u64 descriptor(u32 address, int across) {
    constexpr int W = COLUMN<D>, DOWN = 8 * W * 2;
    constexpr u64 swizzle = W == 64 ? 1 : 2; // of 128 bytes, of 64
    return u64(address >> 4 & 0x3FFF) | u64(across >> 4) << 16 | u64(DOWN >> 4) << 32 | swizzle << 62;
}

/// 16 features of all rows from `row` on, to be summed over.
template <int D, int ROWS>
__device__ __forceinline__ u64 features(Shared<bf16> tile, int row, int feature) {
    constexpr int W = COLUMN<D>;
    // Within a column the permutation is left out: it is one of addresses, and hardware applies it.
    return descriptor<D>(address_of(tile + (feature / W * ROWS + row) * W + feature % W), 16);
}

/// All features of the 16 rows from `row` on, which are to be summed over.
template <int D, int ROWS>
__device__ __forceinline__ u64 rows(Shared<bf16> tile, int row) {
    constexpr int W = COLUMN<D>;
    return descriptor<D>(address_of(tile + row * W), ROWS * W * 2);
}

/// sums = a bᵀ over D features, of tile `a` of the block's rows and tile `b` of 8 N rows.
template <int D, int M, int N>
__device__ __forceinline__ void product(float (&sums)[M][N][4], Shared<bf16> a, Shared<bf16> b) {
    wgmma_begin(sums);
#pragma unroll
    for (int k = 0; k < D; k += 16) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
            wgmma(sums[m], features<D, M * 64>(a, m * 64, k), features<D, N * 8>(b, 0, k), k > 0);
        }
    }
    wgmma_end(sums);
}

/// sums += p b, of `p`, the block's rows of 16 K numbers in registers, which keep them, and tile `b` of 16 K rows.
template <int D, int M, int K>
__device__ __forceinline__ void add_product(float (&sums)[M][D / 8][4], u32 (&p)[M][K][4], Shared<bf16> b) {
    wgmma_begin(sums, p);
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int m = 0; m < M; ++m) wgmma(sums[m], p[m][k], rows<D, K * 16>(b, k * 16));
    }
    wgmma_end(sums);
}
