// Rows of patches from u8 frames, with noise: what src/data/frames.rs, src/diffusion/noise.rs and src/rng.rs do on a
// CPU.
//
// A token's noise is a ChaCha8 stream: the key names (seed, purpose, step, sample), the stream is the token. The random
// words are those of the CPU bit for bit, the normals made of them the same but for the rounding of log, cosine and
// sine. A thread draws one block of 16 words, which makes 16 values of a row in channel-last order (pt, ph, pw, C).
#include "chacha.cuh"

/// Frames `first` on of a clip, of each `lines` lines of pixels from line `top` on, `[n, lines, width, 3]`, and the
/// patch (frames, height, width); the grid is (any, height / ph, width / pw).
struct Frames {
    const u8* pixels;
    int first, top, lines;
    int height, width;
    int pt, ph, pw;
};

namespace {

static_assert(noisy_patches_threads == THREADS);

/// Two normal numbers from two words (Box-Muller).
__device__ __forceinline__ float2 normals(u32 one, u32 two) {
    constexpr float UNIT = 1.0f / (1 << 24);
    const float radius = sqrtf(-2 * logf(float((one >> 8) + 1) * UNIT));
    float sine, cosine;
    sincospif(2 * (float(two >> 8) * UNIT), &sine, &cosine);
    return {radius * cosine, radius * sine};
}

} // namespace

/// For `count` tokens from `token` on, whatever of these is not null: `x0` and `noise` `[count, row]` channel-last, and
/// `x` = keep x0 + add noise, channel-first (C, pt, ph, pw). Without x0 and x, frames.pixels may be null. grid:
/// ceil(count ceil(row / 16) / THREADS), where row = 3 pt ph pw.
extern "C" __global__ void __launch_bounds__(THREADS)
    noisy_patches(Frames frames, Key key, i64 token, int count, float keep, float add, float* x0, float* noise,
                  float* x) {
    const int plane = frames.pt * frames.ph * frames.pw, row = 3 * plane, blocks = (row + 15) / 16;
    const i64 thread = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (thread >= i64(count) * blocks) return;
    const i64 local = thread / blocks;
    const int block = int(thread % blocks);
    u32 words[16];
    chacha8(words, key, token + local, block);
    const int columns = frames.width / frames.pw, grid = frames.height / frames.ph * columns;
    const i64 t = (token + local) / grid;
    const int h = int((token + local) % grid) / columns, w = int((token + local) % grid) % columns;
#pragma unroll
    for (int pair = 0; pair < 8; ++pair) {
        const float2 drawn = normals(words[pair * 2], words[pair * 2 + 1]);
#pragma unroll
        for (int which = 0; which < 2; ++which) {
            const int i = block * 16 + pair * 2 + which;
            if (i >= row) return;
            const float eps = which ? drawn.y : drawn.x;
            if (noise) noise[local * row + i] = eps;
            if (!x0 && !x) continue;
            const int c = i % 3, offset = i / 3; // within the patch: (dt, dh, dw)
            const int dw = offset % frames.pw, dh = offset / frames.pw % frames.ph,
                      dt = offset / (frames.pw * frames.ph);
            const i64 frame = t * frames.pt + dt - frames.first;
            const i64 line = frame * frames.lines + h * frames.ph + dh - frames.top;
            const i64 pixel = line * frames.width + w * frames.pw + dw;
            const float clean = frames.pixels[pixel * 3 + c] / 127.5f - 1;
            if (x0) x0[local * row + i] = clean;
            if (x) x[local * row + c * plane + offset] = keep * clean + add * eps;
        }
    }
}
