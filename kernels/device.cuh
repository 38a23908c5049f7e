// The instructions that CUDA C++ has no words for, as PTX. host/cuda.h has the same names for the emulator.
#pragma once

/// A pointer into shared memory.
template <class T>
using Shared = T*;

/// `count` elements at a byte offset of the block's shared memory, which is all dynamic.
template <class T>
__device__ __forceinline__ Shared<T> shared(int offset, int) {
    extern __shared__ __align__(1024) unsigned char bytes[]; // what tiles are aligned to
    return reinterpret_cast<T*>(bytes + offset);
}

__device__ __forceinline__ float float_of(unsigned bits) {
    return __uint_as_float(bits);
}

__device__ __forceinline__ unsigned bits_of(float value) {
    return __float_as_uint(value);
}

/// To the nearest bf16, ties to even, in the low half.
__device__ __forceinline__ unsigned bf16_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

/// Two bf16, `low` in the low half.
__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/// 2^x within 2 units in the last place; results below the normal numbers are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// Begins to copy `BYTES` bytes, of which `valid` are read and the rest are zeros.
template <int BYTES, class T>
__device__ __forceinline__ void cp_async(Shared<T> target, const void* source, int valid) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(target));
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(valid)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(source), "r"(valid) : "memory");
    }
}

/// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits for all of this thread's groups but the last `LEFT`.
template <int LEFT>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/// Four 8 x 8 matrices of bf16; lanes 8 i to 8 i + 7 name the rows of matrix i.
template <bool TRANSPOSED, class T>
__device__ __forceinline__ void ldmatrix(unsigned (&result)[4], Shared<T> row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                     : "r"(address)
                     : "memory");
    }
}

/// c += a b, of 16 x 16 and 16 x 8 bf16, on a tensor core.
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
