// Streams and events of the emulated driver. Streams do their work at once; clocks tell what would have been waited
// for.
#include "clocks.h"
#include "faults.h"
#include "order.h"
#include "pool.h"
#include <algorithm>
#include <set>

namespace {

struct Stream {
    int number;
    Clock clock;
};

/// What it was recorded after; nothing until then.
struct Event {
    Clock clock;
};

Clock known;    // to the host
Clock finished; // of streams that are gone
int streams_made = 0;
std::set<Stream*> streams;

void join(Clock& clock, const Clock& other) {
    clock.resize(std::max(clock.size(), other.size()));
    for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

void host_knows(const Clock& clock) {
    join(known, clock);
    open_pinned(known);
}

Stream* make() {
    return *streams.insert(new Stream{streams_made++, {}}).first;
}

Stream& stream_of(void* handle) {
    if (!handle || handle == reinterpret_cast<void*>(1)) { // CU_STREAM_LEGACY
        static Stream* const usual = make();
        return *usual;
    }
    if (handle == reinterpret_cast<void*>(2)) { // CU_STREAM_PER_THREAD
        thread_local Stream* const mine = make();
        return *mine;
    }
    return *static_cast<Stream*>(handle);
}

Event& event_of(void* handle) {
    return *static_cast<Event*>(handle);
}

int create(void** handle) {
    const std::lock_guard guard(order());
    *handle = make();
    return 0;
}

} // namespace

std::mutex& order() {
    static std::mutex lock;
    return lock;
}

Position next(void* handle) {
    Stream& stream = stream_of(handle);
    join(stream.clock, known);
    stream.clock.resize(std::max(stream.clock.size(), size_t(stream.number) + 1));
    return {stream.number, ++stream.clock[size_t(stream.number)], &stream.clock};
}

const Clock& host() {
    return known;
}

void host_waits(StreamHandle stream) {
    const std::lock_guard guard(order());
    host_knows(stream_of(stream).clock);
}

extern "C" {
int cuCtxSynchronize() {
    const std::lock_guard guard(order());
    host_knows(finished);
    for (const Stream* stream : streams) host_knows(stream->clock);
    pool_synchronized();
    return fault_synchronized();
}
int cuStreamCreate(void** stream, unsigned) {
    return create(stream);
}
int cuStreamCreateWithPriority(void** stream, unsigned, int) {
    return create(stream);
}
/// What is in it goes on.
int cuStreamDestroy_v2(void* handle) {
    const std::lock_guard guard(order());
    auto* stream = static_cast<Stream*>(handle);
    join(finished, stream->clock);
    streams.erase(stream);
    delete stream;
    return 0;
}
int cuStreamSynchronize(void* stream) {
    host_waits(stream);
    pool_synchronized();
    return fault_synchronized();
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    const std::lock_guard guard(order());
    join(stream_of(stream).clock, event_of(event).clock);
    return 0;
}
int cuStreamIsCapturing(void*, int* status) {
    *status = 0;
    return 0;
}
int cuEventCreate(void** event, unsigned) {
    *event = new Event;
    return 0;
}
int cuEventDestroy_v2(void* event) {
    const std::lock_guard guard(order());
    delete static_cast<Event*>(event);
    return 0;
}
int cuEventRecord(void* event, void* stream) {
    const std::lock_guard guard(order());
    next(stream);
    event_of(event).clock = stream_of(stream).clock;
    return 0;
}
/// It is complete: from now on the host knows.
int cuEventQuery(void* event) {
    const std::lock_guard guard(order());
    host_knows(event_of(event).clock);
    return fault_synchronized();
}
int cuEventSynchronize(void* event) {
    pool_synchronized();
    return cuEventQuery(event);
}
}
