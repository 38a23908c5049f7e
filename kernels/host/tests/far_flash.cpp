// Attention at places beyond 2^32 elements (far.h): in bf16 of one head dim, and the plain kernels.
#include "far.h"
#include "../../flash_backward.cu"
#include "../../flash_forward.cu"
#include "../../flash_plain.cu"
#include <memory>

/// Rows of a `[1, H, S, d]` tensor, some of them, and the same at the beginning of memory as `[1, 1, n, d]`.
template <class T>
class Placed {
  public:
    /// `n` rows from row `first` of head `head` on, in places that `at` says.
    Placed(int n, int d, Strides at, i64 head, i64 first, std::vector<T> values)
        : near(values), far_(head * at.head + (first + n) * at.row), at_(at) {
        for (int i = 0; i < n; ++i) {
            put(far_.data() + head * at.head + (first + i) * at.row,
                std::vector<T>(&values[size_t(i) * d], &values[size_t(i) * d] + d));
        }
    }
    const T* far() { return far_.data(); }
    Strides at() const { return at_; }
    std::vector<T> near;

  private:
    Sparse<T> far_;
    Strides at_;
};

/// The kernels for T, and how many of its rows a block of each takes.
template <class T>
struct Kernels;

template <>
struct Kernels<bf16> {
    static constexpr int D = 64, FORWARD = Forward<64>::BLOCK, KV = BackwardKv<64>::BLOCK, Q = BackwardQ<64>::BLOCK;
    static void forward(auto... a) { flash_forward_bf16_d64(a...); }
    static void kv(auto... a) { flash_backward_kv_bf16_d64(a...); }
    static void q(auto... a) { flash_backward_q_bf16_d64(a...); }
    static constexpr int shared[] = {flash_forward_bf16_d64_shared, flash_backward_kv_bf16_d64_shared,
                                     flash_backward_q_bf16_d64_shared};
};

template <>
struct Kernels<float> {
    static constexpr int D = 40, FORWARD = 1, KV = 1, Q = 1;
    static void forward(auto q, auto k, auto v, auto o, auto lse, auto a, auto b, auto c, int sq, int sk, float scale) {
        flash_forward_f32(q, k, v, o, lse, a, b, c, sq, sk, D, scale);
    }
    static void kv(auto q, auto k, auto v, auto d_o, auto lse, auto delta, auto dk, auto dv, auto a, auto b, auto c,
                   auto e, int sq, int sk, float scale) {
        flash_backward_kv_f32(q, k, v, d_o, lse, delta, dk, dv, a, b, c, e, sq, sk, D, scale);
    }
    static void q(auto q, auto k, auto v, auto d_o, auto lse, auto delta, auto dq, auto a, auto b, auto c, auto e,
                  int sq, int sk, float scale) {
        flash_backward_q_f32(q, k, v, d_o, lse, delta, dq, a, b, c, e, sq, sk, D, scale);
    }
    static constexpr int shared[] = {flash_forward_f32_shared, flash_backward_kv_f32_shared,
                                     flash_backward_q_f32_shared};
};

/// A kernel near and far: `call(far)` launches it there.
void both(dim3 far, dim3 block, int shared, auto call) {
    emulator::launch({1, 1, 1}, TILE_THREADS, shared, Order::Ascending, [&] { call(false); });
    emulator::launch(far, TILE_THREADS, shared, Order::Ascending, [&] { call(true); }, {block});
}

template <class T>
void check(const char* type) {
    using K = Kernels<T>;
    constexpr int D = K::D;
    // The last block of queries, or of keys, of head 69, whose rows lie one after another; those that pass by are few,
    // and apart.
    const i64 head = 69, many = (i64(1) << 27) / K::FORWARD * K::FORWARD;
    const int few = 70, last = K::FORWARD == 1 ? 1 : 37;
    const int all = int(many) + last;
    const Strides dense = {0, i64(all) * D, D}, apart = {0, (i64(1) << 33) + 8, (i64(1) << 30) + 64}, near = {0, 0, D};
    const float scale = 0.3f;
    const auto name = [&](const char* what) { return std::string(what) + " in " + type; };
    const auto grid = [&](int block) { return dim3{unsigned((all + block - 1) / block), unsigned(head) + 1}; };
    const auto at = [&](int block) { return block_at(grid(block).x - 1, unsigned(head)); };
    const auto rows = [&](int n) { return normal<T>(size_t(n) * D); };

    const i64 row = head * all + many; // of all heads' rows
    Sparse<T> out(head * dense.head + i64(all) * D), other(head * dense.head + i64(all) * D);
    Sparse<float> lse((head + 1) * all), delta((head + 1) * all);
    std::vector<T> near_out(size_t(last) * D), near_other(size_t(last) * D);
    std::vector<float> near_lse(few), near_delta = normal<float>(few);

    { // queries
        Placed<T> q(last, D, dense, head, many, rows(last)), d_o(last, D, dense, head, many, rows(last));
        Placed<T> k(few, D, apart, head, 0, rows(few)), v(few, D, apart, head, 0, rows(few));
        both(grid(K::FORWARD), at(K::FORWARD), K::shared[0], [&](bool far) {
            if (far)
                K::forward(q.far(), k.far(), v.far(), out.data(), lse.data(), dense, apart, apart, all, few, scale);
            if (!far) {
                K::forward(q.near.data(), k.near.data(), v.near.data(), near_out.data(), near_lse.data(), near, near,
                           near, last, few, scale);
            }
        });
        same(name("o").c_str(), out.data() + row * D, near_out.data(), i64(last) * D);
        same(name("lse").c_str(), lse.data() + row, near_lse.data(), last);
        put(delta.data() + row, std::vector<float>(near_delta.begin(), near_delta.begin() + last));
        both(grid(K::Q), at(K::Q), K::shared[2], [&](bool far) {
            if (far) {
                K::q(q.far(), k.far(), v.far(), d_o.far(), lse.data(), delta.data(), out.data(), dense, apart, apart,
                     dense, all, few, scale);
            } else {
                K::q(q.near.data(), k.near.data(), v.near.data(), d_o.near.data(), near_lse.data(), near_delta.data(),
                     near_out.data(), near, near, near, near, last, few, scale);
            }
        });
        same(name("dq").c_str(), out.data() + row * D, near_out.data(), i64(last) * D);
    }
    // keys
    Placed<T> k(last, D, dense, head, many, rows(last)), v(last, D, dense, head, many, rows(last));
    Placed<T> q(few, D, apart, head, 0, rows(few)), d_o(few, D, apart, head, 0, rows(few));
    for (float& x : near_lse)
        x = 3;
    put(lse.data() + head * few, near_lse), put(delta.data() + head * few, near_delta);
    both(grid(K::KV), at(K::KV), K::shared[1], [&](bool far) {
        if (far) {
            K::kv(q.far(), k.far(), v.far(), d_o.far(), lse.data(), delta.data(), out.data(), other.data(), apart,
                  dense, dense, apart, few, all, scale);
        } else {
            K::kv(q.near.data(), k.near.data(), v.near.data(), d_o.near.data(), near_lse.data(), near_delta.data(),
                  near_out.data(), near_other.data(), near, near, near, near, few, last, scale);
        }
    });
    same(name("dk").c_str(), out.data() + row * D, near_out.data(), i64(last) * D);
    same(name("dv").c_str(), other.data() + row * D, near_other.data(), i64(last) * D);

    // Heads and clips so many that row statistics lie far: clip 65534 of 1000 heads, all of whose rows are the same.
    const Strides clips = {1 << 20, 0, D};
    const i64 all_heads = i64(65534) * 1000 + 999;
    const auto places = [&](Placed<T>& x, int n) {
        auto sparse = std::make_unique<Sparse<T>>(65534 * clips.batch + i64(n) * D);
        put(sparse->data() + 65534 * clips.batch, x.near);
        return sparse;
    };
    const auto fq = places(q, few), fk = places(k, last), fv = places(v, last), fd_o = places(d_o, few);
    Sparse<float> flse((all_heads + 1) * few), fdelta((all_heads + 1) * few);
    Sparse<T> fdk((all_heads + 1) * last * D), fdv((all_heads + 1) * last * D);
    put(flse.data() + all_heads * few, near_lse), put(fdelta.data() + all_heads * few, near_delta);
    emulator::launch({1, 1000, 65535}, TILE_THREADS, K::shared[1], Order::Ascending,
                     [&] {
                         K::kv(fq->data(), fk->data(), fv->data(), fd_o->data(), flse.data(), fdelta.data(), fdk.data(),
                               fdv.data(), clips, clips, clips, clips, few, last, scale);
                     },
                     {block_at(0, 999, 65534)});
    same(name("dk of many clips").c_str(), fdk.data() + all_heads * last * D, near_out.data(), i64(last) * D);
    same(name("dv of many clips").c_str(), fdv.data() + all_heads * last * D, near_other.data(), i64(last) * D);
}

int main() {
    emulator::catch_faults();
    check<bf16>("bf16");
    check<float>("f32");
}
