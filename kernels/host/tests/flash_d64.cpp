// Flash attention of one head dim: what mutated kernels are tried on.
#include "flash.h"

CHECK(64, bf16_d, bf16, float)

int main() {
    emulator::catch_faults();
    check_bf16_d64({1, 2, 131, 77, 0});
    check_bf16_d64({1, 1, 20, 50, -400});
}
