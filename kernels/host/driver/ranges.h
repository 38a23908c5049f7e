// Ranges of memory that an operation reads and writes.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

struct Range {
    uint64_t at;
    size_t bytes;
};

/// What an operation reads and writes. Null is nothing.
struct Touches {
    std::vector<Range> reads, writes;

    template <class T>
    void read(const T* at, size_t count) {
        add(reads, at, count * sizeof(T));
    }
    template <class T>
    void write(T* at, size_t count) {
        add(writes, at, count * sizeof(T));
    }
    template <class T>
    void change(T* at, size_t count) {
        read(at, count), write(at, count);
    }

    /// (count, elements from one to the next) of each dim.
    using Dims = std::vector<std::pair<int64_t, int64_t>>;

    template <class T>
    void read(const T* at, const Dims& dims) {
        add(reads, at, sizeof(T), dims);
    }
    template <class T>
    void write(T* at, const Dims& dims) {
        add(writes, at, sizeof(T), dims);
    }

  private:
    static void add(std::vector<Range>& to, const volatile void* at, size_t bytes) {
        if (at && bytes) to.push_back({reinterpret_cast<uint64_t>(at), bytes});
    }

    static void add(std::vector<Range>& to, const volatile void* at, size_t size, Dims dims) {
        for (const auto& [count, stride] : dims) {
            if (count <= 0 || !at) return;
        }
        std::erase_if(dims, [](const auto& dim) { return dim.first == 1 || dim.second == 0; });
        std::sort(dims.begin(), dims.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
        size_t bytes = size; // of a run
        while (!dims.empty() && size_t(dims.back().second) * size == bytes) {
            bytes *= size_t(dims.back().first);
            dims.pop_back();
        }
        std::vector<uint64_t> starts = {reinterpret_cast<uint64_t>(at)};
        for (const auto& [count, stride] : dims) {
            std::vector<uint64_t> more;
            for (const uint64_t start : starts) {
                for (int64_t i = 0; i < count; ++i) more.push_back(start + uint64_t(i * stride) * size);
            }
            starts = std::move(more);
        }
        for (const uint64_t start : starts) to.push_back({start, bytes});
    }
};
