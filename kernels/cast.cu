// Casts contiguous arrays between f32 and bf16 (src/cuda/cast.rs). Elements are counted in 64 bits, so that an array
// may be longer than the 2^31 elements up to which Candle's casts work.
#include "common.cuh"

static_assert(to_bf16_threads == THREADS && to_f32_threads == THREADS);

namespace {

constexpr int EACH = 8; // elements of a thread: 16 bytes of bf16

template <class T>
__device__ __forceinline__ bool aligned(const T* p) {
    return reinterpret_cast<u64>(p) % 16 == 0;
}

/// y = x of n elements, as `eight(x, y)` casts EACH neighbours of 16-byte aligned arrays. Arrays that begin elsewhere,
/// and the last elements, are cast one by one, by neighbouring threads for neighbouring elements.
template <class From, class To, class Eight>
__device__ __forceinline__ void cast(const From* x, To* y, i64 n, Eight eight) {
    const i64 begin = i64(blockIdx.x) * (THREADS * EACH);
    if (begin + THREADS * EACH <= n && aligned(x) && aligned(y)) {
        const i64 i = begin + threadIdx.x * EACH;
        eight(x + i, y + i);
        return;
    }
    for (int k = 0; k < EACH; ++k) {
        const i64 i = begin + k * THREADS + threadIdx.x;
        if (i < n) store(y + i, load(x + i));
    }
}

} // namespace

/// y = x rounded to the nearest bf16, ties to even; grid: ceil(n / (THREADS EACH)).
extern "C" __global__ void __launch_bounds__(THREADS) to_bf16(const float* x, bf16* y, i64 n) {
    cast(x, y, n, [](const float* x, bf16* y) {
        const uint4 a = reinterpret_cast<const uint4*>(x)[0], b = reinterpret_cast<const uint4*>(x)[1];
        const auto pair = [](u32 low, u32 high) { return bf16_pair(float_of(low), float_of(high)); };
        *reinterpret_cast<uint4*>(y) = {pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w)};
    });
}

/// y = x; grid: as to_bf16.
extern "C" __global__ void __launch_bounds__(THREADS) to_f32(const bf16* x, float* y, i64 n) {
    cast(x, y, n, [](const bf16* x, float* y) {
        const uint4 a = *reinterpret_cast<const uint4*>(x);
        const auto low = [](u32 pair) { return pair << 16; };
        const auto high = [](u32 pair) { return pair & 0xFFFF0000; };
        reinterpret_cast<uint4*>(y)[0] = {low(a.x), high(a.x), low(a.y), high(a.y)};
        reinterpret_cast<uint4*>(y)[1] = {low(a.z), high(a.z), low(a.w), high(a.w)};
    });
}
