// Vector clocks of streams: how many operations of each stream come before what is next in a stream, or are known to
// the host to be done.
#pragma once
#include "order.h"
#include <cstdint>
#include <mutex>
#include <vector>

/// By the stream's number.
using Clock = std::vector<uint64_t>;

inline uint64_t seen(const Clock& clock, int stream) {
    return size_t(stream) < clock.size() ? clock[size_t(stream)] : 0;
}

/// An operation's place.
struct Position {
    int stream;
    uint64_t number;
    const Clock* clock; // the stream's
};

/// Held by whoever uses what follows.
std::mutex& order();

/// The place of the next operation of a stream, which begins after all that the host knows to be done.
Position next(void* stream);

/// What the host knows to be done.
const Clock& host();

/// An operation is at work on pinned memory, which the host may read only, or not touch, until it knows that it is
/// done.
void close_pinned(const Range& range, bool writes, int stream, uint64_t number, const char* what);

/// The host knows this now.
void open_pinned(const Clock& known);
