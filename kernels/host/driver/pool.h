// The default memory pool of the emulated GPU.
#pragma once
#include <cstddef>

/// Bytes of a GPU's memory.
size_t memory_size();

/// Takes room for an allocation from the pool; false: there is none.
bool pool_take(size_t bytes);

/// Gives it back.
void pool_give(size_t bytes);

/// A stream, an event or the context was waited for: what is free beyond the release threshold goes back to the system.
void pool_synchronized();

/// Bytes that the pool holds, in use or free.
size_t pool_reserved();

/// Adds to a number that EMULATED_CALLS, a file, gets when the process ends.
void count_call(const char* name, size_t by = 1);
