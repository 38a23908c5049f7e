// cuRAND for the emulated driver, which Candle opens with a device and nothing here draws from.
#include <cstddef>

namespace {

char generator_handle;

} // namespace

extern "C" {
int curandCreateGenerator(void** generator, int) {
    *generator = &generator_handle;
    return 0;
}
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) {
    return 0;
}
int curandSetStream(void*, void*) {
    return 0;
}
int curandDestroyGenerator(void*) {
    return 0;
}
int curandGenerateUniform(void*, float* to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = float(i % 97) / 97;
    return 0;
}
}
