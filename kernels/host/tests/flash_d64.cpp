// Flash attention of one head dim: what broken kernels are tried on.
#include "flash.h"

int main() {
    emulator::catch_faults();
    for (const Shape& shape : {Shape{1, 2, 131, 205, 0}, {1, 1, 20, 50, -400}}) CHECK(bf16, 64, bf16, float, shape);
}
