// A kernel that fails, as a test wishes: EMULATED_FAULT=NAME:N, the Nth launch of kernel NAME.
#pragma once

/// Tells of a launch.
void fault_launched(const char* name);

/// Tells that the GPU was waited for, which is when a failure shows; the error of this call and of all that follow, or
/// 0.
int fault_synchronized();

/// The error of a call that does not wait: that of a failure that has shown already, or 0.
int faulted();
