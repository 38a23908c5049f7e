// What is ordered after what on the emulated GPU, and an error for what is not.
//
// Streams are queues with vector clocks, events are clocks. Each byte of memory knows which operation wrote it last and
// which have read it since. An operation that reads what it is not ordered after, or writes over what it is not ordered
// after, or a free that is not ordered after a use, ends the process with a message and exit code FAILED.
//
// What a thread of the host has waited for is taken to be known to all of its threads: locks and channels between them
// are not seen.
#pragma once
#include "ranges.h"
#include <string>

constexpr int FAILED = 70; // exit code

/// A handle of CUDA: null is the default stream.
using StreamHandle = void*;

/// `bytes` from `at` on are there: at once, or for what comes after this in a stream.
void born(uint64_t at, size_t bytes, const char* how);
void born(uint64_t at, size_t bytes, const char* how, StreamHandle stream);

/// Whether the byte is of memory that came so: pageable memory of the host does not.
bool allocated(uint64_t at);

/// They go, in a stream or by the host. They may not be used yet by who is not ordered before.
void dies(uint64_t at, const char* how, StreamHandle stream);
void dies(uint64_t at, const char* how);

/// The next operation of a stream.
void operation(StreamHandle stream, const std::string& what, const Touches& touches);

/// The host waits for all that is in a stream.
void host_waits(StreamHandle stream);
