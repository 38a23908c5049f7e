// Convolution as its kernels and a plain product make it, against its definition in f64: norm and SiLU before it or
// not, strides, kernels of a few sizes, tiles that end in the middle of a row; and softmax of rows.
#include "check.h"
#include "../../conv.cu"
#include "../../softmax.cu"

/// A convolution: frames [rows, width, channels] -> [out_rows, out_width], as Taps has it.
struct Conv {
    int frames, rows, columns, row, column, stride, width, height, channels, out_width, out_height;

    std::string name(const char* type) const {
        return std::to_string(frames) + " x " + std::to_string(rows) + " x " + std::to_string(columns) + " of " +
               std::to_string(height) + " x " + std::to_string(width) + " x " + std::to_string(channels) + ", " + type;
    }
};

/// y = silu(x / |x| factors) in f64, or parts of it.
std::vector<double> plain_pack(const std::vector<float>& x, const std::vector<float>& factors, int channels,
                               bool silu) {
    auto y = doubles(x);
    if (factors.empty()) return y;
    for (size_t at = 0; at < y.size(); at += size_t(channels)) {
        double squares = 0;
        for (int c = 0; c < channels; ++c) squares += y[at + c] * y[at + c];
        for (int c = 0; c < channels; ++c) {
            double& value = y[at + c];
            value *= factors[c] / std::max(std::sqrt(squares), 1e-12);
            if (silu) value /= 1 + std::exp(-value);
        }
    }
    return y;
}

template <class T>
void check_pack(auto kernel, i64 n, int channels, bool factored, bool silu) {
    auto x = normal<float>(size_t(n * channels), 3);
    std::fill_n(x.begin(), channels, 0.0f); // a norm of 0
    const auto factors = factored ? normal<float>(size_t(channels), 2) : std::vector<float>();
    SameBits same;
    const std::string name = "pack " + std::to_string(n) + " x " + std::to_string(channels) + (silu ? " silu" : "");
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        Buffer<float> bx(x, end), bf(factors, end);
        Buffer<T> by(x.size(), end);
        kernel({unsigned((n + PIXELS - 1) / PIXELS)}, order, bx.data(), by.data(), factored ? bf.data() : nullptr, n,
               channels, int(silu));
        same(name, by.values());
        expect(name, by.values(), plain_pack(x, factors, channels, silu), sizeof(T) == 2 ? 5e-3 : 1e-6);
    }
}

/// Gathers tiles of `tile` pixels as units of `each` elements of T, and holds them against the definition.
template <class T, class Unit>
void check_gather(auto kernel, const Conv& conv, int tile) {
    constexpr int each = int(sizeof(Unit) / sizeof(T));
    const auto [frames, rows, columns, row, column, stride, width, height, channels, out_width, out_height] = conv;
    const int taps = rows * columns * channels, run = (taps + 7) / 8 * 8, m = out_width * out_height;
    const size_t size = size_t(height + 2) * width * channels;
    std::vector<std::vector<T>> inputs;
    for (int i = 0; i < frames; ++i) inputs.push_back(normal<T>(size)); // rows above and below are a neighbour's
    const auto truth = [&](int pixel, int frame, int i) -> double {
        if (i >= taps) return 0;
        const int dy = i / (columns * channels), dx = i / channels % columns, c = i % channels;
        const int y = pixel / out_width * stride + row + dy, x = pixel % out_width * stride + column + dx - 1;
        return x < 0 || x >= width ? 0 : number(inputs[frame][(size_t(y) * width + x) * channels + c]);
    };
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        Buffer<T> held[] = {{inputs[0], end}, {inputs[frames / 2], end}, {inputs[frames - 1], end}};
        for (int first = 0; first < m; first += tile) {
            const int count = std::min(tile, m - first), n = count * frames * run / each;
            Buffer<T> a(size_t(count) * frames * run, end);
            const Taps units = {frames,  rows,      columns, row, column, stride, width, channels / each,
                                out_width, run / each};
            const auto at = [&](int i) { return reinterpret_cast<const Unit*>(held[i].data()); };
            kernel({unsigned((n + THREADS - 1) / THREADS)}, order, at(0), at(1), at(2),
                   reinterpret_cast<Unit*>(a.data()), i64(first), units, n);
            const auto got = a.values();
            for (int i = 0; i < count * frames * run; ++i) {
                const double want = truth(first + i / run / frames, i / run % frames, i % run);
                if (number(got[i]) == want) continue;
                fprintf(stderr, "check: gather %s: element %d is %g, not %g\n", conv.name("").c_str(), i,
                        double(number(got[i])), want);
                exit(2);
            }
        }
    }
    printf("gather %s\n", conv.name(sizeof(T) == 2 ? "bf16" : "f32").c_str());
}

template <class T>
void check_softmax(auto kernel, int n, int width, float scale) {
    const auto x = normal<float>(size_t(n) * width, 4);
    auto truth = doubles(x);
    for (int row = 0; row < n; ++row) {
        double *at = &truth[size_t(row) * width], most = -1e300, sum = 0;
        for (int i = 0; i < width; ++i) most = std::max(most, scale * at[i]);
        for (int i = 0; i < width; ++i) sum += at[i] = std::exp(scale * at[i] - most);
        for (int i = 0; i < width; ++i) at[i] /= sum;
    }
    SameBits same;
    const std::string name = "softmax " + std::to_string(n) + " x " + std::to_string(width);
    for (Order order : emulator::orders) {
        Buffer<float> bx(x, order != Order::Descending);
        Buffer<T> by(x.size(), order != Order::Descending);
        kernel({unsigned(n)}, order, bx.data(), by.data(), width, scale);
        same(name, by.values());
        expect(name, by.values(), truth, sizeof(T) == 2 ? 5e-3 : 2e-6);
        if constexpr (sizeof(T) == 4) { // in place
            kernel({unsigned(n)}, order, bx.data(), bx.data(), width, scale);
            same(name, bx.values());
        }
    }
}

int main() {
    emulator::catch_faults();
    for (auto [n, channels] : {std::pair<i64, int>{1, 3}, {9, 5}, {23, 96}, {8, 131}}) {
        for (auto [factored, silu] : {std::pair{false, false}, {true, false}, {true, true}}) {
            check_pack<float>(KERNEL_OF(conv_pack_f32), n, channels, factored, silu);
            check_pack<bf16>(KERNEL_OF(conv_pack_bf16), n, channels, factored, silu);
        }
    }
    const Conv causal = {3, 3, 3, 0, 0, 1, 5, 4, 3, 5, 4}, halving = {1, 3, 3, 1, 1, 2, 7, 6, 3, 3, 3};
    const Conv doubling = {1, 2, 2, 1, 0, 1, 4, 3, 5, 4, 3}, times = {2, 1, 1, 1, 1, 1, 3, 2, 7, 3, 2};
    for (const Conv& conv : {causal, halving, doubling, times}) {
        for (int tile : {1, 7, 100}) {
            check_gather<float, u32>(KERNEL_OF(conv_gather_4), conv, tile);
            check_gather<bf16, unsigned short>(KERNEL_OF(conv_gather_2), conv, tile);
        }
        Conv wide = conv;
        wide.channels = 8;
        check_gather<float, Sixteen>(KERNEL_OF(conv_gather_16), wide, 7);
        check_gather<bf16, Sixteen>(KERNEL_OF(conv_gather_16), wide, 8);
    }
    for (auto [n, width] : {std::pair{1, 1}, {3, 257}, {2, 600}}) {
        check_softmax<float>(KERNEL_OF(softmax_f32), n, width, 0.7f);
        check_softmax<bf16>(KERNEL_OF(softmax_bf16), n, width, 0.7f);
    }
}
