// Plain f32 attention, to check the fast kernels by: a block makes one row. Head dims up to 256; not for long
// sequences.
//
// Other rows pass by a block's width at a time: each thread makes the logit of one of them, then each feature's sum is
// taken by one thread. As flash_forward.cu and flash_backward.cu, no sum needs atomics.
#include "tile.cuh"

namespace {

constexpr int MOST = 256;                 // features
constexpr int SUMS = MOST / TILE_THREADS; // features of a thread
static_assert(flash_forward_f32_threads == TILE_THREADS && flash_backward_kv_f32_threads == TILE_THREADS);
static_assert(flash_backward_q_f32_threads == TILE_THREADS);

__device__ __forceinline__ float dot(Shared<float> a, const float* b, int d) {
    float sum = 0;
    for (int i = 0; i < d; ++i) sum += a[i] * b[i];
    return sum;
}

/// How many rows pass by at once from `first` on.
__device__ __forceinline__ int rest(int first, int rows) {
    return rows - first < TILE_THREADS ? rows - first : TILE_THREADS;
}

/// A row into shared memory.
__device__ __forceinline__ void copy_row(Shared<float> to, const float* from, int d) {
    for (int i = threadIdx.x; i < d; i += TILE_THREADS) to[i] = from[i];
}

} // namespace

/// As flash_forward_bf16_d64, of any d; grid: (queries, H, B).
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    flash_forward_f32(const float* q, const float* k, const float* v, float* o, float* lse, Strides q_at, Strides k_at,
                      Strides v_at, int queries, int keys, int d, float scale) {
    const auto mine = shared<float>(0, MOST), p = shared<float>(MOST * 4, TILE_THREADS);
    const auto scratch = shared<float>(MOST * 4 + TILE_THREADS * 4, WARPS);
    const i64 row = (i64(blockIdx.z) * gridDim.y + blockIdx.y) * queries + blockIdx.x;
    k = head_of(k, k_at), v = head_of(v, v_at);
    copy_row(mine, head_of(q, q_at) + blockIdx.x * q_at.row, d);
    __syncthreads();
    float sums[SUMS] = {}, max = -INFINITE, sum = 0;
    for (int first = 0; first < keys; first += TILE_THREADS) {
        const int key = first + threadIdx.x, count = rest(first, keys);
        const float s = key < keys ? dot(mine, k + key * k_at.row, d) * scale : -INFINITE;
        const float top = fmaxf(max, block_max(s, scratch)), shrink = expf(max - top);
        p[threadIdx.x] = expf(s - top);
        max = top;
        __syncthreads();
        sum *= shrink;
        for (int j = 0; j < count; ++j) sum += p[j];
        for (int n = 0; n < SUMS; ++n) {
            const int i = threadIdx.x + n * TILE_THREADS;
            sums[n] *= shrink;
            for (int j = 0; i < d && j < count; ++j) sums[n] += p[j] * v[(first + j) * v_at.row + i];
        }
        __syncthreads();
    }
    for (int n = 0; n < SUMS; ++n) {
        const int i = threadIdx.x + n * TILE_THREADS;
        if (i < d) o[row * d + i] = sums[n] / sum;
    }
    if (threadIdx.x == 0) lse[row] = max + logf(sum);
}

/// As flash_backward_kv_bf16_d64, of any d; grid: (keys, H, B).
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    flash_backward_kv_f32(const float* q, const float* k, const float* v, const float* d_o, const float* lse,
                          const float* delta, float* dk, float* dv, Strides q_at, Strides k_at, Strides v_at,
                          Strides d_o_at, int queries, int keys, int d, float scale) {
    const auto k_row = shared<float>(0, MOST), v_row = shared<float>(MOST * 4, MOST);
    const auto p = shared<float>(MOST * 8, TILE_THREADS), ds = shared<float>(MOST * 8 + TILE_THREADS * 4, TILE_THREADS);
    const i64 head = i64(blockIdx.z) * gridDim.y + blockIdx.y, row = head * keys + blockIdx.x;
    q = head_of(q, q_at), d_o = head_of(d_o, d_o_at), lse += head * queries, delta += head * queries;
    copy_row(k_row, head_of(k, k_at) + blockIdx.x * k_at.row, d);
    copy_row(v_row, head_of(v, v_at) + blockIdx.x * v_at.row, d);
    __syncthreads();
    float dk_sums[SUMS] = {}, dv_sums[SUMS] = {};
    for (int first = 0; first < queries; first += TILE_THREADS) {
        const int query = first + threadIdx.x, count = rest(first, queries);
        if (query < queries) {
            const float e = expf(dot(k_row, q + query * q_at.row, d) * scale - lse[query]);
            p[threadIdx.x] = e;
            ds[threadIdx.x] = e * (dot(v_row, d_o + query * d_o_at.row, d) - delta[query]) * scale;
        }
        __syncthreads();
        for (int n = 0; n < SUMS; ++n) {
            const int i = threadIdx.x + n * TILE_THREADS;
            for (int j = 0; i < d && j < count; ++j) {
                dk_sums[n] += ds[j] * q[(first + j) * q_at.row + i];
                dv_sums[n] += p[j] * d_o[(first + j) * d_o_at.row + i];
            }
        }
        __syncthreads();
    }
    for (int n = 0; n < SUMS; ++n) {
        const int i = threadIdx.x + n * TILE_THREADS;
        if (i < d) dk[row * d + i] = dk_sums[n], dv[row * d + i] = dv_sums[n];
    }
}

/// As flash_backward_q_bf16_d64, of any d; grid: (queries, H, B).
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    flash_backward_q_f32(const float* q, const float* k, const float* v, const float* d_o, const float* lse,
                         const float* delta, float* dq, Strides q_at, Strides k_at, Strides v_at, Strides d_o_at,
                         int queries, int keys, int d, float scale) {
    const auto q_row = shared<float>(0, MOST), d_o_row = shared<float>(MOST * 4, MOST);
    const auto ds = shared<float>(MOST * 8, TILE_THREADS);
    const i64 row = (i64(blockIdx.z) * gridDim.y + blockIdx.y) * queries + blockIdx.x;
    k = head_of(k, k_at), v = head_of(v, v_at);
    copy_row(q_row, head_of(q, q_at) + blockIdx.x * q_at.row, d);
    copy_row(d_o_row, head_of(d_o, d_o_at) + blockIdx.x * d_o_at.row, d);
    __syncthreads();
    float sums[SUMS] = {};
    for (int first = 0; first < keys; first += TILE_THREADS) {
        const int key = first + threadIdx.x, count = rest(first, keys);
        if (key < keys) {
            const float e = expf(dot(q_row, k + key * k_at.row, d) * scale - lse[row]);
            ds[threadIdx.x] = e * (dot(d_o_row, v + key * v_at.row, d) - delta[row]) * scale;
        }
        __syncthreads();
        for (int n = 0; n < SUMS; ++n) {
            const int i = threadIdx.x + n * TILE_THREADS;
            for (int j = 0; i < d && j < count; ++j) sums[n] += ds[j] * k[(first + j) * k_at.row + i];
        }
        __syncthreads();
    }
    for (int n = 0; n < SUMS; ++n) {
        const int i = threadIdx.x + n * TILE_THREADS;
        if (i < d) dq[row * d + i] = sums[n];
    }
}
