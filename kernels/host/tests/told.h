// Holds what ../driver/touches.h tells of a kernel against what it does. It must write no other byte than it is said to
// write; and all of these, with the same bits, if every byte that it is not said to read is made another before.
#pragma once
#include "../driver/touches.h"
#include "../memory.h"

namespace told {

using Bytes = std::vector<unsigned char>;

/// For each buffer a byte for each of its own: 1 where a range lies.
inline std::map<char*, Bytes> cover(const char* name, const std::vector<Range>& ranges) {
    std::map<char*, Bytes> all;
    for (const auto& [at, bytes] : emulator::buffers) all[at].resize(bytes);
    for (const auto& [at, bytes] : ranges) {
        const auto after = all.upper_bound(reinterpret_cast<char*>(at));
        if (after == all.begin()) continue; // a variable of the test's
        const size_t size = std::prev(after)->second.size(), start = at - reinterpret_cast<uint64_t>(std::prev(after)->first);
        if (start > size) continue;
        if (start + bytes > size) {
            emulator::fail("%s: touches.h tells of %zu bytes that end beyond a buffer of %zu", name, bytes, size);
        }
        std::fill_n(std::prev(after)->second.begin() + long(start), bytes, 1);
    }
    return all;
}

inline std::map<char*, Bytes> contents() {
    std::map<char*, Bytes> all;
    for (const auto& [at, bytes] : emulator::buffers) all[at] = Bytes(at, at + bytes);
    return all;
}

inline void check(const char* name, const Touches& touches, const std::function<void()>& run) {
    const auto reads = cover(name, touches.reads), writes = cover(name, touches.writes);
    const auto before = contents();
    run();
    const auto after = contents();
    for (const auto& [at, bytes] : before) {
        for (size_t i = 0; i < bytes.size(); ++i) {
            if (bytes[i] != after.at(at)[i] && !writes.at(at)[i]) {
                emulator::fail("%s writes byte %zu of a buffer of %zu, of which touches.h does not tell", name, i,
                               bytes.size());
            }
            at[i] = char(reads.at(at)[i] ? bytes[i] : ~bytes[i]);
        }
    }
    run();
    for (const auto& [at, bytes] : after) {
        for (size_t i = 0; i < bytes.size(); ++i) {
            if (writes.at(at)[i] && (unsigned char)at[i] != bytes[i]) {
                emulator::fail(
                    "%s: touches.h does not tell of all that is read, or of more writes than there are: byte %zu of a "
                    "buffer of %zu",
                    name, i, bytes.size());
            }
        }
        std::copy(bytes.begin(), bytes.end(), at);
    }
}

} // namespace told
