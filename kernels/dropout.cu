// Dropout of an adapter's input: what src/ops/dropout.rs draws on a CPU, element for element.
//
// A token's draws are the 16-bit halves of the words of its ChaCha8 stream, one an element. A thread draws one block of
// 16 words, for 32 elements of a row. Then the lanes of its warp pass their masks around, so that neighbours read
// neighbours.
#include "chacha.cuh"

namespace {

static_assert(dropout_threads == THREADS);

constexpr int DRAWN = 32; // elements of a block of words

} // namespace

/// y = scale x of `n` rows of `width` elements, the tokens from `token` on of the sample that `key` names, and zero
/// where less than `least` is drawn; with `add` that is added to y instead. y may be x. grid:
/// ceil(n ceil(width / DRAWN) / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    dropout(const float* x, float* y, Key key, i64 token, i64 n, int width, u32 least, float scale, int add) {
    const int blocks = (width + DRAWN - 1) / DRAWN, lane = threadIdx.x % 32;
    const i64 all = n * blocks, thread = i64(blockIdx.x) * THREADS + threadIdx.x, first = thread - lane;
    u32 kept = 0; // a bit an element
    if (thread < all) {
        u32 words[16];
        chacha8(words, key, token + thread / blocks, thread % blocks);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            kept |= u32((words[i] & 0xFFFF) >= least) << 2 * i | u32(words[i] >> 16 >= least) << (2 * i + 1);
        }
    }
    i64 row = first / blocks;
    int block = int(first % blocks);
    for (int i = 0; i < 32; ++i) {
        const u32 bits = __shfl_sync(WARP, kept, i);
        const int column = block * DRAWN + lane;
        if (first + i < all && column < width) {
            const i64 at = row * width + column;
            const float value = bits >> lane & 1 ? x[at] * scale : 0;
            y[at] = add ? y[at] + value : value;
        }
        if (++block == blocks) block = 0, ++row;
    }
}
