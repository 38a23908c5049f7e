// Flash attention, backward, with the saved lse and delta = rowsum(do * o) given. Two kernels, so that no sum needs
// atomics and results have the same bits every time: one takes blocks of keys and lets queries pass by, for dk and dv;
// one takes blocks of queries and lets keys pass by, for dq. Each makes the probabilities p = exp(scale q k - lse)
// again:
//
//     dv = pᵀ do,   ds = p (do vᵀ - delta),   dk = scale dsᵀ q,   dq = scale ds k
//
// Rows beyond the end are zeros in shared memory, and so is what they would add to a sum; only where keys pass by, p of
// a key beyond the end must be set to 0, as it may be infinite.
#include "tile.cuh"

namespace {

template <int D>
struct BackwardKv {
    static constexpr int M = D == 64 ? 2 : 1;    // tiles of 16 keys a warp
    static constexpr int BLOCK = WARPS * M * 16; // keys of a block
    static constexpr int N = D == 64 ? LONG / 2 : 32; // queries of a tile: what registers allow
    static constexpr int STAGES = D == 64 ? 64 / N : 2;
    static constexpr int SLOT = N * D * 4 + N * 8; // bytes: q, do, lse, delta
    static constexpr int SHARED = BLOCK * D * 4 + STAGES * SLOT;
};

template <int D>
struct BackwardQ {
    static constexpr int M = D == 64 ? 2 : 1;    // tiles of 16 queries a warp
    static constexpr int BLOCK = WARPS * M * 16; // queries of a block
    static constexpr int N = 32;                 // keys of a tile
    static constexpr int STAGES = 2;
    static constexpr int SLOT = N * D * 4; // bytes: k, v
    static constexpr int SHARED = BLOCK * D * 4 + STAGES * SLOT;
};

/// `dk`, `dv` `[B, H, Sk, D]` contiguous; lse and delta `[B, H, Sq]`; grid: (blocks of keys, H, B). Rows are keys here,
/// columns queries: pᵀ and dsᵀ are made as left operands of their products.
template <int D, class Out>
__device__ __forceinline__ void flash_backward_kv(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o,
                                                  const float* lse, const float* delta, Out* dk, Out* dv, Strides q_at,
                                                  Strides k_at, Strides v_at, Strides d_o_at, int queries, int keys,
                                                  float scale) {
    using B = BackwardKv<D>;
    constexpr int M = B::M, N = B::N / 8, TILE = B::N * D;
    const int lane = threadIdx.x % 32;
    const int first = blockIdx.x * B::BLOCK;
    const i64 index = i64(blockIdx.z) * gridDim.y + blockIdx.y; // of the head, among all
    q = head_of(q, q_at), k = head_of(k, k_at), v = head_of(v, v_at), d_o = head_of(d_o, d_o_at);
    lse += index * queries;
    delta += index * queries;

    const auto k_tile = shared<bf16>(0, B::BLOCK * D), v_tile = shared<bf16>(B::BLOCK * D * 2, B::BLOCK * D);
    const auto rows_of = [&](int step) {
        return shared<bf16>(B::BLOCK * D * 4 + step % B::STAGES * 4 * TILE, 2 * TILE);
    };
    const auto numbers_of = [&](int step) { // after all rows: tiles begin at multiples of 1024 bytes
        return shared<float>(B::BLOCK * D * 4 + B::STAGES * 4 * TILE + step % B::STAGES * 8 * B::N, 2 * B::N);
    };
    const int steps = (queries + B::N - 1) / B::N;
    const auto begin = [&](int step) {
        if (step < steps) {
            copy_tile<D, B::N>(rows_of(step), q, q_at.row, step * B::N, queries);
            copy_tile<D, B::N>(rows_of(step) + TILE, d_o, d_o_at.row, step * B::N, queries);
            copy_numbers<B::N>(numbers_of(step), lse, step * B::N, queries);
            copy_numbers<B::N>(numbers_of(step) + B::N, delta, step * B::N, queries);
        }
        cp_async_commit();
    };
    copy_tile<D, B::BLOCK>(k_tile, k, k_at.row, first, keys);
    copy_tile<D, B::BLOCK>(v_tile, v, v_at.row, first, keys);
#pragma unroll
    for (int step = 0; step < B::STAGES - 1; ++step) begin(step); // keys and values come with the first

    float dk_sums[M][D / 8][4], dv_sums[M][D / 8][4];
    clear(dk_sums);
    clear(dv_sums);
    const float scale2 = scale * LOG2_E;
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<B::STAGES - 2>();
        publish();
        __syncthreads(); // this step's tiles are here for all, and all are done with the last step's
        begin(step + B::STAGES - 1);
        const auto q_tile = rows_of(step), d_o_tile = rows_of(step) + TILE;
        const auto numbers = numbers_of(step);

        float p[M][N][4], ds[M][N][4];
        u32 left[M][N / 2][4];
        product<D>(p, k_tile, q_tile);
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float lse2 = numbers[n * 8 + lane % 4 * 2 + i] * LOG2_E;
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    p[m][n][i] = exp2_fast(p[m][n][i] * scale2 - lse2);
                    p[m][n][i + 2] = exp2_fast(p[m][n][i + 2] * scale2 - lse2);
                }
            }
        }
        round(left, p);
        add_product<D>(dv_sums, left, d_o_tile);
        product<D>(ds, v_tile, d_o_tile);
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float d = numbers[B::N + n * 8 + lane % 4 * 2 + i];
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - d);
                    ds[m][n][i + 2] = p[m][n][i + 2] * (ds[m][n][i + 2] - d);
                }
            }
        }
        round(left, ds);
        add_product<D>(dk_sums, left, q_tile);
    }
    cp_async_wait<0>();
    store_rows<D>(dk + index * keys * D, dk_sums, first, keys, [&](int, int) { return scale; });
    store_rows<D>(dv + index * keys * D, dv_sums, first, keys, [](int, int) { return 1.0f; });
}

/// `dq` `[B, H, Sq, D]` contiguous; grid: (blocks of queries, H, B).
template <int D, class Out>
__device__ __forceinline__ void flash_backward_q(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o,
                                                 const float* lse, const float* delta, Out* dq, Strides q_at,
                                                 Strides k_at, Strides v_at, Strides d_o_at, int queries, int keys,
                                                 float scale) {
    using B = BackwardQ<D>;
    constexpr int M = B::M, N = B::N / 8, TILE = B::N * D;
    const int lane = threadIdx.x % 32;
    const int first = blockIdx.x * B::BLOCK;
    const i64 index = i64(blockIdx.z) * gridDim.y + blockIdx.y; // of the head, among all
    q = head_of(q, q_at), k = head_of(k, k_at), v = head_of(v, v_at), d_o = head_of(d_o, d_o_at);

    const auto q_tile = shared<bf16>(0, B::BLOCK * D), d_o_tile = shared<bf16>(B::BLOCK * D * 2, B::BLOCK * D);
    const auto rows_of = [&](int step) {
        return shared<bf16>(B::BLOCK * D * 4 + step % B::STAGES * B::SLOT, 2 * TILE);
    };
    const int steps = (keys + B::N - 1) / B::N;
    const auto begin = [&](int step) {
        if (step < steps) {
            copy_tile<D, B::N>(rows_of(step), k, k_at.row, step * B::N, keys);
            copy_tile<D, B::N>(rows_of(step) + TILE, v, v_at.row, step * B::N, keys);
        }
        cp_async_commit();
    };
    copy_tile<D, B::BLOCK>(q_tile, q, q_at.row, first, queries);
    copy_tile<D, B::BLOCK>(d_o_tile, d_o, d_o_at.row, first, queries);
#pragma unroll
    for (int step = 0; step < B::STAGES - 1; ++step) begin(step);

    float sums[M][D / 8][4], lse2[M][2], deltas[M][2];
    clear(sums);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int at = first + row_of(m, half);
            lse2[m][half] = at < queries ? lse[index * queries + at] * LOG2_E : 0;
            deltas[m][half] = at < queries ? delta[index * queries + at] : 0;
        }
    }
    const float scale2 = scale * LOG2_E;
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<B::STAGES - 2>();
        publish();
        __syncthreads();
        begin(step + B::STAGES - 1);
        const auto k_tile = rows_of(step), v_tile = rows_of(step) + TILE;

        float p[M][N][4], ds[M][N][4];
        product<D>(p, q_tile, k_tile);
        product<D>(ds, d_o_tile, v_tile);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const bool inside = step * B::N + n * 8 + lane % 4 * 2 + i % 2 < keys;
                    const float e = exp2_fast(p[m][n][i] * scale2 - lse2[m][i / 2]);
                    ds[m][n][i] = inside ? e * (ds[m][n][i] - deltas[m][i / 2]) : 0;
                }
            }
        }
        u32 left[M][N / 2][4];
        round(left, ds);
        add_product<D>(sums, left, k_tile);
    }
    cp_async_wait<0>();
    store_rows<D>(dq + index * queries * D, sums, first, queries, [&](int, int) { return scale; });
}

} // namespace

#define FLASH_BACKWARD(KV, Q, D, OUT)                                                                                  \
    static_assert(KV##_threads == TILE_THREADS && KV##_shared == BackwardKv<D>::SHARED);                               \
    static_assert(Q##_threads == TILE_THREADS && Q##_shared == BackwardQ<D>::SHARED);                                  \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS) KV(                                                     \
        const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse, const float* delta, OUT* dk,   \
        OUT* dv, Strides q_at, Strides k_at, Strides v_at, Strides d_o_at, int queries, int keys, float scale) {       \
        flash_backward_kv<D>(q, k, v, d_o, lse, delta, dk, dv, q_at, k_at, v_at, d_o_at, queries, keys, scale);        \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                         \
        Q(const bf16* q, const bf16* k, const bf16* v, const bf16* d_o, const float* lse, const float* delta, OUT* dq, \
          Strides q_at, Strides k_at, Strides v_at, Strides d_o_at, int queries, int keys, float scale) {              \
        flash_backward_q<D>(q, k, v, d_o, lse, delta, dq, q_at, k_at, v_at, d_o_at, queries, keys, scale);             \
    }

FLASH_BACKWARD(flash_backward_kv_bf16_d64, flash_backward_q_bf16_d64, 64, bf16)
FLASH_BACKWARD(flash_backward_kv_bf16_d96, flash_backward_q_bf16_d96, 96, bf16)
FLASH_BACKWARD(flash_backward_kv_bf16_d128, flash_backward_q_bf16_d128, 128, bf16)
// For a ring of ranks: gradients that are yet to be added up.
FLASH_BACKWARD(flash_backward_kv_partial_bf16_d64, flash_backward_q_partial_bf16_d64, 64, float)
FLASH_BACKWARD(flash_backward_kv_partial_bf16_d96, flash_backward_q_partial_bf16_d96, 96, float)
FLASH_BACKWARD(flash_backward_kv_partial_bf16_d128, flash_backward_q_partial_bf16_d128, 128, float)
