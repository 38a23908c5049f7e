// Copies rows between strided places: what all-to-alls pack and unpack (src/attention/ulysses.rs).
//
// To pack x[:, :, ms, :] of `[B, N, M, d]` as the message `[B, |ms|, N, d]`, count (B, |ms|, N) rows with x's strides
// (batch, M, N) on one side and a contiguous message on the other. To weave rank i's message `[B, M_local, N_i, d]`
// into `[B, M_local, N, d]`, the message is the contiguous side. Data is bytes: a row is of `units` pieces of 16, 4 or
// 2 bytes, strides count pieces.
#include "common.cuh"

/// Where row (i, j, k) begins is base + i s[0] + j s[1] + k s[2].
struct Places {
    i64 s[3];
};

namespace {

static_assert(copy_rows_16_threads == THREADS && copy_rows_4_threads == THREADS && copy_rows_2_threads == THREADS);

/// grid: (counts 0 times counts 1, pieces of THREADS of counts 2 times units, or fewer).
template <class Unit>
__device__ __forceinline__ void copy_rows(const Unit* from, Unit* to, Places from_at, Places to_at, int count1,
                                          int count2, int units) {
    const i64 i = blockIdx.x / count1, j = blockIdx.x % count1;
    from += i * from_at.s[0] + j * from_at.s[1];
    to += i * to_at.s[0] + j * to_at.s[1];
    for (i64 n = i64(blockIdx.y) * THREADS + threadIdx.x; n < i64(count2) * units; n += i64(gridDim.y) * THREADS) {
        const i64 k = n / units, unit = n % units;
        to[k * to_at.s[2] + unit] = from[k * from_at.s[2] + unit];
    }
}

} // namespace

#define COPY_ROWS(BYTES, UNIT)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS) copy_rows_##BYTES(                           \
        const UNIT* from, UNIT* to, Places from_at, Places to_at, int count1, int count2, int units) { \
        copy_rows(from, to, from_at, to_at, count1, count2, units);                                    \
    }

COPY_ROWS(16, Sixteen)
COPY_ROWS(4, u32)
COPY_ROWS(2, unsigned short)
