// Flash attention, forward: o = softmax(scale q kᵀ) v and the row statistic lse, without a mask (FlashAttention-2,
// arXiv 2307.08691).
//
// A block takes BLOCK queries of one head, a warp M times 16 of them. Tiles of keys and of values pass by in turn
// through a ring of STAGES slots in shared memory, copied asynchronously: K0 V0 K1 V1 ... While one is at work the next
// ones are on their way. Logits, their exponentials and o stay in registers. The softmax is online, in base 2, with the
// row's maximum subtracted.
#include "tile.cuh"

namespace {

template <int D>
struct Forward {
    static constexpr int M = 2;                  // tiles of 16 queries a warp
    static constexpr int BLOCK = WARPS * M * 16; // queries of a block
    static constexpr int N = D == 128 ? LONG : 64; // keys of a tile: what registers allow
    static constexpr int STAGES = 4 * (D == 128 ? 32 : 64) / N; // two blocks fit an SM of an A100
    static constexpr int SHARED = (BLOCK + STAGES * N) * D * 2;
};

/// The row statistic, in f64 for partial results: at logits of 1e4 an f32 is off by 5e-4, which would be the error of a
/// share.
__device__ __forceinline__ void store_lse(float* lse, float max, float sum) {
    *lse = (max + log2f(sum)) * LN_2;
}

__device__ __forceinline__ void store_lse(double* lse, float max, float sum) {
    *lse = (max + log2(double(sum))) * 0.693147180559945309417;
}

/// `o` `[B, H, Sq, D]` and `lse` `[B, H, Sq]`, contiguous; grid: (blocks of queries, H, B).
template <int D, class Out, class Lse>
__device__ __forceinline__ void flash_forward(const bf16* q, const bf16* k, const bf16* v, Out* o, Lse* lse,
                                              Strides q_at, Strides k_at, Strides v_at, int queries, int keys,
                                              float scale) {
    using F = Forward<D>;
    constexpr int M = F::M, N = F::N / 8;
    const int lane = threadIdx.x % 32;
    const int first = blockIdx.x * F::BLOCK;
    q = head_of(q, q_at), k = head_of(k, k_at), v = head_of(v, v_at);
    const i64 rows = (i64(blockIdx.z) * gridDim.y + blockIdx.y) * queries;

    const auto q_tile = shared<bf16>(0, F::BLOCK * D);
    const auto slots = shared<bf16>(F::BLOCK * D * 2, F::STAGES * F::N * D);
    const int steps = (keys + F::N - 1) / F::N, tiles = 2 * steps;
    const auto slot = [&](int tile) { return slots + tile % F::STAGES * (F::N * D); };
    const auto begin = [&](int tile) { // always a group, so that groups can be counted
        if (tile < tiles) {
            const int at = tile / 2 * F::N;
            if (tile % 2 == 0) copy_tile<D, F::N>(slot(tile), k, k_at.row, at, keys);
            if (tile % 2 == 1) copy_tile<D, F::N>(slot(tile), v, v_at.row, at, keys);
        }
        cp_async_commit();
    };
    // Waits for a tile, and lets the one follow whose slot all warps have just left.
    const auto arrive = [&](int tile) {
        cp_async_wait<F::STAGES - 2>();
        publish();
        __syncthreads();
        begin(tile + F::STAGES - 1);
        return slot(tile);
    };
    copy_tile<D, F::BLOCK>(q_tile, q, q_at.row, first, queries);
#pragma unroll
    for (int tile = 0; tile < F::STAGES - 1; ++tile) begin(tile); // the queries come with the first

    float sums[M][D / 8][4];
    float max[M][2], sum[M][2]; // of this thread's rows: lane / 4 and 8 more; the sum only of its own columns
    clear(sums);
#pragma unroll
    for (int m = 0; m < M; ++m) max[m][0] = max[m][1] = -INFINITE, sum[m][0] = sum[m][1] = 0;
    const float scale2 = scale * LOG2_E;

    for (int step = 0; step < steps; ++step) {
        float s[M][N][4];
        product<D>(s, q_tile, arrive(step * 2));
        if ((step + 1) * F::N > keys) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (step * F::N + n * 8 + lane % 4 * 2 + i % 2 < keys) continue;
#pragma unroll
                    for (int m = 0; m < M; ++m) s[m][n][i] = -INFINITE;
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = s[m][0][half * 2];
#pragma unroll
                for (int n = 0; n < N; ++n) top = fmaxf(top, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
                top = fmaxf(top, __shfl_xor_sync(WARP, top, 1)); // the four lanes that share a row
                top = fmaxf(top, __shfl_xor_sync(WARP, top, 2));
                top = fmaxf(max[m][half], top * scale2);
                const float shrink = exp2_fast(max[m][half] - top);
                max[m][half] = top;
                sum[m][half] *= shrink;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) sums[m][n][half * 2] *= shrink, sums[m][n][half * 2 + 1] *= shrink;
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int i = half * 2; i < half * 2 + 2; ++i) {
                        s[m][n][i] = exp2_fast(s[m][n][i] * scale2 - top);
                        sum[m][half] += s[m][n][i];
                    }
                }
            }
        }
        u32 p[M][N / 2][4];
        round(p, s);
        add_product<D>(sums, p, arrive(step * 2 + 1));
    }
    cp_async_wait<0>();

#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float& total = sum[m][half];
            total += __shfl_xor_sync(WARP, total, 1);
            total += __shfl_xor_sync(WARP, total, 2);
            const int at = first + row_of(m, half);
            if (lane % 4 == 0 && at < queries) store_lse(lse + rows + at, max[m][half], total);
        }
    }
    store_rows<D>(o + rows * D, sums, first, queries, [&](int m, int half) { return 1 / sum[m][half]; });
}

} // namespace

#define FLASH_FORWARD(NAME, D, OUT, LSE)                                                                              \
    static_assert(NAME##_threads == TILE_THREADS && NAME##_shared == Forward<D>::SHARED);                             \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                        \
        NAME(const bf16* q, const bf16* k, const bf16* v, OUT* o, LSE* lse, Strides q_at, Strides k_at, Strides v_at, \
             int queries, int keys, float scale) {                                                                    \
        flash_forward<D>(q, k, v, o, lse, q_at, k_at, v_at, queries, keys, scale);                                    \
    }

FLASH_FORWARD(flash_forward_bf16_d64, 64, bf16, float)
FLASH_FORWARD(flash_forward_bf16_d96, 96, bf16, float)
FLASH_FORWARD(flash_forward_bf16_d128, 128, bf16, float)
// For a ring of ranks: results that are yet to be merged.
FLASH_FORWARD(flash_forward_partial_bf16_d64, 64, float, double)
FLASH_FORWARD(flash_forward_partial_bf16_d96, 96, float, double)
FLASH_FORWARD(flash_forward_partial_bf16_d128, 128, float, double)
