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
        const bool end = order != Order::Descending;
        Buffer<bf16> q(x.q, end), k(x.k, end), v(x.v, end), d_o(x.d_o, end);
        Buffer<Out> o(x.o.size(), end), dq(x.dq.size(), end), dk(x.dk.size(), end), dv(x.dv.size(), end);
        Buffer<Lse> lse(x.lse.size(), end);
        Buffer<float> lse32(x.lse32, end), delta(x.delta, end);
        forward(grid(shape, sq, Forward<D>::BLOCK), order, q.data(), k.data(), v.data(), o.data(), lse.data(), q_at,
                k_at, k_at, sq, sk, x.scale);
        backward_kv(grid(shape, sk, BackwardKv<D>::BLOCK), order, q.data(), k.data(), v.data(), d_o.data(),
                    lse32.data(), delta.data(), dk.data(), dv.data(), q_at, k_at, k_at, q_at, sq, sk, x.scale);
        backward_q(grid(shape, sq, BackwardQ<D>::BLOCK), order, q.data(), k.data(), v.data(), d_o.data(), lse32.data(),
                   delta.data(), dq.data(), q_at, k_at, k_at, q_at, sq, sk, x.scale);
        same("o", o.values()), same("lse", lse.values()), same("dq", dq.values());
        same("dk", dk.values()), same("dv", dv.values());
        if (order != Order::Ascending) continue;
        const bool extreme = shape.logits != 0;
        const std::string what = std::string(name) + " d" + std::to_string(D) + " " + std::to_string(sq) + " x " +
                                 std::to_string(sk) + (extreme ? " extreme " : " ");
        expect(what + "o", o.values(), x.o, 5e-3);
        expect(what + "lse", lse.values(), x.lse, 3e-7);
        expect(what + "dq", dq.values(), x.dq, 6e-3, extreme ? x.dq_size : 0);
        expect(what + "dk", dk.values(), x.dk, 6e-3, extreme ? x.dk_size : 0);
        expect(what + "dv", dv.values(), x.dv, 6e-3);
    }
}

#define CHECK(KIND, D, OUT, LSE, ...)                                                    \
    check_flash<D, OUT, LSE>(#KIND, __VA_ARGS__, KERNEL_OF(flash_forward_##KIND##_d##D), \
                             KERNEL_OF(flash_backward_kv_##KIND##_d##D), KERNEL_OF(flash_backward_q_##KIND##_d##D))
