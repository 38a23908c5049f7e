// Checks of flash attention, forward and backward, against plain attention in f64.
#pragma once
#include "attention.h"
#include "../../flash_backward.cu"
#include "../../flash_forward.cu"

/// Checks the kernels of one head dim and kind of output, whose blocks' rows are the kernels' own.
template <int D, class Out, class Lse>
void check_flash(const char* name, const Shape& shape, auto forward, auto backward_kv, auto backward_q) {
    const Problem<bf16> x(shape, D);
    const int sq = shape.queries, sk = shape.keys;
    const Strides q_at = x.strides(sq), k_at = x.strides(sk);
    SameBits same;
    for (Order order : emulator::orders) {
        Buffers<bf16, Out, Lse> b(x, order != Order::Descending);
        forward(grid(shape, sq, Forward<D>::BLOCK), order, b.q.data(), b.k.data(), b.v.data(), b.o.data(), b.lse.data(), q_at,
                k_at, k_at, sq, sk, x.scale);
        backward_kv(grid(shape, sk, BackwardKv<D>::BLOCK), order, b.q.data(), b.k.data(), b.v.data(), b.d_o.data(),
                    b.lse32.data(), b.delta.data(), b.dk.data(), b.dv.data(), q_at, k_at, k_at, q_at, sq, sk, x.scale);
        backward_q(grid(shape, sq, BackwardQ<D>::BLOCK), order, b.q.data(), b.k.data(), b.v.data(), b.d_o.data(), b.lse32.data(),
                   b.delta.data(), b.dq.data(), q_at, k_at, k_at, q_at, sq, sk, x.scale);
        b.same_bits(same);
        if (order != Order::Ascending) continue;
        const bool extreme = shape.logits != 0;
        const std::string what = std::string(name) + " d" + std::to_string(D) + " " + std::to_string(sq) + " x " +
                                 std::to_string(sk) + (extreme ? " extreme " : " ");
        expect(what + "o", b.o.values(), x.o, 5e-3);
        expect(what + "lse", b.lse.values(), x.lse, 3e-7);
        expect(what + "dq", b.dq.values(), x.dq, 6e-3, extreme ? x.dq_size : 0);
        expect(what + "dk", b.dk.values(), x.dk, 6e-3, extreme ? x.dk_size : 0);
        expect(what + "dv", b.dv.values(), x.dv, 6e-3);
    }
}

#define CHECK(KIND, D, OUT, LSE, ...)                                                    \
    check_flash<D, OUT, LSE>(#KIND, __VA_ARGS__, KERNEL_OF(flash_forward_##KIND##_d##D), \
                             KERNEL_OF(flash_backward_kv_##KIND##_d##D), KERNEL_OF(flash_backward_q_##KIND##_d##D))
