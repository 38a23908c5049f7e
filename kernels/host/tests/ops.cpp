// The token-local ops and plain attention in f32, forward and backward, against their formulas in f64.
#include "attention.h"
#include "../../flash_plain.cu"
#include "../../gate.cu"
#include "../../gelu.cu"
#include "../../layer_norm.cu"
#include "../../rms_rope.cu"
#include "../../sum_runs.cu"

unsigned blocks(i64 n, i64 block) {
    return unsigned((n + block - 1) / block);
}

/// What follows a LayerNorm.
enum class Affine { None, Weights, Modulation };

/// A tile of `n` rows from `start` on of samples of `tokens` rows.
struct Tile {
    int n, start, tokens, width;

    Rows rows() const { return {start, tokens}; }
    int first_sample() const { return start / tokens; }
    int samples() const { return (start + n - 1) / tokens - first_sample() + 1; }
    int sample(int row) const { return (start + row) / tokens; }
    std::string name(const char* what, const char* type) const {
        return std::string(what) + "_" + type + " " + std::to_string(n) + " x " + std::to_string(width);
    }
};

template <class T>
constexpr const char* type_name = sizeof(T) == 2 ? "bf16" : "f32";

/// Bounds of results that are written as T, and of sums in f32.
template <class T>
constexpr double bound = sizeof(T) == 2 ? 5e-3 : 2e-6;
constexpr double sum_bound = 2e-6;

/// Adds the parts of a tile's runs to `gradients`, one for each sample the tile touches, from `offset` on.
void add_runs(Order order, const Tile& x, float* parts, float* gradients, i64 stride, int which, int count) {
    LAUNCH(sum_runs, (dim3{blocks(x.width, THREADS), unsigned(x.samples())}), order, parts,
           gradients + x.first_sample() * stride, stride, int(blocks(x.n, RUN)), which, count, x.width);
}

template <class T>
void check_layer_norm(const Tile& tile, Affine kind, auto forward, auto backward, auto columns) {
    const auto [n, start, tokens, width] = tile;
    const int samples = tile.sample(n - 1) + 1, w = width;
    const auto x = normal<T>(size_t(n) * w, 3), dy = normal<T>(size_t(n) * w);
    const auto m = normal<float>(size_t(samples) * 2 * w); // shift, scale of each sample
    const float one = kind == Affine::Modulation, eps = 1e-6f;
    const i64 stride = kind == Affine::Modulation ? 2 * w : 0;
    std::vector<double> y(x.size()), dx(x.size()), dm(m.size(), 1); // gradients begin at 1
    for (int row = 0; row < n; ++row) {
        const auto at = [&](const std::vector<T>& v, int i) { return double(number(v[size_t(row) * w + i])); };
        const size_t shift = kind == Affine::Modulation ? size_t(tile.sample(row)) * 2 * w : 0, scale = shift + w;
        double mean = 0, variance = 0, mean_g = 0, mean_gx = 0;
        for (int i = 0; i < w; ++i) mean += at(x, i) / w;
        for (int i = 0; i < w; ++i) variance += (at(x, i) - mean) * (at(x, i) - mean) / w;
        const double r = 1 / std::sqrt(variance + eps);
        const auto xhat = [&](int i) { return (at(x, i) - mean) * r; };
        const auto a = [&](int i) { return kind == Affine::None ? 1.0 : one + m[scale + i]; };
        for (int i = 0; i < w; ++i) {
            y[size_t(row) * w + i] = xhat(i) * a(i) + (kind == Affine::None ? 0 : m[shift + i]);
            mean_g += at(dy, i) * a(i) / w, mean_gx += at(dy, i) * a(i) * xhat(i) / w;
            dm[scale + i] += at(dy, i) * xhat(i), dm[shift + i] += at(dy, i);
        }
        for (int i = 0; i < w; ++i) dx[size_t(row) * w + i] = r * (at(dy, i) * a(i) - mean_g - xhat(i) * mean_gx);
    }
    SameBits same;
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        const unsigned runs = blocks(n, RUN);
        // Without a modulation all rows are of one sample.
        const Tile flat = {n, 0, n, w}, &own = stride ? tile : flat;
        Buffer<T> bx(x, end), bdy(dy, end), by(x.size(), end), bdx(x.size(), end);
        Buffer<float> bm(m, end), grad(std::vector<float>(m.size(), 1), end);
        Buffer<float> parts(size_t(own.samples()) * runs * 2 * w, end);
        Buffer<float2> saved(n, end);
        const PerSample scale = {kind == Affine::None ? nullptr : bm.data() + w, stride}, shift = {bm.data(), stride};
        forward({unsigned(n)}, order, bx.data(), by.data(), scale, shift, own.rows(), w, one, eps);
        backward({unsigned(n)}, order, bx.data(), bdy.data(), bdx.data(), saved.data(), scale, own.rows(), w, one, eps);
        columns({blocks(w, THREADS), runs, unsigned(own.samples())}, order, bx.data(), bdy.data(), saved.data(),
                parts.data(), own.rows(), n, w);
        add_runs(order, own, parts.data(), grad.data() + w, stride, 0, 2);
        add_runs(order, own, parts.data(), grad.data(), stride, 1, 2);
        same("y", by.values()), same("dx", bdx.values()), same("dm", grad.values());
        if (order != Order::Ascending) continue;
        const std::string name = tile.name("layer_norm", type_name<T>);
        expect(name + " y", by.values(), y, bound<T>);
        expect(name + " dx", bdx.values(), dx, bound<T>);
        expect(name + " dscale, dshift", grad.values(), dm, sum_bound);
    }
}

/// Where rows' heads are turned: a grid of tokens, of which the rank's first is `first`.
struct Turn {
    int grid[3], first, d;
};

template <class T>
void check_rms_rope(const Tile& tile, const Turn* turn, auto forward, auto backward, auto columns) {
    const auto [n, start, tokens, width] = tile;
    const int w = width, local = tokens;
    const auto x = normal<T>(size_t(n) * w, 3), dy = normal<T>(size_t(n) * w);
    const auto weight = normal<float>(w);
    const float eps = 1e-6f;
    std::vector<float2> table;
    const int side = turn ? 2 * (turn->d / 6) : 0;
    const auto angle = [&](int axis, int position, int i) {
        return position * std::pow(10000.0, -2.0 * i / (axis ? side : turn->d - 2 * side));
    };
    for (int axis = 0; turn && axis < 3; ++axis) {
        for (int position = 0; position < turn->grid[axis]; ++position) {
            for (int i = 0; i < (axis ? side : turn->d - 2 * side) / 2; ++i) {
                const double a = angle(axis, position, i);
                table.push_back({float(std::cos(a)), float(std::sin(a))});
            }
        }
    }
    std::vector<double> y(x.size()), dx(x.size()), dw(w, 1);
    for (int row = 0; row < n; ++row) {
        const auto at = [&](const std::vector<T>& v, int i) { return double(number(v[size_t(row) * w + i])); };
        const auto theta = [&](int i) { // of feature i
            if (!turn) return 0.0;
            const int token = turn->first + (start + row) % local, j = i % turn->d;
            const int plane = turn->grid[1] * turn->grid[2], time = turn->d - 2 * side;
            if (j < time) return angle(0, token / plane, j / 2);
            if (j < time + side) return angle(1, token / turn->grid[2] % turn->grid[1], (j - time) / 2);
            return angle(2, token % turn->grid[2], (j - time - side) / 2);
        };
        // The pair that feature i is in, turned by a sign's angle.
        const auto turned = [&](auto value, int i, double sign) {
            const double c = std::cos(theta(i)), s = std::sin(theta(i)) * sign;
            return i % 2 ? value(i) * c + value(i - 1) * s : value(i) * c - value(i + 1) * s;
        };
        double square = 0, mean_gx = 0;
        for (int i = 0; i < w; ++i) square += at(x, i) * at(x, i) / w;
        const double r = 1 / std::sqrt(square + eps);
        const auto back = [&](int i) { return turned([&](int j) { return at(dy, j); }, i, -1); };
        for (int i = 0; i < w; ++i) {
            y[size_t(row) * w + i] = turned([&](int j) { return at(x, j) * r * weight[j]; }, i, 1);
            mean_gx += back(i) * weight[i] * at(x, i) * r / w;
            dw[i] += back(i) * at(x, i) * r;
        }
        for (int i = 0; i < w; ++i) dx[size_t(row) * w + i] = r * (back(i) * weight[i] - at(x, i) * r * mean_gx);
    }
    SameBits same;
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        const unsigned runs = blocks(n, RUN);
        Buffer<T> bx(x, end), bdy(dy, end), by(x.size(), end), bdx(x.size(), end);
        Buffer<float> bweight(weight, end), grad(std::vector<float>(w, 1), end), parts(size_t(runs) * w, end);
        Buffer<float> saved(n, end);
        Buffer<float2> angles(table, end);
        const Rope rope =
            turn ? Rope{angles.data(), turn->grid[0], turn->grid[1], turn->grid[2], turn->first, turn->d} : Rope{};
        forward({unsigned(n)}, order, bx.data(), by.data(), bweight.data(), rope, tile.rows(), w, eps);
        backward({unsigned(n)}, order, bx.data(), bdy.data(), bdx.data(), saved.data(), bweight.data(), rope,
                 tile.rows(), w, eps);
        columns({blocks(w / 2, THREADS), runs}, order, bx.data(), bdy.data(), saved.data(), parts.data(), rope,
                tile.rows(), n, w);
        add_runs(order, {n, 0, n, w}, parts.data(), grad.data(), 0, 0, 1);
        same("y", by.values()), same("dx", bdx.values()), same("dw", grad.values());
        if (order != Order::Ascending) continue;
        const std::string name = tile.name(turn ? "rms_rope" : "rms", type_name<T>);
        expect(name + " y", by.values(), y, bound<T>);
        expect(name + " dx", bdx.values(), dx, bound<T>);
        expect(name + " dw", grad.values(), dw, sum_bound);
    }
}

template <class T>
void check_gate_and_gelu(const Tile& tile, auto gate_forward, auto gate_backward, auto gelu_forward,
                         auto gelu_backward) {
    const auto [n, start, tokens, width] = tile;
    const int samples = tile.sample(n - 1) + 1, w = width;
    const auto x = normal<T>(size_t(n) * w), y = normal<T>(size_t(n) * w, 2), d = normal<T>(size_t(n) * w);
    const auto gates = normal<float>(size_t(samples) * 3 * w); // the second of three rows of a sample
    std::vector<double> out(x.size()), dy(x.size()), dgate(gates.size(), 1), gelu(x.size()), slope(x.size());
    for (size_t at = 0; at < x.size(); ++at) {
        const size_t g = (size_t(tile.sample(int(at / w))) * 3 + 1) * w + at % w;
        const double vy = number(y[at]), vd = number(d[at]);
        out[at] = number(x[at]) + gates[g] * vy, dy[at] = vd * gates[g], dgate[g] += vy * vd;
        const double c = std::sqrt(2 / M_PI), t = std::tanh(c * (vy + 0.044715 * vy * vy * vy));
        gelu[at] = 0.5 * vy * (1 + t);
        slope[at] = vd * (0.5 * (1 + t) + 0.5 * vy * (1 - t * t) * c * (1 + 3 * 0.044715 * vy * vy));
    }
    SameBits same;
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        const unsigned runs = blocks(n, RUN), columns = blocks(w, THREADS);
        const i64 numbers = x.size();
        Buffer<T> bx(x, end), by(y, end), bd(d, end), bout(x.size(), end), bdy(x.size(), end);
        Buffer<T> bgelu(x.size(), end), bslope(x.size(), end);
        Buffer<float> bgates(gates, end), grad(std::vector<float>(gates.size(), 1), end);
        Buffer<float> parts(size_t(tile.samples()) * runs * w, end);
        const PerSample gate = {bgates.data() + w, 3 * w};
        gate_forward({columns, runs}, order, bx.data(), by.data(), bout.data(), gate, tile.rows(), n, w);
        gate_backward({columns, runs, unsigned(tile.samples())}, order, by.data(), bd.data(), bdy.data(), parts.data(),
                      gate, tile.rows(), n, w);
        add_runs(order, tile, parts.data(), grad.data() + w, 3 * w, 0, 1);
        gelu_forward({blocks(numbers, THREADS)}, order, by.data(), bgelu.data(), numbers);
        gelu_backward({blocks(numbers, THREADS)}, order, by.data(), bd.data(), bslope.data(), numbers);
        same("out", bout.values()), same("dy", bdy.values()), same("dgate", grad.values());
        if (order != Order::Ascending) continue;
        expect(tile.name("gate", type_name<T>) + " out", bout.values(), out, bound<T>);
        expect(tile.name("gate", type_name<T>) + " dy", bdy.values(), dy, bound<T>);
        expect(tile.name("gate", type_name<T>) + " dgate", grad.values(), dgate, sum_bound);
        expect(tile.name("gelu", type_name<T>) + " y", bgelu.values(), gelu, bound<T>);
        expect(tile.name("gelu", type_name<T>) + " dx", bslope.values(), slope, bound<T>);
    }
}

void check_flash_f32(const Shape& shape, int d) {
    const Problem<float> x(shape, d);
    const int sq = shape.queries, sk = shape.keys;
    const Strides q_at = x.strides(sq), k_at = x.strides(sk);
    SameBits same;
    for (Order order : emulator::orders) {
        Buffers<float, float, float> b(x, order != Order::Descending);
        LAUNCH(flash_forward_f32, grid(shape, sq, 1), order, b.q.data(), b.k.data(), b.v.data(), b.o.data(), b.lse.data(), q_at,
               k_at, k_at, sq, sk, d, x.scale);
        LAUNCH(flash_backward_kv_f32, grid(shape, sk, 1), order, b.q.data(), b.k.data(), b.v.data(), b.d_o.data(), b.lse32.data(),
               b.delta.data(), b.dk.data(), b.dv.data(), q_at, k_at, k_at, q_at, sq, sk, d, x.scale);
        LAUNCH(flash_backward_q_f32, grid(shape, sq, 1), order, b.q.data(), b.k.data(), b.v.data(), b.d_o.data(), b.lse32.data(),
               b.delta.data(), b.dq.data(), q_at, k_at, k_at, q_at, sq, sk, d, x.scale);
        b.same_bits(same);
        if (order != Order::Ascending) continue;
        // Backward takes P from an f32 lse, which is off by half a unit in its last place.
        const double off = std::max(4e-6, 2e-7 * std::abs(shape.logits));
        const std::string name =
            "flash_f32 d" + std::to_string(d) + " " + std::to_string(sq) + " x " + std::to_string(sk) + " ";
        expect(name + "o", b.o.values(), x.o, off), expect(name + "lse", b.lse.values(), x.lse, 4e-7);
        expect(name + "dq", b.dq.values(), x.dq, off, shape.logits ? x.dq_size : 0);
        expect(name + "dk", b.dk.values(), x.dk, off, shape.logits ? x.dk_size : 0);
        expect(name + "dv", b.dv.values(), x.dv, off);
    }
}

#define LAYER_NORM_OF(T) \
    KERNEL_OF(layer_norm_forward_##T), KERNEL_OF(layer_norm_backward_##T), KERNEL_OF(layer_norm_columns_##T)
#define RMS_ROPE_OF(T) \
    KERNEL_OF(rms_rope_forward_##T), KERNEL_OF(rms_rope_backward_##T), KERNEL_OF(rms_rope_columns_##T)
#define GATE_AND_GELU_OF(T) \
    KERNEL_OF(gate_forward_##T), KERNEL_OF(gate_backward_##T), KERNEL_OF(gelu_forward_##T), KERNEL_OF(gelu_backward_##T)

int main() {
    emulator::catch_faults();
    const Tile one = {1, 0, 1, 8}, uneven = {131, 50, 70, 354}, wide = {3, 5, 2, 1100};
    for (const Tile& tile : {one, uneven, wide}) {
        for (Affine kind : {Affine::None, Affine::Weights, Affine::Modulation}) {
            check_layer_norm<float>(tile, kind, LAYER_NORM_OF(f32));
        }
        check_gate_and_gelu<float>(tile, GATE_AND_GELU_OF(f32));
        check_rms_rope<float>(tile, nullptr, RMS_ROPE_OF(f32));
    }
    const Turn turn = {{5, 3, 9}, 41, 118}, small = {{1, 2, 2}, 0, 8};
    check_rms_rope<float>(uneven, &turn, RMS_ROPE_OF(f32));
    check_rms_rope<float>({5, 2, 4, 16}, &small, RMS_ROPE_OF(f32));
    check_layer_norm<bf16>(uneven, Affine::Modulation, LAYER_NORM_OF(bf16));
    check_gate_and_gelu<bf16>(uneven, GATE_AND_GELU_OF(bf16));
    check_rms_rope<bf16>(uneven, &turn, RMS_ROPE_OF(bf16));
    check_flash_f32({1, 2, 9, 131, 0}, 24), check_flash_f32({1, 1, 140, 3, 0}, 200),
        check_flash_f32({2, 1, 1, 1, 0}, 64);
    check_flash_f32({1, 1, 20, 40, 1e4}, 64), check_flash_f32({1, 1, 20, 40, -400}, 64);
}
