// The warpgroup's matrix instructions of sm_90a, as PTX (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate"). host/wgmma.h has the same names for the emulator.
//
// All four warps of the block issue them together. They work on while threads go on: nobody may touch their registers
// or overwrite their operands in shared memory between `wgmma_begin` and `wgmma_end`; of registers,
// scripts/wgmma_hazards.py checks that the machine code does not. They read shared memory past the caches that threads
// write it through, hence `wgmma_publish`.
#pragma once

/// Where it lies in shared memory, as a number.
template <class T>
__device__ __forceinline__ unsigned address_of(Shared<T> p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// What this thread has written to shared memory, its finished copies too, is seen by products after the next barrier.
__device__ __forceinline__ void wgmma_publish() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Keeps what the compiler does with this register before this on its side, and what it does after it on the other.
/// No instruction is emitted. A clobber of memory alone would not do: it orders no arithmetic of registers.
__device__ __forceinline__ void pin(float& number) {
    asm volatile("" : "+f"(number)::"memory");
}
__device__ __forceinline__ void pin(unsigned& pair) {
    asm volatile("" : "+r"(pair)::"memory");
}

template <class Register, int M, int N>
__device__ __forceinline__ void pin(Register (&registers)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) pin(registers[m][n][i]);
        }
    }
}

/// Accumulators and left operands in `registers` are ready for the products that follow, and are theirs until
/// `wgmma_end`.
template <class... Registers>
__device__ __forceinline__ void wgmma_begin(Registers&... registers) {
    (pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Waits for all products, whose sums are then in `sums`. What was given to `wgmma_begin` belongs to threads again.
/// Left operands need no pin here: ptxas gives their registers to nothing else before the wait, which
/// scripts/wgmma_hazards.py checks.
template <int M, int N>
__device__ __forceinline__ void wgmma_end(float (&sums)[M][N][4]) {
    asm volatile("wgmma.commit_group.sync.aligned;\n"
                 "wgmma.wait_group.sync.aligned 0;" ::: "memory");
    pin(sums);
}

// Registers of 64 x 32, 64 x 64, ... sums in the words of asm, and as its operands.
#define WGMMA_REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_REGISTERS_32 WGMMA_REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_REGISTERS_48 WGMMA_REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_REGISTERS_64 WGMMA_REGISTERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_FOUR(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define WGMMA_SUMS_16(n) WGMMA_FOUR(n), WGMMA_FOUR(n + 1), WGMMA_FOUR(n + 2), WGMMA_FOUR(n + 3)
#define WGMMA_SUMS_32 WGMMA_SUMS_16(0), WGMMA_SUMS_16(4)
#define WGMMA_SUMS_48 WGMMA_SUMS_32, WGMMA_SUMS_16(8)
#define WGMMA_SUMS_64 WGMMA_SUMS_48, WGMMA_SUMS_16(12)

/// c = a bᵀ or, if `add`, c += a bᵀ, of 64 x 16 and 8 N x 16 bf16 whose rows are contiguous.
template <int N>
__device__ __forceinline__ void wgmma(float (&c)[N][4], unsigned long long a, unsigned long long b, bool add) {
    static_assert(N == 4 || N == 8);
    if constexpr (N == 4) {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" WGMMA_REGISTERS_16 "}, %16, %17, p, 1, 1, 0, 0; }"
                     : WGMMA_SUMS_16(0)
                     : "l"(a), "l"(b), "r"(int(add)));
    } else {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_REGISTERS_32 "}, %32, %33, p, 1, 1, 0, 0; }"
                     : WGMMA_SUMS_32
                     : "l"(a), "l"(b), "r"(int(add)));
    }
}

/// c += a b, of 64 x 16 bf16 in the registers of four warps and 16 x 8 N in shared memory whose rows are contiguous.
template <int N>
__device__ __forceinline__ void wgmma(float (&c)[N][4], const unsigned (&a)[4], unsigned long long b) {
    static_assert(N == 8 || N == 12 || N == 16);
    if constexpr (N == 8) {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_REGISTERS_32
                     "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
                     : WGMMA_SUMS_32
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else if constexpr (N == 12) {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %53, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" WGMMA_REGISTERS_48
                     "}, {%48, %49, %50, %51}, %52, p, 1, 1, 1; }"
                     : WGMMA_SUMS_48
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_REGISTERS_64
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
                     : WGMMA_SUMS_64
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    }
}
