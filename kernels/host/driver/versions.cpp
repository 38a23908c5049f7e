// Of which version the emulated libraries are.
#include "wishes.h"

extern "C" int cublasGetProperty(int property, int* value) {
    *value = property == 0 ? int(wish("EMULATED_CUBLAS", 13)) : 0; // major, minor, patch
    return 0;
}
