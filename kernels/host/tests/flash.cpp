// Flash attention, forward and backward, against plain attention in f64.
#include "check.h"
#include "../../flash_backward.cu"
#include "../../flash_forward.cu"

struct Shape {
    int batch, heads, queries, keys;
    float logits; // 0: standard normal inputs; else the greatest logit is about this, or, below 0, each
};

/// Inputs as a kernel gets them, and plain attention of them in f64.
struct Problem {
    Shape shape;
    int d;
    float scale;
    std::vector<bf16> q, k, v, d_o; // [B, S, H, d]: rows of all heads, as tokens have them
    std::vector<double> o, lse, dq, dk, dv; // [B, H, S, d]
    std::vector<float> lse32, delta; // as backward is given them

    Strides strides(int rows) const { return {i64(rows) * shape.heads * d, d, i64(shape.heads) * d}; }

    Problem(Shape shape, int d) : shape(shape), d(d), scale(1 / std::sqrt(float(d))) {
        const auto [b, h, sq, sk, logits] = shape;
        const double deviation = logits > 0 ? std::sqrt(logits / 4.0) : 1;
        const double shift = logits < 0 ? std::sqrt(-logits / std::sqrt(d)) : 0; // q k is about -d shift^2
        q = normal<bf16>(size_t(b) * h * sq * d, deviation), k = normal<bf16>(size_t(b) * h * sk * d, deviation);
        for (bf16& x : q) x = to_bf16(number(x) + shift);
        for (bf16& x : k) x = to_bf16(number(x) - shift);
        v = normal<bf16>(size_t(b) * h * sk * d), d_o = normal<bf16>(size_t(b) * h * sq * d);
        o.assign(q.size(), 0), dq = o, lse.assign(b * h * sq, 0), dk.assign(k.size(), 0), dv = dk;
        lse32.assign(lse.size(), 0), delta = lse32;
        std::vector<double> p(sk);
        for (int bh = 0; bh < b * h; ++bh) {
            const auto at = [&](const std::vector<bf16>& x, int rows, int row, int i) {
                return double(number(x[((size_t(bh / h) * rows + row) * h + bh % h) * d + i]));
            };
            for (int i = 0; i < sq; ++i) {
                const size_t row = size_t(bh) * sq + i;
                double max = -1e300, sum = 0, delta64 = 0;
                for (int j = 0; j < sk; ++j) {
                    p[j] = 0;
                    for (int n = 0; n < d; ++n) p[j] += at(q, sq, i, n) * at(k, sk, j, n) * scale;
                    max = std::max(max, p[j]);
                }
                for (double& x : p) sum += std::exp(x - max);
                lse[row] = max + std::log(sum);
                for (double& x : p) x = std::exp(x - lse[row]);
                for (int n = 0; n < d; ++n) {
                    for (int j = 0; j < sk; ++j) o[row * d + n] += p[j] * at(v, sk, j, n);
                    delta64 += o[row * d + n] * at(d_o, sq, i, n);
                }
                lse32[row] = float(lse[row]), delta[row] = float(delta64);
                for (int j = 0; j < sk; ++j) {
                    double dp = 0;
                    for (int n = 0; n < d; ++n) dp += at(d_o, sq, i, n) * at(v, sk, j, n);
                    const double ds = p[j] * (dp - delta64) * scale;
                    for (int n = 0; n < d; ++n) {
                        dq[row * d + n] += ds * at(k, sk, j, n);
                        dk[(size_t(bh) * sk + j) * d + n] += ds * at(q, sq, i, n);
                        dv[(size_t(bh) * sk + j) * d + n] += p[j] * at(d_o, sq, i, n);
                    }
                }
            }
        }
    }
};

dim3 grid(const Shape& shape, int rows, int block) {
    return {unsigned((rows + block - 1) / block), unsigned(shape.heads), unsigned(shape.batch)};
}

// One test for each head dim and output; the blocks' rows are the kernels' own.
#define CHECK(D, SUFFIX, OUT, LSE)                                                                                        \
    void check_##SUFFIX##D(const Shape& shape) {                                                                          \
        const Problem x(shape, D);                                                                                        \
        const int sq = shape.queries, sk = shape.keys;                                                                    \
        const Strides q_at = x.strides(sq), k_at = x.strides(sk);                                                         \
        SameBits same;                                                                                                    \
        for (Order order : emulator::orders) {                                                                            \
            const bool end = order != Order::Descending;                                                                  \
            Buffer<bf16> q(x.q, end), k(x.k, end), v(x.v, end), d_o(x.d_o, end);                                          \
            Buffer<OUT> o(x.o.size(), end), dq(x.dq.size(), end), dk(x.dk.size(), end), dv(x.dv.size(), end);             \
            Buffer<LSE> lse(x.lse.size(), end);                                                                           \
            Buffer<float> lse32(x.lse32, end), delta(x.delta, end);                                                       \
            LAUNCH(flash_forward_##SUFFIX##D, grid(shape, sq, Forward<D>::BLOCK), order, q.data(), k.data(), v.data(),    \
                   o.data(), lse.data(), q_at, k_at, k_at, sq, sk, x.scale);                                              \
            LAUNCH(flash_backward_kv_##SUFFIX##D, grid(shape, sk, BackwardKv<D>::BLOCK), order, q.data(), k.data(),       \
                   v.data(), d_o.data(), lse32.data(), delta.data(), dk.data(), dv.data(), q_at, k_at, k_at, q_at, sq,    \
                   sk, x.scale);                                                                                          \
            LAUNCH(flash_backward_q_##SUFFIX##D, grid(shape, sq, BackwardQ<D>::BLOCK), order, q.data(), k.data(),         \
                   v.data(), d_o.data(), lse32.data(), delta.data(), dq.data(), q_at, k_at, k_at, q_at, sq, sk, x.scale); \
            same("o", o.values()), same("lse", lse.values()), same("dq", dq.values());                                    \
            same("dk", dk.values()), same("dv", dv.values());                                                             \
            if (order != Order::Ascending) continue;                                                                      \
            const bool extreme = shape.logits != 0;                                                                        \
            const std::string name = std::string(#SUFFIX #D) + " " + std::to_string(sq) + " x " + std::to_string(sk) +    \
                                     (extreme ? " extreme " : " ");                                                       \
            expect(name + "o", o.values(), x.o, 5e-3);                                                                    \
            expect(name + "lse", lse.values(), x.lse, 3e-7);                                                              \
            expect(name + "dq", dq.values(), x.dq, extreme ? 2e-2 : 6e-3);                                                \
            expect(name + "dk", dk.values(), x.dk, extreme ? 2e-2 : 6e-3);                                                \
            expect(name + "dv", dv.values(), x.dv, extreme ? 2e-2 : 6e-3);                                                \
        }                                                                                                                 \
    }

CHECK(64, bf16_d, bf16, float)
CHECK(96, bf16_d, bf16, float)
CHECK(128, bf16_d, bf16, float)
CHECK(64, partial_bf16_d, float, double)
CHECK(96, partial_bf16_d, float, double)
CHECK(128, partial_bf16_d, float, double)

int main(int count, char** arguments) {
    emulator::catch_faults();
    const Shape uneven = {1, 2, 131, 77, 0}, even = {1, 1, 128, 128, 0}, one = {2, 1, 1, 1, 0};
    check_bf16_d64(uneven);
    check_bf16_d64({1, 1, 20, 50, -400});
    if (count > 1 && std::string(arguments[1]) == "short") return 0;
    check_bf16_d64({1, 1, 70, 333, 0});
    check_bf16_d96({1, 1, 131, 77, 0});
    check_bf16_d128({1, 1, 131, 77, 0});
    check_bf16_d64(even), check_bf16_d96(even), check_bf16_d128(even);
    check_bf16_d64(one), check_bf16_d96(one), check_bf16_d128(one);
    check_bf16_d64({1, 1, 1, 200, 0}), check_bf16_d96({1, 1, 65, 1, 0});
    for (float logits : {100.0f, 1e4f, -400.0f}) {
        check_bf16_d64({1, 1, 40, 100, logits});
        check_partial_bf16_d128({1, 1, 40, 100, logits});
    }
    check_partial_bf16_d64({1, 1, 33, 65, 0}), check_partial_bf16_d96({1, 1, 33, 65, 0});
    check_partial_bf16_d128({1, 2, 33, 65, 0});
}
