// Flash attention of all head dims, of even and uneven lengths, single rows, extreme logits.
#include "flash.h"

CHECK(64, bf16_d, bf16, float)
CHECK(96, bf16_d, bf16, float)
CHECK(128, bf16_d, bf16, float)
CHECK(64, partial_bf16_d, float, double)
CHECK(96, partial_bf16_d, float, double)
CHECK(128, partial_bf16_d, float, double)

int main() {
    emulator::catch_faults();
    const Shape uneven = {1, 2, 131, 77, 0}, even = {1, 1, 128, 128, 0}, one = {2, 1, 1, 1, 0};
    check_bf16_d64(uneven);
    check_bf16_d64({1, 1, 20, 50, -400});
    check_bf16_d64({1, 1, 70, 333, 0});
    check_bf16_d96({1, 1, 131, 77, 0});
    check_bf16_d128({1, 1, 131, 77, 0});
    check_bf16_d64(even), check_bf16_d96(even), check_bf16_d128(even);
    check_bf16_d64(one), check_bf16_d96(one), check_bf16_d128(one);
    check_bf16_d64({1, 1, 1, 200, 0}), check_bf16_d96({1, 1, 65, 1, 0});
    for (float logits : {100.0f, 1e4f, -400.0f}) {
        check_bf16_d64({1, 1, 40, 100, logits});
        check_partial_bf16_d128({1, 1, 40, 100, logits});
    }
    check_partial_bf16_d64({1, 1, 33, 65, 0}), check_partial_bf16_d96({1, 1, 33, 65, 0});
    check_partial_bf16_d128({1, 2, 33, 65, 0});
}
