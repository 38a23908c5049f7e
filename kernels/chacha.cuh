// ChaCha8 streams, word for word those of src/rng.rs on a CPU: a key names (seed, purpose, step, sample), the stream is
// the token.
#pragma once
#include "common.cuh"

/// The 32 bytes of a Key as little-endian words.
struct Key {
    u32 words[8];
};

__device__ __forceinline__ u32 rotate(u32 x, int bits) {
    return x << bits | x >> (32 - bits);
}

__device__ __forceinline__ void quarter_round(u32& a, u32& b, u32& c, u32& d) {
    a += b, d = rotate(d ^ a, 16);
    c += d, b = rotate(b ^ c, 12);
    a += b, d = rotate(d ^ a, 8);
    c += d, b = rotate(b ^ c, 7);
}

/// Block `counter` of a stream of ChaCha with 8 rounds; counter and stream are of 64 bits each.
__device__ __forceinline__ void chacha8(u32 (&out)[16], const Key& key, u64 stream, u64 counter) {
    u32 start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}; // "expand 32-byte k"
    for (int i = 0; i < 8; ++i) start[4 + i] = key.words[i];
    start[12] = u32(counter), start[13] = u32(counter >> 32);
    start[14] = u32(stream), start[15] = u32(stream >> 32);
    for (int i = 0; i < 16; ++i) out[i] = start[i];
    for (int round = 0; round < 8; round += 2) {
        for (int i = 0; i < 4; ++i) quarter_round(out[i], out[4 + i], out[8 + i], out[12 + i]);
        for (int i = 0; i < 4; ++i) {
            quarter_round(out[i], out[4 + (i + 1) % 4], out[8 + (i + 2) % 4], out[12 + (i + 3) % 4]);
        }
    }
    for (int i = 0; i < 16; ++i) out[i] += start[i];
}
