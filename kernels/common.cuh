// What all kernels share: numbers, sums over warps and blocks. The instructions below it are in device.cuh, or, for the
// emulator, in host/cuda.h.
//
// Kernels take no bf16 arithmetic: activations are read as f32, whatever they are stored in, and rounded once when
// written.
#pragma once

#ifdef __CUDACC__
#include "device.cuh"
#else
#include "host/cuda.h"
#endif

// NAME_threads and NAME_shared of each kernel.
#define KERNEL(name, threads, shared) constexpr int name##_threads = threads, name##_shared = shared;
#include "launch.h"
#undef KERNEL

using u8 = unsigned char;
using u32 = unsigned;
using u64 = unsigned long long;
using i64 = long long;

/// A stored bf16.
struct bf16 {
    unsigned short bits;
};

/// As many bytes as a thread loads at once, of whatever.
struct alignas(16) Sixteen {
    u32 words[4];
};

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.693147180559945309417f;
constexpr float INFINITE = __builtin_huge_valf();
constexpr u32 WARP = 0xFFFFFFFF;
constexpr int THREADS = 256; // of a block, in all kernels but attention's

__device__ __forceinline__ float load(const float* p) {
    return *p;
}

__device__ __forceinline__ float load(const bf16* p) {
    return float_of(u32(p->bits) << 16);
}

__device__ __forceinline__ void store(float* p, float value) {
    *p = value;
}

__device__ __forceinline__ void store(bf16* p, float value) {
    p->bits = static_cast<unsigned short>(bf16_bits(value));
}

/// Two neighbours at an even index of an aligned row.
__device__ __forceinline__ float2 load_pair(const float* p) {
    return *reinterpret_cast<const float2*>(p);
}

__device__ __forceinline__ float2 load_pair(const bf16* p) {
    const u32 pair = *reinterpret_cast<const u32*>(p);
    return {float_of(pair << 16), float_of(pair & 0xFFFF0000)};
}

__device__ __forceinline__ void store_pair(float* p, float low, float high) {
    *reinterpret_cast<float2*>(p) = {low, high};
}

__device__ __forceinline__ void store_pair(bf16* p, float low, float high) {
    *reinterpret_cast<u32*>(p) = bf16_pair(low, high);
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(WARP, x, lanes);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int lanes = 16; lanes; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(WARP, x, lanes));
    return x;
}

/// The sum over the block, in all threads and in a fixed order. `scratch` holds a number a warp and may be used again
/// at once.
__device__ __forceinline__ float block_sum(float x, Shared<float> scratch) {
    x = warp_sum(x);
    __syncthreads(); // those before have read the scratch
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
    return sum;
}

/// As block_sum, the maximum.
__device__ __forceinline__ float block_max(float x, Shared<float> scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float max = -INFINITE;
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) max = fmaxf(max, scratch[warp]);
    return max;
}
