// Casts between f32 and bf16, bit for bit, of uneven lengths and of arrays that begin anywhere.
#include "check.h"
#include "../../cast.cu"
#include <cfloat>

/// The nearest bf16 by its definition: of the two neighbours the nearer one, or the even one. `x` is finite.
u32 nearest(float x) {
    const u32 down = bits_of(x) >> 16;
    const double low = float_of(down << 16), step = std::abs(double(x)) - std::abs(low);
    const float next = float_of((down + 1) << 16);
    const double gap = std::isfinite(next) ? std::abs(double(next)) - std::abs(low) : std::ldexp(1.0, 120);
    return down + (step > gap / 2 || (step == gap / 2 && down % 2));
}

void same(const char* what, i64 n, i64 i, u32 got, u32 wanted) {
    if (got == wanted)
        return;
    fprintf(stderr, "check: %s of %lld elements: element %lld is %08x, not %08x\n", what, n, i, got, wanted);
    exit(2);
}

/// `n` elements, those of f32 beginning `x_at` and those of bf16 `y_at` elements into their arrays.
void check(i64 n, int x_at, int y_at) {
    auto values = normal<float>(n + x_at);
    const float edges[] = {0,         -0.0f,   1 + 0x1p-8f, 1 + 0x3p-8f, -1 - 0x1p-8f,
                           0x1p-149f, FLT_MAX, -FLT_MAX,    INFINITE,    -INFINITE};
    for (i64 i = 0; i < 10 && i < n; ++i)
        values[x_at + (i * 251) % n] = edges[i];
    for (Order order : emulator::orders) {
        const dim3 grid = {unsigned((n + THREADS * EACH - 1) / (THREADS * EACH))};
        const bool end = order != Order::Descending;
        Buffer<float> x(values, end), back(n + x_at, end);
        Buffer<bf16> y(n + y_at, end);
        LAUNCH(to_bf16, grid, order, x.data() + x_at, y.data() + y_at, n);
        LAUNCH(to_f32, grid, order, y.data() + y_at, back.data() + x_at, n);
        for (int i = 0; i < y_at; ++i)
            same("to_bf16, before it,", n, i, y.data()[i].bits, 0xFFFF);
        for (int i = 0; i < x_at; ++i)
            same("to_f32, before it,", n, i, bits_of(back.data()[i]), ~0u);
        for (i64 i = 0; i < n; ++i) {
            const float value = values[x_at + i];
            const u32 wanted = std::isfinite(value) ? nearest(value) : bits_of(value) >> 16;
            same("to_bf16", n, i, y.data()[y_at + i].bits, wanted);
            same("to_f32", n, i, bits_of(back.data()[x_at + i]), wanted << 16);
        }
    }
    printf("casts of %lld elements from %d to %d\n", n, x_at, y_at);
}

int main() {
    emulator::catch_faults();
    for (i64 n : {1, 7, 2047, 2048, 2049, 5000, 6144}) {
        check(n, 0, 0), check(n, 1, 0), check(n, 0, 3), check(n, 4, 8);
    }
    const float nan[] = {std::nanf("")};
    bf16 rounded;
    float back = 0;
    LAUNCH(to_bf16, dim3{}, Order::Ascending, nan, &rounded, 1);
    LAUNCH(to_f32, dim3{}, Order::Ascending, &rounded, &back, 1);
    same("NaN", 1, 0, std::isnan(back), true);
}
