// The emulated driver on operations that are ordered, and on some that are not: `order CASE` makes one, `order` alone
// lists them.
//
// Cases called ordered_... must end well; each of the others must be told by the driver, which ends the process.
#include "../driver/launch.h"
#include "../driver/memory.h"
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>

void add_candles();

extern "C" {
int cuStreamCreate(void** stream, unsigned);
int cuStreamSynchronize(void* stream);
int cuStreamWaitEvent(void* stream, void* event, unsigned);
int cuEventCreate(void** event, unsigned);
int cuEventRecord(void* event, void* stream);
int cuEventQuery(void* event);
int cuCtxSynchronize();
int cuMemAllocAsync(uint64_t* at, size_t bytes, void* stream);
int cuMemFreeAsync(uint64_t at, void* stream);
int cuMemHostAlloc(void** at, size_t bytes, unsigned);
int cuMemFreeHost(void* at);
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream);
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream);
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void* stream);
int cuModuleGetFunction(void** function, void*, const char* name);
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void**);
int cublasCreate_v2(void** handle);
int cublasSetStream_v2(void* handle, void* stream);
int cublasGemmEx(void* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int a_type,
                 int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                 int compute, int);
void emulated_driver_operation(void* stream, const char* what, void* at, size_t bytes, int writes);
}

namespace {

constexpr size_t N = 4096, BYTES = 4 * N; // f32

void expect(bool holds, const char* what) {
    if (!holds) {
        fprintf(stderr, "order: %s\n", what);
        exit(1);
    }
}

/// Two streams, and what they work on.
struct Machine {
    void *compute, *copies, *event;
    uint64_t x, y;
    float* pinned;
    char pageable[BYTES];

    Machine() {
        expect(!cuStreamCreate(&compute, 0) && !cuStreamCreate(&copies, 0) && !cuEventCreate(&event, 0), "streams");
        expect(!cuMemAllocAsync(&x, BYTES, compute) && !cuMemAllocAsync(&y, BYTES, compute), "memory");
        void* at;
        expect(!cuMemHostAlloc(&at, BYTES, 0), "pinned memory");
        pinned = static_cast<float*>(at);
        memset(pageable, 0, BYTES);
        cuMemsetD8Async(x, 0, BYTES, compute), cuMemsetD8Async(y, 0, BYTES, compute);
        cuCtxSynchronize();
    }

    /// y, or `rows` of it from `row` on, from x, by Candle's kernel, of 16 rows in all.
    void set_rows(unsigned row = 0, unsigned rows = 16) {
        void* kernel;
        expect(!cuModuleGetFunction(&kernel, nullptr, "copy2d_f32"), "a kernel");
        uint64_t from = x, to = y + row * BYTES / 16;
        uint32_t one = rows, width = N / 16;
        void* arguments[] = {&from, &to, &one, &width, &width, &width};
        expect(!cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, compute, arguments, nullptr), "a launch");
    }

    /// The copies' stream waits for what is in the computing stream, or the other way round.
    void copies_wait() { cuEventRecord(event, compute), cuStreamWaitEvent(copies, event, 0); }
    void compute_waits() { cuEventRecord(event, copies), cuStreamWaitEvent(compute, event, 0); }

    void store() { cuMemcpyDtoHAsync_v2(pinned, y, BYTES, copies); }
    void load() { cuMemcpyHtoDAsync_v2(y, pinned, BYTES, copies); }

    /// y += x x of 64 x 64, in the computing stream.
    void product(uint64_t from, uint64_t to) {
        void* handle;
        const float alpha = 1, beta = 1;
        cublasCreate_v2(&handle), cublasSetStream_v2(handle, compute);
        expect(!cublasGemmEx(handle, 0, 0, 64, 64, 64, &alpha, pointer(from), 0, 64, pointer(from), 0, 64, &beta,
                             pointer(to), 0, 64, 68, 0),
               "a product");
    }
};

using Case = void (*)(Machine&);

const std::map<std::string, Case> CASES = {
    {"ordered_by_events",
     [](Machine& m) { m.set_rows(), m.copies_wait(), m.store(), m.compute_waits(), m.set_rows(); }},
    {"ordered_by_the_host",
     [](Machine& m) {
         m.set_rows(), cuStreamSynchronize(m.compute), m.store(), cuStreamSynchronize(m.copies), m.set_rows();
         expect(m.pinned[N - 1] == 0, "y was not stored");
     }},
    {"ordered_by_asking",
     [](Machine& m) { m.set_rows(), cuEventRecord(m.event, m.compute), cuEventQuery(m.event), m.store(); }},
    {"ordered_by_another_stream",
     [](Machine& m) {
         void *third, *event;
         cuStreamCreate(&third, 0), cuEventCreate(&event, 0);
         m.set_rows(), cuEventRecord(m.event, m.compute), cuStreamWaitEvent(third, m.event, 0);
         cuEventRecord(event, third), cuStreamWaitEvent(m.copies, event, 0), m.store();
     }},
    {"ordered_as_rows_are_others",
     [](Machine& m) {
         m.set_rows(0, 8), m.copies_wait(), m.set_rows(8, 8);
         cuMemcpyDtoHAsync_v2(m.pinned, m.y, BYTES / 2, m.copies);
     }},
    {"ordered_readers", [](Machine& m) { m.set_rows(), cuMemcpyDtoHAsync_v2(m.pinned, m.x, BYTES, m.copies); }},
    {"ordered_as_pageable_memory_is_waited_for",
     [](Machine& m) { m.set_rows(), cuMemcpyDtoHAsync_v2(m.pageable, m.y, BYTES, m.compute), m.store(); }},
    {"ordered_free",
     [](Machine& m) {
         m.copies_wait(), m.store(), m.compute_waits(), cuMemFreeAsync(m.y, m.compute);
         cuStreamSynchronize(m.copies), cuMemFreeHost(m.pinned);
     }},

    {"store_of_what_is_computed", [](Machine& m) { m.set_rows(), m.store(); }},
    {"event_before_the_write", [](Machine& m) { m.copies_wait(), m.set_rows(), m.store(); }},
    {"event_that_waits_the_other_way", [](Machine& m) { m.set_rows(), m.compute_waits(), m.store(); }},
    {"store_of_rows_that_are_late",
     [](Machine& m) {
         m.set_rows(0, 8), m.copies_wait(), m.set_rows(8, 8);
         cuMemcpyDtoHAsync_v2(m.pinned, m.y, BYTES / 2 + 4, m.copies);
     }},
    {"load_over_what_is_read", [](Machine& m) { m.set_rows(), m.copies_wait(), m.product(m.y, m.x), m.load(); }},
    {"load_over_what_is_added_to", [](Machine& m) { m.product(m.x, m.y), m.load(); }},
    {"compute_on_what_is_loaded", [](Machine& m) { m.copies_wait(), m.load(), m.product(m.y, m.x); }},
    {"memset_of_what_is_stored", [](Machine& m) { m.store(), cuMemsetD8Async(m.y, 0, BYTES, m.compute); }},
    {"pageable_copy_of_what_is_loaded",
     [](Machine& m) { m.load(), cuMemcpyDtoHAsync_v2(m.pageable, m.y, BYTES, m.compute); }},
    {"free_of_what_is_stored", [](Machine& m) { m.store(), cuMemFreeAsync(m.y, m.compute); }},
    {"free_of_what_is_computed", [](Machine& m) { m.set_rows(), cuMemFreeAsync(m.y, m.copies); }},
    {"use_before_the_allocation",
     [](Machine& m) {
         uint64_t z;
         cuMemAllocAsync(&z, BYTES, m.compute);
         cuMemsetD8Async(z, 0, BYTES, m.copies);
     }},
    {"use_after_the_free", [](Machine& m) { cuMemFreeAsync(m.y, m.compute), m.set_rows(); }},
    {"beyond_the_allocation", [](Machine& m) { m.set_rows(1); }},
    {"pinned_memory_is_read_while_written",
     [](Machine& m) { m.store(), cuMemcpyHtoDAsync_v2(m.x, m.pinned, BYTES, m.compute); }},
    {"pinned_memory_is_written_while_read",
     [](Machine& m) { m.load(), cuMemcpyDtoHAsync_v2(m.pinned, m.x, BYTES, m.compute); }},
    {"pinned_memory_is_freed_while_read", [](Machine& m) { m.load(), cuMemFreeHost(m.pinned); }},
    {"host_reads_what_is_stored", [](Machine& m) { m.store(), expect(m.pinned[7] == 0, "y was not stored"); }},
    {"host_writes_what_is_loaded", [](Machine& m) { m.load(), m.pinned[7] = 1; }},
    {"send_of_what_is_computed",
     [](Machine& m) { m.set_rows(), emulated_driver_operation(m.copies, "a send of NCCL", pointer(m.y), BYTES, 0); }},
    {"compute_on_what_is_received",
     [](Machine& m) {
         emulated_driver_operation(m.copies, "a receive of NCCL", pointer(m.x), BYTES, 1), m.set_rows();
     }},
};

} // namespace

int main(int count, char** arguments) {
    if (count < 2) {
        for (const auto& [name, run] : CASES) printf("%s\n", name.c_str());
        return 0;
    }
    const auto found = CASES.find(arguments[1]);
    expect(found != CASES.end(), "no such case");
    add_candles();
    found->second(*std::make_unique<Machine>());
    return 0;
}
