// What tests may wish of the emulated driver, by environment variables: docs/gpu.md lists them.
#pragma once
#include <cstdint>
#include <cstdlib>

/// The variable as a number, or `usual` where it is not set.
inline uint64_t wish(const char* variable, uint64_t usual) {
    const char* text = getenv(variable);
    return text && *text ? strtoull(text, nullptr, 10) : usual;
}
