// A stored bf16, with the conversions that a GPU has.
#pragma once
#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits = 0;
    bf16() = default;
    /// To the nearest, ties to even; NaN stays NaN.
    explicit bf16(float value) {
        uint32_t all;
        memcpy(&all, &value, 4);
        bits = (all & 0x7FFFFFFF) > 0x7F800000 ? 0x7FFF : uint16_t((all + 0x7FFF + (all >> 16 & 1)) >> 16);
    }
    operator float() const {
        const uint32_t all = uint32_t(bits) << 16;
        float value;
        memcpy(&value, &all, 4);
        return value;
    }
};
