// The kernels of kernels/, for the emulated driver: run by the emulator, launched as launch.h says.
#include "../../adamw.cu"
#include "../../cast.cu"
#include "../../conv.cu"
#include "../../copy_rows.cu"
#include "../../dropout.cu"
#include "../../flash_backward.cu"
#include "../../flash_forward.cu"
#include "../../flash_plain.cu"
#include "../../gate.cu"
#include "../../gelu.cu"
#include "../../layer_norm.cu"
#include "../../patches.cu"
#include "../../ring.cu"
#include "../../rms_rope.cu"
#include "../../softmax.cu"
#include "../../sum_runs.cu"
#include "launch.h"
#include "touches.h"
#include <mutex>
#include <tuple>
#include <utility>

namespace {

std::mutex one; // the emulator has one block at a time, of whichever kernel

template <class F, class... Parameters, size_t... I>
void call(F f, void** arguments, std::tuple<Parameters...>*, std::index_sequence<I...>) {
    f(*static_cast<std::remove_cv_t<Parameters>*>(arguments[I])...);
}

template <class... Parameters>
void add(const std::string& name, void (*kernel)(Parameters...), unsigned threads, unsigned shared) {
    const auto with = [](void** arguments, auto f) {
        call(f, arguments, static_cast<std::tuple<Parameters...>*>(nullptr), std::index_sequence_for<Parameters...>{});
    };
    const auto run = [=](const Grid& how, void** arguments) {
        const std::lock_guard lock(one);
        if (how.block[0] != threads || how.block[1] != 1 || how.block[2] != 1 || how.shared != shared) {
            emulator::fail("%s: %u threads and %u bytes were asked for, launch.h says %u and %u", name.c_str(),
                           how.block[0], how.shared, threads, shared);
        }
        emulator::launch({how.grid[0], how.grid[1], how.grid[2]}, threads, shared, emulator::Order::Ascending,
                         [&] { with(arguments, kernel); });
    };
    const auto touches = [=](const Grid& how, void** arguments, Touches& touches) {
        with(arguments, [&](Parameters... values) { tell(Call{how, name, touches}, values...); });
    };
    kernels()[name] = {run, touches};
}

} // namespace

void add_ours() {
#define KERNEL(NAME, THREADS_OF_A_BLOCK, SHARED_BYTES) add(#NAME, NAME, THREADS_OF_A_BLOCK, SHARED_BYTES);
#include "../../launch.h"
#undef KERNEL
}
