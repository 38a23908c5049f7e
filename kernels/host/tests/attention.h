// Problems for attention, and their solution by plain attention in f64.
#pragma once
#include "check.h"
#include "../../tile.cuh"

struct Shape {
    int batch, heads, queries, keys;
    float logits; // 0: standard normal inputs; else the greatest logit is about this, or, below 0, each
};

/// Inputs as a kernel gets them, T holding activations, and plain attention of them in f64.
template <class T>
struct Problem {
    Shape shape;
    int d;
    float scale;
    std::vector<T> q, k, v, d_o;            // [B, S, H, d]: rows of all heads, as tokens have them
    std::vector<double> o, lse, dq, dk, dv; // [B, H, S, d]
    std::vector<float> lse32, delta;        // as backward is given them
    double dq_size = 0, dk_size = 0;        // the greatest sums of absolute terms: of huge terms even zero has an error

    Strides strides(int rows) const { return {i64(rows) * shape.heads * d, d, i64(shape.heads) * d}; }

    Problem(Shape shape, int d) : shape(shape), d(d), scale(1 / std::sqrt(float(d))) {
        const auto [b, h, sq, sk, logits] = shape;
        const double deviation = logits > 0 ? std::sqrt(logits / 4.0) : 1;
        const double shift = logits < 0 ? std::sqrt(-logits / std::sqrt(d)) : 0; // q k is about -d shift^2
        q = normal<T>(size_t(b) * h * sq * d, deviation), k = normal<T>(size_t(b) * h * sk * d, deviation);
        for (T& x : q) x = rounded<T>(number(x) + shift);
        for (T& x : k) x = rounded<T>(number(x) - shift);
        if (logits > 0) { // keys in equal pairs, so that the softmax has more than one share and dS is not all zeros
            for (size_t i = 0; i < k.size(); ++i) {
                if (i / (h * d) % 2) k[i] = k[i - h * d];
            }
        }
        v = normal<T>(size_t(b) * h * sk * d), d_o = normal<T>(size_t(b) * h * sq * d);
        o.assign(q.size(), 0), dq = o, lse.assign(b * h * sq, 0), dk.assign(k.size(), 0), dv = dk;
        lse32.assign(lse.size(), 0), delta = lse32;
        std::vector<double> p(sk), dk_terms(k.size());
        for (int bh = 0; bh < b * h; ++bh) {
            const auto at = [&](const std::vector<T>& x, int rows, int row, int i) {
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
                std::vector<double> dq_terms(d);
                for (int j = 0; j < sk; ++j) {
                    double dp = 0;
                    for (int n = 0; n < d; ++n) dp += at(d_o, sq, i, n) * at(v, sk, j, n);
                    const double ds = p[j] * (dp - delta64) * scale;
                    for (int n = 0; n < d; ++n) {
                        dq[row * d + n] += ds * at(k, sk, j, n);
                        dk[(size_t(bh) * sk + j) * d + n] += ds * at(q, sq, i, n);
                        dv[(size_t(bh) * sk + j) * d + n] += p[j] * at(d_o, sq, i, n);
                        dq_size = std::max(dq_size, dq_terms[n] += std::abs(ds * at(k, sk, j, n)));
                        double& terms = dk_terms[(size_t(bh) * sk + j) * d + n];
                        dk_size = std::max(dk_size, terms += std::abs(ds * at(q, sq, i, n)));
                    }
                }
            }
        }
    }
};

inline dim3 grid(const Shape& shape, int rows, int block) {
    return {unsigned((rows + block - 1) / block), unsigned(shape.heads), unsigned(shape.batch)};
}

/// What forward and backward read and write, in memory whose end, or else beginning, is guarded.
template <class T, class Out, class Lse>
struct Buffers {
    Buffer<T> q, k, v, d_o;
    Buffer<float> lse32, delta;
    Buffer<Out> o, dq, dk, dv;
    Buffer<Lse> lse;

    Buffers(const Problem<T>& x, bool end)
        : q(x.q, end), k(x.k, end), v(x.v, end), d_o(x.d_o, end), lse32(x.lse32, end), delta(x.delta, end),
          o(x.o.size(), end), dq(x.dq.size(), end), dk(x.dk.size(), end), dv(x.dv.size(), end),
          lse(x.lse.size(), end) {}

    void same_bits(SameBits& same) {
        same("o", o.values()), same("lse", lse.values()), same("dq", dq.values());
        same("dk", dk.values()), same("dv", dv.values());
    }
};
