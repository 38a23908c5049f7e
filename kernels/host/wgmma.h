// The warpgroup's matrix instructions for the emulator: what wgmma.cuh is on a GPU.
//
// Matrix descriptors, the layouts that they stand for and fragments are those of the PTX ISA ("Asynchronous Warpgroup
// Level Matrix Multiply-Accumulate"). Products are carried out as late as may be, at their wait, so that an operand
// that was overwritten too early shows. Registers must have been given to `wgmma_begin`, and until the wait nobody may
// write them; accumulators hold signalling NaNs until then, which no arithmetic leaves as they are. Shared memory must
// have been published by whoever wrote it, before a barrier.
#pragma once
#include "emulator.h"

template <class T>
unsigned address_of(Shared<T> p) {
    p.check(16);
    return p.offset;
}

inline void wgmma_publish() {
    emulator::self->publishings.push_back(emulator::block.epoch);
}

namespace emulator {

constexpr uint32_t TAKEN = 0x7FA00000; // a signalling NaN

inline void begin(void* registers, size_t size, bool accumulators) {
    for (const Registers& other : self->ready) {
        if (other.begin == registers) fail("wgmma: registers are given to products that have them already");
    }
    const auto* bytes = static_cast<const unsigned char*>(registers);
    self->ready.push_back({registers, {bytes, bytes + size}, accumulators});
    for (size_t i = 0; i < size && accumulators; i += 4) memcpy(static_cast<char*>(registers) + i, &TAKEN, 4);
}

inline bool is_ready(const void* registers, size_t size, bool accumulators) {
    const auto* first = static_cast<const unsigned char*>(registers);
    for (const Registers& of : self->ready) {
        const auto* begin = static_cast<const unsigned char*>(of.begin);
        if (begin <= first && first + size <= begin + of.bytes.size()) return of.accumulators == accumulators;
    }
    return false;
}

/// At the wait: gives registers back, accumulators with what they held.
inline void give_back(Thread& thread) {
    for (const Registers& of : thread.ready) {
        const auto* now = static_cast<const unsigned char*>(of.begin);
        for (size_t i = 0; i < of.bytes.size(); i += 4) {
            if (memcmp(now + i, of.accumulators ? reinterpret_cast<const unsigned char*>(&TAKEN) : &of.bytes[i], 4)) {
                fail("wgmma: %s of thread %u are written to while products have them",
                     of.accumulators ? "accumulators" : "left operands", thread.number);
            }
        }
        memcpy(of.begin, of.bytes.data(), of.bytes.size());
    }
    thread.ready.clear();
}

inline void multiply_later(float* c, unsigned columns, bool add, const unsigned* a, uint64_t a_matrix, uint64_t b_matrix) {
    if (!is_ready(c, columns / 2 * sizeof(float), true)) fail("wgmma: accumulators may not be ready");
    if (a && !is_ready(a, 4 * sizeof(unsigned), false)) fail("wgmma: operands in registers may not be ready");
    Multiply product = {c, columns, add, a != nullptr, {}, a_matrix, b_matrix};
    if (a) memcpy(product.a, a, sizeof product.a);
    self->products.push_back(product);
}

/// The number at a place of the matrix in shared memory that a descriptor stands for: `summed` counts along what the
/// product sums over, `other` along the operand's other dimension. `contiguous`: whether it is the numbers along
/// `summed` that are neighbours.
inline float element(uint64_t matrix, unsigned other, unsigned summed, bool contiguous) {
    const unsigned begin = (matrix & 0x3FFF) << 4, leading = (matrix >> 16 & 0x3FFF) << 4;
    const unsigned stride = (matrix >> 32 & 0x3FFF) << 4, mode = matrix >> 62;
    if (mode != 1 && mode != 2) fail("wgmma: a matrix with swizzle %u", mode);
    const unsigned row = mode == 1 ? 128 : 64; // bytes
    unsigned at = begin;
    if (contiguous) {
        at += other / 8 * stride + other % 8 * row + summed * 2;
    } else {
        at += other * 2 / row * leading + other * 2 % row + summed / 8 * stride + summed % 8 * row;
    }
    at ^= (at >> 7 & (row / 16 - 1)) << 4;
    if (at + 2 > block.shared.size()) fail("wgmma: byte %u is outside shared memory", at);
    Word& word = block.words[at / 4];
    check_word(at / 4, false);
    word.reader = word.reader_warp = Word::many;
    const Thread& writer = block.thread[word.writer];
    if (writer.publishings.size() <= word.publishings || writer.publishings[word.publishings] >= block.epoch) {
        fail("wgmma: shared word %u was not published before the last barrier", at / 4);
    }
    uint16_t bits;
    memcpy(&bits, &block.shared[at], 2);
    return float_of(unsigned(bits) << 16);
}

/// One product of the 128 threads. Sums are taken in f64 and rounded once, as the ISA leaves their order open.
inline void multiply(Thread* threads, size_t index) {
    const Multiply& first = threads->products[index];
    static float a[64][16], b[256][16]; // [row or column][k]
    for (unsigned t = 0; t < 128; ++t) {
        if (index >= threads[t].products.size()) fail("wgmma: thread %u takes no part in a product", t);
        const Multiply& its = threads[t].products[index];
        if (its.columns != first.columns || its.add != first.add || its.from_registers != first.from_registers ||
            its.a_matrix != first.a_matrix || its.b_matrix != first.b_matrix) {
            fail("wgmma: thread %u takes part in another product", t);
        }
        const unsigned row = t / 32 * 16 + t % 32 / 4, k = t % 4 * 2;
        for (unsigned i = 0; i < 4 && its.from_registers; ++i) {
            a[row + i % 2 * 8][k + i / 2 * 8] = float_of(its.a[i] << 16);
            a[row + i % 2 * 8][k + i / 2 * 8 + 1] = float_of(its.a[i] & 0xFFFF0000);
        }
    }
    for (unsigned k = 0; k < 16; ++k) {
        for (unsigned row = 0; row < 64 && !first.from_registers; ++row) a[row][k] = element(first.a_matrix, row, k, true);
        for (unsigned n = 0; n < first.columns; ++n) b[n][k] = element(first.b_matrix, n, k, !first.from_registers);
    }
    for (unsigned t = 0; t < 128; ++t) {
        const unsigned row = t / 32 * 16 + t % 32 / 4;
        float* c = threads[t].products[index].c;
        for (unsigned i = 0; i < first.columns / 2; ++i) {
            const float *left = a[row + i % 4 / 2 * 8], *right = b[i / 4 * 8 + t % 4 * 2 + i % 2];
            double sum = 0;
            for (unsigned k = 0; k < 16; ++k) sum += double(left[k]) * right[k];
            c[i] = float(first.add ? c[i] + sum : sum);
        }
    }
}

} // namespace emulator

template <int M, int N>
void pin(float (&accumulators)[M][N][4]) {
    emulator::begin(accumulators, sizeof accumulators, true);
}

template <int M, int N>
void pin(unsigned (&left)[M][N][4]) {
    emulator::begin(left, sizeof left, false);
}

template <class... Registers>
void wgmma_begin(Registers&... registers) {
    (pin(registers), ...);
}

template <int M, int N>
void wgmma_end(float (&)[M][N][4]) {
    emulator::collective_of_warpgroup([](emulator::Thread* threads) {
        for (int t = 0; t < 128; ++t) emulator::give_back(threads[t]);
        for (size_t i = 0; i < threads->products.size(); ++i) emulator::multiply(threads, i);
        for (int t = 0; t < 128; ++t) threads[t].products.clear();
    });
}

template <int N>
void wgmma(float (&c)[N][4], uint64_t a, uint64_t b, bool add) {
    emulator::multiply_later(&c[0][0], N * 8, add, nullptr, a, b);
}

template <int N>
void wgmma(float (&c)[N][4], const unsigned (&a)[4], uint64_t b) {
    emulator::multiply_later(&c[0][0], N * 8, true, a, 0, b);
}
