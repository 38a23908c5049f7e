// Tiles of bf16 rows in shared memory, and the two matrix products that attention is made of, on tensor cores.
//
// A tile holds rows of D numbers, in chunks of eight (16 bytes). A row's chunks are permuted by its number, so that
// ldmatrix, which reads one chunk of eight rows at once, finds them in different banks. Accumulators and left operands
// stay in registers: the accumulator layout of mma.m16n8k16 is that of its left operand, two neighbouring column tiles
// making one step of k.
#pragma once
#include "common.cuh"

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

/// Where a row's chunk is, in elements.
template <int D>
__device__ __forceinline__ int at(int row, int chunk) {
    static_assert(D % 32 == 0 && D <= 128);
    // With eight chunks a bank cycle: rows of 64 or 128 begin at the same bank, of 96 at one of two in turn.
    const int turn = D % 64 == 0 ? row % 8 : row / 2 % 4;
    return row * D + (chunk ^ turn) * 8;
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
        cp_async<16>(tile + at<D>(row, chunk), source, inside ? 16 : 0);
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

/// sums = a bᵀ over D features, of 16 M rows of tile `a` from `row` on and the first 8 N rows of tile `b`.
template <int D, int M, int N>
__device__ __forceinline__ void product(float (&sums)[M][N][4], Shared<bf16> a, int row, Shared<bf16> b) {
    const int lane = threadIdx.x % 32, one = lane / 8 % 2, two = lane / 16; // which of an ldmatrix's four, in two ways
    clear(sums);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            ldmatrix<false>(left[m], a + at<D>(row + m * 16 + one * 8 + lane % 8, k * 2 + two));
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 right[4];
            ldmatrix<false>(right, b + at<D>(n * 8 + two * 8 + lane % 8, k * 2 + one));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(sums[m][n], left[m], right[0], right[1]);
                mma(sums[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/// sums += p b, of 16 M rows of `p` in registers, with 16 K columns, and the first 16 K rows of tile `b`.
template <int D, int M, int K>
__device__ __forceinline__ void add_product(float (&sums)[M][D / 8][4], const u32 (&p)[M][K][4], Shared<bf16> b) {
    const int lane = threadIdx.x % 32, one = lane / 8 % 2, two = lane / 16;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 right[4];
            ldmatrix<true>(right, b + at<D>(k * 16 + one * 8 + lane % 8, n + two));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(sums[m][n], p[m][k], right[0], right[1]);
                mma(sums[m][n + 1], p[m][k], right[2], right[3]);
            }
        }
    }
}

/// Accumulators, rounded to bf16, as the left operand of add_product.
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

/// Writes 16 M rows of accumulators, times a factor a row, to rows `first` on of a contiguous matrix of `rows` rows.
template <int D, int M, class Out, class Factor>
__device__ __forceinline__ void store_rows(Out* matrix, const float (&sums)[M][D / 8][4], int first, int rows,
                                           Factor factor) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first + m * 16 + half * 8 + lane / 4;
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
