// Memory of the emulated GPU with its last write and the reads since; see order.h.
#include "order.h"
#include "clocks.h"
#include "memory.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <unistd.h>

namespace {

/// When an operation was, and what. In no stream: before all else.
struct Access {
    int stream = -1;
    uint64_t number = 0;
    const std::string* what = nullptr;

    bool operator==(const Access&) const = default;
};

/// Bytes that were written together and read by the same.
struct Segment {
    uint64_t end;
    Access write;
    std::vector<Access> reads; // the last one of each stream

    bool same(const Segment& other) const { return write == other.write && reads == other.reads; }
};

struct Allocation {
    size_t bytes;
    const char* how;
    std::map<uint64_t, Segment> segments; // by where they begin
};

std::map<uint64_t, Allocation> allocations;

/// Names of operations, which accesses point to.
const std::string* name_of(const std::string& what) {
    static std::set<std::string> names;
    return &*names.insert(what).first;
}

std::string text(const char* format, ...) {
    char line[1000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

[[noreturn]] void fail(const std::string& message) {
    fprintf(stderr, "emulated driver: %s\n", message.c_str());
    _exit(FAILED);
}

/// Races that were told, in how many operations, and in which one last; with EMULATED_RACES=all the process goes on to
/// its end with them.
struct Told {
    int count = 0;
    uint64_t last = 0;
};
std::map<std::string, Told> told;

void race(const std::string& kind, uint64_t number, const std::string& message) {
    const char* wish = getenv("EMULATED_RACES");
    if (!wish || strcmp(wish, "all") != 0) fail("race: " + message);
    if (told.empty()) {
        atexit([] {
            for (const auto& [kind, of] : told)
                fprintf(stderr, "emulated driver: %d times: %s\n", of.count, kind.c_str());
            _exit(FAILED);
        });
    }
    Told& of = told[kind];
    if (of.count == 0) fprintf(stderr, "emulated driver: race: %s\n", message.c_str());
    if (of.count == 0 || of.last != number) ++of.count;
    of.last = number;
}

/// An operation that is at work, and where its stream is.
struct Actor {
    Access self;
    const Clock* clock;
};

using Number = unsigned long long; // for printf

/// `before` did what it does to bytes from `at` to `end`: an error if that may not be over when `actor` does what it
/// does.
void check(const Actor& actor, const char* does, const Access& before, const char* did, uint64_t at, uint64_t end,
           uint64_t base, const Allocation& allocation) {
    const int stream = before.stream;
    if (stream < 0 || seen(*actor.clock, stream) >= before.number) return;
    const Access& self = actor.self;
    const std::string who = self.stream < 0 ? "the host" : text("stream %d", self.stream);
    const std::string mine = self.stream < 0 ? "" : text(", operation %llu of %s,", Number(self.number), who.c_str());
    const std::string bytes = text("bytes %llu to %llu of an allocation of %zu (%s)", Number(at - base),
                                   Number(end - base), allocation.bytes, allocation.how);
    const std::string theirs =
        text("%s, operation %llu of stream %d, %s", before.what->c_str(), Number(before.number), stream, did);
    const std::string waits =
        text("%s has waited for operation %llu of stream %d", who.c_str(), Number(seen(*actor.clock, stream)), stream);
    race(*self.what + " " + does + " what " + *before.what + " " + did, self.number,
         *self.what + mine + " " + does + " " + bytes + ", which " + theirs + "; " + waits +
             ", and must wait for an event that is recorded there after " + *before.what);
}

/// A segment begins at `at`.
void split(Allocation& allocation, uint64_t at) {
    const auto after = allocation.segments.upper_bound(at);
    if (after == allocation.segments.begin()) return;
    const auto it = std::prev(after);
    if (it->first == at || it->second.end <= at) return;
    Segment rest = it->second;
    it->second.end = at;
    allocation.segments.emplace(at, std::move(rest));
}

/// The allocation that the range lies in.
std::pair<const uint64_t, Allocation>& holding(const Range& range, const Access& self) {
    const auto after = allocations.upper_bound(range.at);
    if (after != allocations.begin()) {
        const auto it = std::prev(after);
        if (range.at + range.bytes <= it->first + it->second.bytes) return *it;
        if (range.at < it->first + it->second.bytes) {
            fail(*self.what + text(" touches bytes %llu to %llu of an allocation of %zu (%s)",
                                   Number(range.at - it->first), Number(range.at + range.bytes - it->first),
                                   it->second.bytes, it->second.how));
        }
    }
    fail(*self.what +
         text(" touches %zu bytes at %#llx, which are not allocated, or freed", range.bytes, Number(range.at)));
}

void touch(const Actor& actor, const Range& range, bool writes) {
    auto& [base, allocation] = holding(range, actor.self);
    auto& segments = allocation.segments;
    const uint64_t end = range.at + range.bytes;
    split(allocation, range.at), split(allocation, end);
    const auto first = segments.lower_bound(range.at);
    for (auto it = first; it != segments.end() && it->first < end; ++it) {
        Segment& segment = it->second;
        const auto judge = [&](const Access& before, const char* did) {
            check(actor, writes ? "writes" : "reads", before, did, it->first, segment.end, base, allocation);
        };
        judge(segment.write, "writes");
        if (writes) {
            for (const Access& read : segment.reads) judge(read, "reads");
            segment.write = actor.self, segment.reads.clear();
            continue;
        }
        const auto mine = std::find_if(segment.reads.begin(), segment.reads.end(),
                                       [&](const Access& read) { return read.stream == actor.self.stream; });
        if (mine != segment.reads.end()) segment.reads.erase(mine);
        segment.reads.push_back(actor.self);
    }
    // Neighbours that have come to be the same are one again.
    auto it = first == segments.begin() ? first : std::prev(first);
    while (it != segments.end() && it->first <= end) {
        const auto next = std::next(it);
        if (next == segments.end()) break;
        if (it->second.end == next->first && it->second.same(next->second)) {
            it->second.end = next->second.end;
            segments.erase(next);
        } else {
            it = next;
        }
    }
}

void born(uint64_t at, size_t bytes, const char* how, const Access& write) {
    allocations[at] = {bytes, how, {{at, {at + bytes, write, {}}}}};
}

void dies(uint64_t at, const Actor& actor) {
    const auto found = allocations.find(at);
    if (found == allocations.end()) fail(*actor.self.what + " of what is not allocated");
    const auto& [base, allocation] = *found;
    for (const auto& [start, segment] : allocation.segments) {
        const auto judge = [&](const Access& before, const char* did) {
            check(actor, "frees", before, did, start, segment.end, base, allocation);
        };
        judge(segment.write, "writes");
        for (const Access& read : segment.reads) judge(read, "reads");
    }
    allocations.erase(found);
}

} // namespace

bool allocated(uint64_t at) {
    const std::lock_guard guard(order());
    const auto after = allocations.upper_bound(at);
    return after != allocations.begin() && at < std::prev(after)->first + std::prev(after)->second.bytes;
}

void born(uint64_t at, size_t bytes, const char* how) {
    const std::lock_guard guard(order());
    born(at, bytes, how, Access());
}

void born(uint64_t at, size_t bytes, const char* how, StreamHandle stream) {
    const std::lock_guard guard(order());
    const Position position = next(stream);
    born(at, bytes, how, Access{position.stream, position.number, name_of(how)});
}

void dies(uint64_t at, const char* how, StreamHandle stream) {
    const std::lock_guard guard(order());
    const Position position = next(stream);
    dies(at, Actor{{position.stream, position.number, name_of(how)}, position.clock});
}

void dies(uint64_t at, const char* how) {
    const std::lock_guard guard(order());
    dies(at, Actor{{-1, 0, name_of(how)}, &host()});
}

void operation(StreamHandle stream, const std::string& what, const Touches& touches) {
    const std::lock_guard guard(order());
    const Position position = next(stream);
    const Actor actor = {{position.stream, position.number, name_of(what)}, position.clock};
    const auto all = [&](const std::vector<Range>& ranges, bool writes) {
        for (const Range& range : ranges) {
            touch(actor, range, writes);
            close_pinned(range, writes, position.stream, position.number, actor.self.what->c_str());
        }
    };
    all(touches.reads, false), all(touches.writes, true);
}

/// As the emulated NCCL calls it.
extern "C" void emulated_driver_operation(void* stream, const char* what, void* at, size_t bytes, int writes) {
    Touches touches;
    if (writes) {
        touches.write(static_cast<char*>(at), bytes);
    } else {
        touches.read(static_cast<const char*>(at), bytes);
    }
    operation(stream, what, touches);
}
