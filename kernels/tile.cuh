// Tiles of bf16 rows in shared memory, and what attention does with them but multiply: that is tile_mma.cuh's or, where
// a warpgroup's four warps multiply together (sm_90a), tile_wgmma.cuh's.
//
// A tile holds rows of D numbers, in chunks of eight (16 bytes). It is cut into columns of 64 numbers, or of 32 where
// 64 does not divide D, which lie one after another. A row's chunks in a column are permuted by the row's number, so
// that the same chunk of eight rows lies in different banks: the layouts that wgmma calls swizzles of 128 and of 64
// bytes. Tiles begin at multiples of 1024 bytes, as the permutation counts from there.
#pragma once
#include "common.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL // compiled for sm_90a
#define WGMMA
#endif

/// Where a `[B, H, S, d]` tensor's batches, heads and rows begin, in elements; features are contiguous.
struct Strides {
    i64 batch, head, row;
};

/// The block's head of a tensor; grid: (anything, H, B).
template <class T>
__device__ __forceinline__ const T* head_of(const T* x, Strides at) {
    return x + blockIdx.z * at.batch + blockIdx.y * at.head;
}

/// A block's threads, in all kernels with tiles.
constexpr int TILE_THREADS = 128;
constexpr int WARPS = TILE_THREADS / 32;

/// Numbers of a row in a column of a tile.
template <int D>
constexpr int COLUMN = D % 64 == 0 ? 64 : 32;

/// Where a row's chunk is in a tile of ROWS rows, in elements.
template <int D, int ROWS>
__device__ __forceinline__ int at(int row, int chunk) {
    static_assert(D % 32 == 0 && D <= 128 && ROWS % 8 == 0);
    constexpr int W = COLUMN<D>, CHUNKS = W / 8;
    const int turn = CHUNKS == 8 ? row % 8 : row / 2 % 4;
    return (chunk / CHUNKS * ROWS + row) * W + (chunk % CHUNKS ^ turn) * 8;
}

/// Which of a block's rows a thread's accumulators [m][n][2 half] and the next are of.
__device__ __forceinline__ int row_of(int m, int half) {
    return (m * WARPS + threadIdx.x / 32) * 16 + half * 8 + threadIdx.x % 32 / 4;
}

/// Begins to copy rows `first` to `first + ROWS` of a matrix of `rows` rows; those beyond are zeros. All threads of the
/// block.
template <int D, int ROWS>
__device__ __forceinline__ void copy_tile(Shared<bf16> tile, const bf16* matrix, i64 stride, int first, int rows) {
    constexpr int CHUNKS = D / 8;
    static_assert(ROWS * CHUNKS % TILE_THREADS == 0);
#pragma unroll 1 // unrolled, its addresses would be kept in registers, which are short
    for (int i = 0; i < ROWS * CHUNKS / TILE_THREADS; ++i) {
        const int n = i * TILE_THREADS + threadIdx.x, row = n / CHUNKS, chunk = n % CHUNKS;
        const bool inside = first + row < rows;
        const bf16* source = matrix + (inside ? first + row : 0) * stride + chunk * 8;
        cp_async<16>(tile + at<D, ROWS>(row, chunk), source, inside ? 16 : 0);
    }
}

/// Begins to copy `COUNT` numbers from `first` on of an array of `total`; those beyond are zeros.
template <int COUNT>
__device__ __forceinline__ void copy_numbers(Shared<float> to, const float* from, int first, int total) {
    static_assert(COUNT <= TILE_THREADS);
    const int i = threadIdx.x;
    if (i < COUNT) {
        const bool inside = first + i < total;
        cp_async<4>(to + i, from + (inside ? first + i : 0), inside ? 4 : 0);
    }
}

/// sums = 0.
template <int M, int N>
__device__ __forceinline__ void clear(float (&sums)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
        }
    }
}

/// Accumulators, rounded to bf16, as the left operand of add_product: their layout is that of a left operand, two
/// neighbouring column tiles making one step of k.
template <int M, int N>
__device__ __forceinline__ void round(u32 (&p)[M][N / 2][4], const float (&sums)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int k = 0; k < N / 2; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = &sums[m][k * 2 + i / 2][i % 2 * 2];
                p[m][k][i] = bf16_pair(pair[0], pair[1]);
            }
        }
    }
}

/// Writes the block's rows of accumulators, times a factor a row, to rows `first` on of a contiguous matrix of `rows`
/// rows.
template <int D, int M, class Out, class Factor>
__device__ __forceinline__ void store_rows(Out* matrix, const float (&sums)[M][D / 8][4], int first, int rows,
                                           Factor factor) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first + row_of(m, half);
            if (row >= rows) continue;
            const float f = factor(m, half);
            Out* to = matrix + i64(row) * D + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                store_pair(to + n * 8, sums[m][n][half * 2] * f, sums[m][n][half * 2 + 1] * f);
            }
        }
    }
}

#ifdef WGMMA
#include "tile_wgmma.cuh"
#else
#include "tile_mma.cuh"
#endif
