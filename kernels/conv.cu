// What the VAE's convolutions need beside matrix products (src/vae/cuda/): frames made ready, and each output pixel's
// neighbourhood as a row of a matrix (im2col), a bounded tile of rows at a time.
#include "common.cuh"

/// What an output pixel sees of each of up to three frames, in units of a gather. A frame has a row more above and
/// below; beyond its columns there are zeros.
struct Taps {
    int frames, rows, columns; // of the kernel
    int row, column;           // that the first tap of the first output pixel reads; 1 is the frame's first
    int stride;                // input pixels from one output pixel to the next
    int width, channels;       // of the frames
    int out_width;             // pixels of an output row
    int run;                   // units of a row of the matrix for each frame, what the taps leave of it being zeros
};

namespace {

static_assert(conv_pack_f32_threads == THREADS && conv_pack_bf16_threads == THREADS);
static_assert(conv_gather_16_threads == THREADS && conv_gather_4_threads == THREADS);
static_assert(conv_gather_2_threads == THREADS);

constexpr int PIXELS = THREADS / 32; // of a block

/// y = x of n pixels, which with `factors` are scaled to norm 1 and multiplied by these, one a channel, and with `silu`
/// go through SiLU then; grid: ceil(n / PIXELS), a warp a pixel.
template <class T>
__device__ __forceinline__ void conv_pack(const float* x, T* y, const float* factors, i64 n, int channels, int silu) {
    const i64 pixel = i64(blockIdx.x) * PIXELS + threadIdx.x / 32;
    if (pixel >= n) return;
    const int lane = threadIdx.x % 32;
    x += pixel * channels, y += pixel * channels;
    float scale = 1;
    if (factors) {
        float squares = 0;
        for (int c = lane; c < channels; c += 32) squares += x[c] * x[c];
        scale = 1 / fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
    }
    for (int c = lane; c < channels; c += 32) {
        float value = x[c];
        if (factors) value *= scale * factors[c];
        if (factors && silu) value = value / (1 + expf(-value));
        store(y + c, value);
    }
}

/// a `[m, frames, run]`: what output pixels first, first + 1, ... see of the frames, the oldest first; channels, run
/// and n = m frames run, at most 2^31 - 1, count units of a number of bytes; grid: ceil(n / THREADS).
template <class Unit>
__device__ __forceinline__ void conv_gather(const Unit* oldest, const Unit* middle, const Unit* newest, Unit* a,
                                            i64 first, Taps taps, int n) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= u32(n)) return;
    const u32 unit = i % u32(taps.run), frame = i / u32(taps.run) % u32(taps.frames);
    const i64 pixel = first + i / u32(taps.run) / u32(taps.frames);
    const u32 of_row = u32(taps.columns) * u32(taps.channels); // neighbours in memory
    const int row = int(unit / of_row);
    const i64 line = i64(taps.width) * taps.channels;
    const i64 at = (pixel % taps.out_width * taps.stride + taps.column - 1) * taps.channels + unit % of_row;
    Unit value = {};
    if (row < taps.rows && at >= 0 && at < line) {
        const Unit* x = frame == 0 ? oldest : frame == 1 ? middle : newest;
        value = x[(pixel / taps.out_width * taps.stride + taps.row + row) * line + at];
    }
    a[i] = value;
}

} // namespace

#define CONV_PACK(TYPE, T)                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) conv_pack_##TYPE(  \
        const float* x, T* y, const float* factors, i64 n, int channels, int silu) { \
        conv_pack(x, y, factors, n, channels, silu);                         \
    }

#define CONV_GATHER(BYTES, UNIT)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS) conv_gather_##BYTES(                           \
        const UNIT* oldest, const UNIT* middle, const UNIT* newest, UNIT* a, i64 first, Taps taps, int n) { \
        conv_gather(oldest, middle, newest, a, first, taps, n);                                          \
    }

CONV_PACK(f32, float)
CONV_PACK(bf16, bf16)
CONV_GATHER(16, Sixteen)
CONV_GATHER(4, u32)
CONV_GATHER(2, unsigned short)
