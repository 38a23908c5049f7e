// Flash attention of all head dims, of even and uneven lengths, single rows, extreme logits.
#include "flash.h"

int main() {
    emulator::catch_faults();
    // More tiles than slots, fewer, even, single rows.
    for (const Shape& shape : {Shape{1, 2, 131, 205, 0}, {1, 1, 131, 77, 0}, {1, 1, 128, 128, 0}, {2, 1, 1, 1, 0}}) {
        CHECK(bf16, 64, bf16, float, shape);
        CHECK(bf16, 96, bf16, float, shape);
        CHECK(bf16, 128, bf16, float, shape);
    }
    for (const Shape& shape : {Shape{1, 1, 1, 200, 0}, {1, 1, 65, 1, 0}, {1, 1, 70, 333, 0}})
        CHECK(bf16, 64, bf16, float, shape);
    for (float logits : {100.0f, 1e4f, -400.0f}) {
        const Shape extreme = {1, 1, 40, 100, logits};
        CHECK(bf16, 64, bf16, float, extreme);
        CHECK(partial_bf16, 128, float, double, extreme);
    }
    const Shape small = {1, 2, 33, 65, 0};
    CHECK(partial_bf16, 64, float, double, small);
    CHECK(partial_bf16, 96, float, double, small);
    CHECK(partial_bf16, 128, float, double, small);
}
