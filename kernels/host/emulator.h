// Runs a kernel's blocks and threads on the CPU: each CUDA thread is a fiber, and a block's fibers take turns on one
// core.
//
// It proves logic, not speed. What a GPU leaves undefined is an error here, with the block and thread that did it: a
// race in shared memory (two threads touch a word, one of them writing, with no barrier between), shared memory read
// before it was written or outside its array, a cp.async result read before its wait, lanes of a warp at different
// collectives, a barrier that not all threads reach, misaligned accesses to it. Global buffers lie between guard pages
// (memory.h), so touching a byte beyond one is an error too. Whoever runs a kernel in several orders and finds the same
// bits has shown that it does not depend on the order. Global memory is not watched for races.
#pragma once
#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

/// Which of the threads that can go on goes on: the first, the last, or any.
enum class Order { Ascending, Descending, Shuffled };
inline constexpr Order orders[] = {Order::Ascending, Order::Descending, Order::Shuffled};

/// One asynchronous copy that no wait has finished yet.
struct Copy {
    unsigned target;
    const void* source;
    unsigned bytes, valid;
    unsigned group;
};

/// A thread's part of a warpgroup's product that no wait has finished yet.
struct Multiply {
    float* c;
    unsigned columns;
    bool add, from_registers;
    unsigned a[4];     // if from registers
    uint64_t a_matrix; // if not
    uint64_t b_matrix;
};

/// A thread's registers that products may use: whose they are until a wait, and what was in them.
struct Registers {
    void* begin;
    std::vector<unsigned char> bytes;
    bool accumulators;
};

struct Thread {
    dim3 index;
    unsigned number = 0, lane = 0, warp = 0;
    jmp_buf where;
    bool started = false, done = true;
    std::vector<Copy> copies;
    unsigned group = 0;                // of the copies to come: the number of groups committed
    std::vector<Multiply> products;    // that no wait has finished yet
    std::vector<Registers> ready;      // for products, until the wait
    std::vector<unsigned> publishings; // the epoch of each
};

/// Lanes of a warp that wait for each other, and what each brings.
struct Warp {
    unsigned ready = 0, arrived = 0, mask = 0, epoch = 0;
    const char* what = nullptr;
    void* arguments[32];
};

/// Threads of four warps that wait for each other.
struct Warpgroup {
    unsigned arrived = 0;
};

/// Who touched a word of shared memory last. `many` stands for several threads or warps of one epoch.
struct Word {
    static constexpr unsigned many = 0xFFFF;
    bool written = false, pending = false;
    unsigned writer = 0, write_epoch = 0, write_warp_epoch = 0;
    unsigned publishings = 0; // of the writer, before
    unsigned reader = 0, reader_warp = 0, read_epoch = 0, read_warp_epoch = 0;
};

struct Block {
    dim3 grid, size, index;
    unsigned threads = 0, finished = 0, waiting = 0, epoch = 1;
    Order order = Order::Ascending;
    uint64_t random = 1;
    std::vector<unsigned char> shared;
    std::vector<Word> words;
    std::vector<Thread> thread;
    std::vector<Warp> warp;
    std::vector<Warpgroup> warpgroup;
    std::vector<char*> stacks;
    jmp_buf scheduler;
    std::function<void()> kernel;
};

inline Block block;
inline Thread* self = nullptr;

[[noreturn]] inline void fail(const char* format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fprintf(stderr, "emulator: %s", text);
    if (self) {
        fprintf(stderr, " (block %u %u %u, thread %u)", block.index.x, block.index.y, block.index.z, self->number);
    }
    fprintf(stderr, "\n");
    _exit(3);
}

/// Back to the scheduler; returns when this thread is chosen again.
[[gnu::noinline]] inline void pause() {
    if (!_setjmp(self->where)) _longjmp(block.scheduler, 1);
}

/// What a fiber does: one kernel thread after another, as blocks come.
inline void fiber() {
    for (;;) {
        block.kernel();
        if (!self->copies.empty()) fail("a thread ends with copies in flight");
        if (!self->products.empty()) fail("a thread ends with products in flight");
        self->done = true;
        ++block.finished;
        block.warp[self->warp].ready &= ~(1u << self->lane);
        pause();
    }
}

[[gnu::noinline]] inline void resume(Thread& thread) {
    constexpr size_t stack = 128 << 10;
    self = &thread;
    if (_setjmp(block.scheduler)) return;
    if (thread.started) _longjmp(thread.where, 1);
    thread.started = true;
    while (block.stacks.size() <= thread.number) {
        block.stacks.push_back(static_cast<char*>(
            mmap(nullptr, stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
    }
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = block.stacks[thread.number];
    context.uc_stack.ss_size = stack;
    context.uc_link = nullptr;
    makecontext(&context, fiber, 0);
    setcontext(&context);
}

/// The thread whose turn it is, or null if none can go on.
inline Thread* choose() {
    const unsigned warps = block.warp.size();
    unsigned start = 0;
    if (block.order == Order::Shuffled) {
        block.random = block.random * 6364136223846793005u + 1442695040888963407u;
        start = (block.random >> 33) % warps;
    }
    for (unsigned i = 0; i < warps; ++i) {
        const unsigned w = block.order == Order::Descending ? warps - 1 - i : (start + i) % warps;
        unsigned ready = block.warp[w].ready;
        if (!ready) continue;
        unsigned lane = __builtin_ctz(ready);
        if (block.order == Order::Descending) lane = 31 - __builtin_clz(ready);
        if (block.order == Order::Shuffled) {
            for (unsigned skip = (block.random >> 40) % __builtin_popcount(ready); skip; --skip) ready &= ready - 1;
            lane = __builtin_ctz(ready);
        }
        return &block.thread[w * 32 + lane];
    }
    return nullptr;
}

/// Runs `kernel` for every thread of every block of the grid, or of those in `only`, blocks one after another.
inline void launch(dim3 grid, unsigned threads, unsigned shared_bytes, Order order, std::function<void()> kernel,
                   const std::vector<dim3>& only = {}) {
    if (threads == 0 || threads > 1024 || threads % 32) fail("a block of %u threads: not whole warps", threads);
    block.grid = grid;
    block.size = {threads, 1, 1};
    block.threads = threads;
    block.order = order;
    block.kernel = kernel;
    if (block.thread.size() < threads) block.thread.resize(threads); // fibers that have started stay where they are
    block.warp.assign(threads / 32, {});
    block.warpgroup.assign((threads + 127) / 128, {});
    const uint64_t blocks = only.empty() ? uint64_t(grid.x) * grid.y * grid.z : only.size();
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t b = order == Order::Descending ? blocks - 1 - i : i;
        if (only.empty()) {
            block.index = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        } else {
            block.index = only[b];
        }
        block.shared.assign(shared_bytes, 0xFF); // NaN, whatever is read
        block.words.assign((shared_bytes + 3) / 4, {});
        block.finished = block.waiting = 0;
        ++block.epoch;
        for (unsigned t = 0; t < threads; ++t) {
            Thread& thread = block.thread[t];
            thread.index = {t, 0, 0};
            thread.number = t, thread.lane = t % 32, thread.warp = t / 32;
            thread.done = false;
            thread.group = 0, thread.ready.clear(), thread.publishings.clear();
            block.warp[t / 32].ready |= 1u << t % 32;
        }
        while (Thread* next = choose()) {
            resume(*next);
        }
        self = nullptr;
        if (block.finished != threads) {
            fail("deadlock in block %u %u %u: %u threads wait at a barrier or a collective that %u others do not reach",
                 block.index.x, block.index.y, block.index.z, threads - block.finished, block.finished);
        }
    }
}

/// All threads of the block.
inline void barrier() {
    block.warp[self->warp].ready &= ~(1u << self->lane);
    if (++block.waiting == block.threads) {
        block.waiting = 0;
        ++block.epoch;
        for (auto& warp : block.warp) warp.ready = ~0u;
    }
    pause();
}

/// Waits for the lanes in `mask`; the last to come runs `work` on what all have brought.
template <class Work>
void collective(const char* what, unsigned mask, void* arguments, Work work) {
    Warp& warp = block.warp[self->warp];
    if (!(mask >> self->lane & 1)) fail("%s: the mask %08x lacks the lane itself", what, mask);
    if (warp.arrived && (warp.what != what || warp.mask != mask)) {
        fail("lanes of a warp are at different collectives: %s (%08x) and %s (%08x)", warp.what, warp.mask, what, mask);
    }
    warp.what = what, warp.mask = mask;
    warp.arguments[self->lane] = arguments;
    warp.arrived |= 1u << self->lane;
    warp.ready &= ~(1u << self->lane);
    if (warp.arrived == mask) {
        work(warp);
        warp.arrived = 0;
        warp.ready |= mask;
    }
    pause();
}

/// Waits for all four warps of the warpgroup; the last thread to come runs `work`. No barrier: it orders nothing else.
template <class Work>
void collective_of_warpgroup(Work work) {
    const unsigned group = self->number / 128;
    block.warp[self->warp].ready &= ~(1u << self->lane);
    if (++block.warpgroup[group].arrived == 128) {
        block.warpgroup[group].arrived = 0;
        work(&block.thread[group * 128]);
        for (unsigned i = 0; i < 4; ++i) block.warp[group * 4 + i].ready = ~0u;
    }
    pause();
}

// ---- shared memory
// ------------------------------------------------------------------------------------------------------

/// Whether what `thread` did then comes before what `self` does now.
inline bool ordered(unsigned warp, unsigned epoch, unsigned warp_epoch) {
    return epoch != block.epoch || (warp == self->warp && warp_epoch != block.warp[warp].epoch);
}

inline void check_word(unsigned at, bool writes) {
    Word& word = block.words[at];
    if (word.pending) fail("shared word %u is touched while a copy to it is in flight", at);
    const unsigned epoch = block.epoch, warp_epoch = block.warp[self->warp].epoch;
    if (word.written && word.writer != self->number &&
        !ordered(word.writer / 32, word.write_epoch, word.write_warp_epoch)) {
        fail("race: shared word %u was written by thread %u with no barrier since", at, word.writer);
    }
    if (!writes) {
        if (!word.written) fail("shared word %u is read before it was written", at);
        const bool same = word.read_epoch == epoch;
        word.reader = same && word.reader != self->number ? Word::many : self->number;
        word.reader_warp = same && word.reader_warp != self->warp ? Word::many : self->warp;
        word.read_epoch = epoch, word.read_warp_epoch = warp_epoch;
        return;
    }
    if (word.read_epoch && word.reader != self->number &&
        !ordered(word.reader_warp, word.read_epoch, word.read_warp_epoch)) {
        fail("race: shared word %u was read by thread %d with no barrier since", at,
             word.reader == Word::many ? -1 : int(word.reader));
    }
    word.written = true;
    word.writer = self->number, word.publishings = self->publishings.size();
    word.write_epoch = epoch, word.write_warp_epoch = warp_epoch;
}

inline void check_words(unsigned offset, unsigned bytes, bool writes) {
    for (unsigned at = offset / 4; at < (offset + bytes) / 4; ++at) check_word(at, writes);
}

/// An element of shared memory: reading and writing it are checked.
template <class T>
struct Reference {
    unsigned offset;
    operator T() const {
        check_words(offset, sizeof(T), false);
        T value;
        memcpy(&value, &block.shared[offset], sizeof value);
        return value;
    }
    void operator=(T value) const {
        check_words(offset, sizeof(T), true);
        memcpy(&block.shared[offset], &value, sizeof value);
    }
    void operator=(const Reference& other) const { *this = T(other); }
};

} // namespace emulator

/// A pointer into an array in shared memory, which knows where the array ends. Elements of less than four bytes cannot
/// be touched alone: threads that share a word would seem to race.
template <class T>
struct Shared {
    unsigned offset, begin, end; // in bytes

    void check(unsigned bytes) const {
        if (offset < begin || offset + bytes > end) {
            emulator::fail("shared memory: bytes %u to %u are outside the array at %u to %u", offset, offset + bytes,
                           begin, end);
        }
        if (offset % (bytes < 16 ? bytes : 16))
            emulator::fail("shared memory: byte %u is not aligned to %u", offset, bytes);
    }
    Shared operator+(int n) const { return {offset + n * unsigned(sizeof(T)), begin, end}; }
    emulator::Reference<T> operator[](int n) const {
        static_assert(sizeof(T) % 4 == 0);
        const Shared at = *this + n;
        at.check(sizeof(T));
        return {at.offset};
    }
};

/// `count` elements at a byte offset of the block's shared memory.
template <class T>
Shared<T> shared(int offset, int count) {
    const unsigned end = offset + count * sizeof(T);
    if (end > emulator::block.shared.size()) {
        emulator::fail("an array ends at byte %u of %zu of shared memory", end, emulator::block.shared.size());
    }
    return {unsigned(offset), unsigned(offset), end};
}
