// Pinned memory of the host. The program has it at one address and the driver at another, so that the program's can be
// closed to it while a copy is under way that the host has not waited for: touching it then is an error. Whole pages
// only: what else lies on a page may be used.
#include "clocks.h"
#include "memory.h"
#include "order.h"
#include "wishes.h"
#include <csignal>
#include <cstdio>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

namespace {

struct Pinned {
    char* view; // the driver's
    size_t bytes, size;
};

/// Pages that an operation is at work on.
struct Closed {
    uint64_t at, end;
    int stream;
    uint64_t number;
    bool writes;
    const char* what;
};

std::mutex lock; // after order()'s
std::map<uint64_t, Pinned> all;
std::vector<Closed> closed;
struct sigaction before;

size_t pages(size_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

/// The allocation that `at` lies in.
std::map<uint64_t, Pinned>::iterator holding(uint64_t at) {
    const auto after = all.upper_bound(at);
    if (after == all.begin() || at >= std::prev(after)->first + std::prev(after)->second.bytes) return all.end();
    return std::prev(after);
}

void protect(uint64_t at, uint64_t end, int protection) {
    mprotect(pointer(at), end - at, protection);
}

void protect(const Closed& range) {
    protect(range.at, range.end, range.writes ? PROT_NONE : PROT_READ);
}

/// Says what was touched, if it is closed; else leaves the fault to whom it was left to before.
void on_fault(int, siginfo_t* info, void*) {
    const auto at = reinterpret_cast<uint64_t>(info->si_addr);
    for (const Closed& range : closed) {
        if (at < range.at || at >= range.end) continue;
        fprintf(stderr,
                "emulated driver: race: the host touches pinned memory while %s, operation %llu of stream %d, may be "
                "under way "
                "there. It must wait for that stream, or for an event that is recorded there afterwards\n",
                range.what, (unsigned long long)range.number, range.stream);
        _exit(FAILED);
    }
    sigaction(SIGSEGV, &before, nullptr);
}

void catch_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before);
    });
}

} // namespace

void* view(const void* at) {
    const std::lock_guard guard(lock);
    const auto address = reinterpret_cast<uint64_t>(at);
    const auto found = holding(address);
    return found == all.end() ? const_cast<void*>(at) : found->second.view + (address - found->first);
}

void close_pinned(const Range& range, bool writes, int stream, uint64_t number, const char* what) {
    const std::lock_guard guard(lock);
    const auto found = holding(range.at);
    if (found == all.end()) return;
    const uint64_t end = range.at + range.bytes, last = found->first + found->second.bytes;
    const Closed pages = {(range.at + PAGE - 1) / PAGE * PAGE,
                          end == last ? found->first + found->second.size : end / PAGE * PAGE,
                          stream,
                          number,
                          writes,
                          what};
    if (pages.at >= pages.end) return;
    closed.push_back(pages);
    protect(pages);
}

void open_pinned(const Clock& known) {
    const std::lock_guard guard(lock);
    const auto over = [&](const Closed& range) { return seen(known, range.stream) >= range.number; };
    for (const Closed& range : closed) {
        if (over(range)) protect(range.at, range.end, PROT_READ | PROT_WRITE);
    }
    if (std::erase_if(closed, over)) {
        for (const Closed& range : closed) protect(range);
    }
}

extern "C" {
int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    if (!bytes) return INVALID;
    {
        const std::lock_guard guard(lock);
        uint64_t pinned = bytes;
        for (const auto& [at, one] : all) pinned += one.bytes;
        if (pinned > wish("EMULATED_PINNED", UINT64_MAX)) return OUT_OF_MEMORY;
    }
    catch_faults();
    const int file = memfd_create("pinned", 0);
    const size_t size = pages(bytes);
    void* mapped[2] = {MAP_FAILED, MAP_FAILED};
    if (file >= 0 && !ftruncate(file, off_t(size))) {
        for (void*& to : mapped) to = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    if (file >= 0) close(file);
    if (mapped[0] == MAP_FAILED || mapped[1] == MAP_FAILED) return OUT_OF_MEMORY;
    *at = mapped[0];
    const auto address = reinterpret_cast<uint64_t>(*at);
    {
        const std::lock_guard guard(lock);
        all[address] = {static_cast<char*>(mapped[1]), bytes, size};
    }
    born(address, bytes, "cuMemHostAlloc");
    return 0;
}
int cuMemFreeHost(void* at) {
    const auto address = reinterpret_cast<uint64_t>(at);
    dies(address, "cuMemFreeHost");
    const std::lock_guard guard(lock);
    const auto found = all.find(address);
    munmap(found->second.view, found->second.size);
    munmap(at, found->second.size);
    all.erase(found);
    return 0;
}
}
