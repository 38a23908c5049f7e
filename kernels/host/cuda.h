// The CUDA that the kernels use, for the emulator: what device.cuh is on a GPU.
//
// Fragment layouts are those of the PTX ISA (warp-level matrix instructions, mma.m16n8k16 with .bf16 and ldmatrix).
#pragma once
#include "emulator.h"
#include <cmath>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emulator::self->index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.size)
#define gridDim (emulator::block.grid)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline void __syncthreads() {
    emulator::barrier();
}

inline void __syncwarp() {
    emulator::collective("syncwarp", ~0u, nullptr, [](emulator::Warp& warp) { ++warp.epoch; });
}

namespace emulator {

template <class T>
T shuffle(const char* what, unsigned mask, T value, unsigned from) {
    struct Arguments {
        T value, result;
        unsigned from;
    } arguments = {value, value, from};
    collective(what, mask, &arguments, [what](Warp& warp) {
        for (unsigned lane = 0; lane < 32; ++lane) {
            if (!(warp.mask >> lane & 1)) continue;
            auto* mine = static_cast<Arguments*>(warp.arguments[lane]);
            if (mine->from > 31 || !(warp.mask >> mine->from & 1))
                fail("%s: lane %u reads lane %u", what, lane, mine->from);
            mine->result = static_cast<Arguments*>(warp.arguments[mine->from])->value;
        }
    });
    return arguments.result;
}

} // namespace emulator

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return emulator::shuffle("shuffle", mask, value, emulator::self->lane ^ lanes);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return emulator::shuffle("shuffle", mask, value, lane);
}

inline float float_of(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline unsigned bits_of(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/// To the nearest bf16, ties to even; NaN stays NaN.
inline unsigned bf16_bits(float value) {
    const unsigned bits = bits_of(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

inline unsigned bf16_pair(float low, float high) {
    return bf16_bits(low) | bf16_bits(high) << 16;
}

inline void sincospif(float x, float* sine, float* cosine) {
    *sine = float(std::sin(M_PI * x)), *cosine = float(std::cos(M_PI * x));
}

inline float exp2_fast(float x) {
    return exp2f(x);
}

// ---- asynchronous copies
// --------------------------------------------------------------------------------------------------

/// Until its wait the target holds NaN and must not be touched; the source is read at the wait.
template <int BYTES, class T>
void cp_async(Shared<T> target, const void* source, int valid) {
    static_assert(BYTES == 4 || BYTES == 16);
    target.check(BYTES);
    if (valid < 0 || valid > BYTES) emulator::fail("cp.async of %d bytes with %d valid", BYTES, valid);
    if (reinterpret_cast<uintptr_t>(source) % BYTES) emulator::fail("cp.async: the source is not aligned to %d", BYTES);
    emulator::check_words(target.offset, BYTES, true);
    for (int i = 0; i < BYTES / 4; ++i) emulator::block.words[target.offset / 4 + i].pending = true;
    memset(&emulator::block.shared[target.offset], 0xFF, BYTES);
    emulator::self->copies.push_back({target.offset, source, BYTES, unsigned(valid), emulator::self->group});
}

inline void cp_async_commit() {
    ++emulator::self->group;
}

/// Finishes all but the last `LEFT` groups, and nothing that was not committed.
template <int LEFT>
void cp_async_wait() {
    auto& thread = *emulator::self;
    std::vector<emulator::Copy> kept;
    for (const auto& copy : thread.copies) {
        if (copy.group + LEFT >= thread.group) {
            kept.push_back(copy);
            continue;
        }
        for (unsigned i = 0; i < copy.bytes / 4; ++i) emulator::block.words[copy.target / 4 + i].pending = false;
        emulator::check_words(copy.target, copy.bytes, true);
        memset(&emulator::block.shared[copy.target], 0, copy.bytes);
        memcpy(&emulator::block.shared[copy.target], copy.source, copy.valid);
    }
    thread.copies = kept;
}

// ---- matrix instructions
// ----------------------------------------------------------------------------------------------------

/// Four 8 x 8 matrices of 16-bit numbers; lanes 8 i to 8 i + 7 name the rows of matrix i. A lane gets from each matrix
/// the numbers 2 (lane % 4) and the next of row lane / 4, or, transposed, of column lane / 4.
template <bool TRANSPOSED, class T>
void ldmatrix(unsigned (&result)[4], Shared<T> row) {
    struct Arguments {
        unsigned* result;
        uint16_t row[8];
    } arguments = {result, {}};
    row.check(16);
    emulator::check_words(row.offset, 16, false);
    memcpy(arguments.row, &emulator::block.shared[row.offset], 16);
    emulator::collective("ldmatrix", ~0u, &arguments, [](emulator::Warp& warp) {
        const auto of = [&](int lane) { return static_cast<Arguments*>(warp.arguments[lane]); };
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 4; ++i) {
                const int a = lane / 4, b = lane % 4 * 2;
                const unsigned low = TRANSPOSED ? of(i * 8 + b)->row[a] : of(i * 8 + a)->row[b];
                const unsigned high = TRANSPOSED ? of(i * 8 + b + 1)->row[a] : of(i * 8 + a)->row[b + 1];
                of(lane)->result[i] = low | high << 16;
            }
        }
    });
}

/// c += a b, of 16 x 16 and 16 x 8 bf16. The ISA leaves the order of the sum open; here it is taken in f64 and rounded
/// once.
inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Arguments {
        float* c;
        unsigned a[4], b[2];
    } arguments = {c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulator::collective("mma", ~0u, &arguments, [](emulator::Warp& warp) {
        static float left[16][16], right[8][16]; // [row][k], [column][k]
        for (int lane = 0; lane < 32; ++lane) {
            const auto& mine = *static_cast<Arguments*>(warp.arguments[lane]);
            const int group = lane / 4, k = lane % 4 * 2;
            for (int half = 0; half < 2; ++half) {
                const auto part = [half](unsigned pair) { return float_of(half ? pair & 0xFFFF0000 : pair << 16); };
                for (int i = 0; i < 4; ++i) left[group + i % 2 * 8][k + half + i / 2 * 8] = part(mine.a[i]);
                for (int i = 0; i < 2; ++i) right[group][k + half + i * 8] = part(mine.b[i]);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            float* c = static_cast<Arguments*>(warp.arguments[lane])->c;
            for (int i = 0; i < 4; ++i) {
                const float *row = left[lane / 4 + i / 2 * 8], *column = right[lane % 4 * 2 + i % 2];
                double sum = 0;
                for (int k = 0; k < 16; ++k) sum += double(row[k]) * column[k];
                c[i] = float(c[i] + sum);
            }
        }
    });
}
