// Patches with noise, an adapter's dropout, AdamW, RoPE against what the crate itself computes (its numbers come in a
// file, see `Crate`); row copies and the ring's merge against their formulas.
#include "check.h"
#include "../../adamw.cu"
#include "../../copy_rows.cu"
#include "../../dropout.cu"
#include "../../patches.cu"
#include "../../ring.cu"
#include "../../rms_rope.cu"
#include <map>

/// Named arrays: for each a line "name count", then as many f64.
struct Crate {
    std::map<std::string, std::vector<double>> arrays;

    explicit Crate(const char* path) {
        FILE* file = fopen(path, "rb");
        char name[64];
        size_t count;
        while (file && fscanf(file, "%63s %zu%*1[\n]", name, &count) == 2) {
            auto& array = arrays[name];
            array.resize(count);
            if (fread(array.data(), 8, count, file) != count) exit(4);
        }
        if (arrays.empty()) {
            fprintf(stderr, "check: no arrays in %s\n", path);
            exit(4);
        }
    }

    const std::vector<double>& of(const std::string& name) const { return arrays.at(name); }

    template <class T>
    std::vector<T> as(const std::string& name) const {
        return std::vector<T>(of(name).begin(), of(name).end());
    }
};

void check_patches(const Crate& crate, const std::string& name) {
    const auto shape = crate.as<int>(name + ".shape"); // the numbers of Frames, token, count
    const auto key = crate.as<u32>(name + ".key");
    const auto pixels = crate.as<u8>(name + ".pixels");
    const double sigma = crate.of(name + ".sigma")[0];
    const int row = 3 * shape[5] * shape[6] * shape[7], token = shape[8], count = shape[9];
    const i64 threads = i64(count) * ((row + 15) / 16);
    Key words;
    std::copy(key.begin(), key.end(), words.words);
    SameBits same;
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        Buffer<u8> frames(pixels, end);
        Buffer<float> x0(count * row, end), noise(count * row, end), x(count * row, end), noise_alone(count * row, end);
        const Frames clip = {frames.data(), shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6], shape[7]};
        Frames none = clip;
        none.pixels = nullptr;
        const dim3 grid = {unsigned((threads + THREADS - 1) / THREADS)};
        LAUNCH(noisy_patches, grid, order, clip, words, token, count, float(1 - sigma), float(sigma), x0.data(),
               noise.data(), x.data());
        LAUNCH(noisy_patches, grid, order, none, words, token, count, 0.0f, 0.0f, nullptr, noise_alone.data(),
               nullptr);
        same("x0", x0.values()), same("noise", noise.values()), same("noise", noise_alone.values()),
            same("x", x.values());
        if (order != Order::Ascending) continue;
        expect("noisy_patches x0", x0.values(), crate.of(name + ".x0"), 0);
        expect("noisy_patches noise", noise.values(), crate.of(name + ".noise"), 3e-7);
        expect("noisy_patches x", x.values(), crate.of(name + ".x"), 3e-7);
    }
}

/// The bits of the crate's, into another array, in place, and added to what is there.
void check_dropout(const Crate& crate) {
    const auto shape = crate.as<i64>("dropout.shape"); // token, n, width, least
    const auto x = crate.as<float>("dropout.x"), y = crate.as<float>("dropout.y");
    const float scale = float(crate.of("dropout.scale")[0]);
    const i64 token = shape[0], n = shape[1], blocks = (shape[2] + DRAWN - 1) / DRAWN;
    const int width = int(shape[2]);
    const u32 least = u32(shape[3]);
    const auto words = crate.as<u32>("dropout.key");
    Key key;
    std::copy(words.begin(), words.end(), key.words);
    std::vector<double> sums;
    for (size_t i = 0; i < y.size(); ++i) sums.push_back(x[y.size() - 1 - i] + y[i]);
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        Buffer<float> bx(x, end), by(x.size(), end), sum({x.rbegin(), x.rend()}, end);
        const dim3 grid = {unsigned((n * blocks + THREADS - 1) / THREADS)};
        LAUNCH(dropout, grid, order, bx.data(), by.data(), key, token, n, width, least, scale, 0);
        LAUNCH(dropout, grid, order, bx.data(), sum.data(), key, token, n, width, least, scale, 1);
        LAUNCH(dropout, grid, order, bx.data(), bx.data(), key, token, n, width, least, scale, 0);
        expect("dropout", by.values(), doubles(y), 0);
        expect("dropout, in place", bx.values(), doubles(y), 0);
        expect("dropout, added", sum.values(), sums, 1e-7);
    }
}

void check_adamw(const Crate& crate) {
    const auto c =
        crate.as<float>("adamw.step"); // beta1, beta2, 1 - beta1, 1 - beta2, scale, rate, inv_std, eps, decay, average
    const AdamW step = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9]};
    const auto ranges = crate.as<i64>("adamw.no_decay");
    const i64 n = crate.of("adamw.params").size();
    const unsigned blocks = unsigned((n + THREADS - 1) / THREADS);
    SameBits same;
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        const auto buffer = [&](const char* name) { return Buffer<float>(crate.as<float>(name), end); };
        auto params = buffer("adamw.params"), grads = buffer("adamw.grads"), m = buffer("adamw.m"),
             v = buffer("adamw.v");
        auto average = buffer("adamw.average"), lone = buffer("adamw.params"), m2 = buffer("adamw.m"),
             v2 = buffer("adamw.v");
        Buffer<i64> no_decay(ranges, end);
        LAUNCH(adamw, {blocks}, order, params.data(), grads.data(), m.data(), v.data(), average.data(), n, step,
               no_decay.data(), int(ranges.size() / 2));
        LAUNCH(adamw, {blocks}, order, lone.data(), grads.data(), m2.data(), v2.data(), nullptr, n, step,
               no_decay.data(), int(ranges.size() / 2));
        Buffer<double> parts((n + 64 * THREADS - 1) / (64 * THREADS), end);
        LAUNCH(norm_squared, {unsigned((n + 64 * THREADS - 1) / (64 * THREADS))}, order, grads.data(), parts.data(), n);
        same("params", params.values()), same("params", lone.values()), same("average", average.values());
        same("parts", parts.values());
        if (order != Order::Ascending) continue;
        // Whether a product and a sum are rounded once or twice is each compiler's own.
        expect("adamw params", params.values(), crate.of("adamw.new_params"), 1.2e-7);
        expect("adamw m", m.values(), crate.of("adamw.new_m"), 1.2e-7);
        expect("adamw v", v.values(), crate.of("adamw.new_v"), 1.2e-7);
        expect("adamw average", average.values(), crate.of("adamw.new_average"), 1.2e-7);
        double sum = 0;
        for (double part : parts.values()) sum += part;
        expect("norm_squared", std::vector<double>{sum}, crate.of("adamw.norm_squared"), 1e-13);
    }
}

void check_rope(const Crate& crate) {
    const auto shape = crate.as<int>("rope.shape"); // grid, first, d, start, tokens, width
    const int width = shape[7], n = int(crate.of("rope.x").size()) / width;
    const auto pairs = crate.as<float>("rope.table");
    std::vector<float2> table;
    for (size_t i = 0; i < pairs.size(); i += 2) table.push_back({pairs[i], pairs[i + 1]});
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        Buffer<float> x(crate.as<float>("rope.x"), end), y(n * width, end), weight(crate.as<float>("rope.weight"), end);
        Buffer<float2> angles(table, end);
        const Rope rope = {angles.data(), shape[0], shape[1], shape[2], shape[3], shape[4]};
        LAUNCH(rms_rope_forward_f32, {unsigned(n)}, order, x.data(), y.data(), weight.data(), rope,
               {shape[5], shape[6]}, width, 1e-6f);
        expect("rms_rope against the crate's", y.values(), crate.of("rope.y"), 5e-7);
    }
}

/// Packs rank j's message of x `[B, N, M, d]` and weaves it into its place in `[B, M_j, N', d]`, as Ulysses does.
template <class Unit, class Kernel>
void check_copies(const char* name, Kernel kernel, int units) {
    const int batch = 2, n = 37, m = 5, from = 1, some = 3, before = 11,
              all = 61; // of N' = 61 rows, ours come after 11
    std::vector<Unit> x(size_t(batch) * n * m * units);
    for (size_t i = 0; i < x.size(); ++i) reinterpret_cast<unsigned short&>(x[i]) = static_cast<unsigned short>(i);
    const auto value = [](const Unit& unit) { return double(reinterpret_cast<const unsigned short&>(unit)); };
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        Buffer<Unit> bx(x, end), message(size_t(batch) * some * n * units, end),
            out(size_t(batch) * some * all * units, end);
        const Places x_at = {{i64(n) * m * units, units, i64(m) * units}},
                     contiguous = {{i64(some) * n * units, i64(n) * units, units}};
        const Places out_at = {{i64(some) * all * units, i64(all) * units, units}};
        const dim3 grid = {unsigned(batch * some), 1};
        emulator::launch(grid, THREADS, 0, order,
                         [&] { kernel(bx.data() + from * units, message.data(), x_at, contiguous, some, n, units); });
        emulator::launch(grid, THREADS, 0, order, [&] {
            kernel(message.data(), out.data() + before * units, contiguous, out_at, some, n, units);
        });
        std::vector<double> got, truth;
        const auto values = out.values();
        for (int b = 0; b < batch; ++b) {
            for (int j = 0; j < some; ++j) {
                for (int i = 0; i < all; ++i) {
                    for (int u = 0; u < units; ++u) {
                        const bool ours = i >= before && i < before + n;
                        const size_t source = ((size_t(b) * n + i - before) * m + from + j) * units + u;
                        got.push_back(value(values[((size_t(b) * some + j) * all + i) * units + u]));
                        truth.push_back(ours ? value(x[source]) : 0xFFFF); // the rest is untouched
                    }
                }
            }
        }
        expect(name, got, truth, 0);
    }
}

void check_ring(int rows, int d, double apart) {
    const auto o = normal<float>(size_t(rows) * d), more = normal<float>(size_t(rows) * d);
    auto lse = normal<double>(rows), more_lse = normal<double>(rows);
    std::vector<double> truth(o.size()), truth_lse(rows), sums(o.size());
    for (int row = 0; row < rows; ++row) {
        lse[row] += apart * (row % 3), more_lse[row] += apart;
        const long double max = std::max(lse[row], more_lse[row]);
        const long double a = std::exp(lse[row] - max), b = std::exp(more_lse[row] - max);
        truth_lse[row] = double(max + std::log(a + b));
        for (int i = row * d; i < (row + 1) * d; ++i) truth[i] = double((a * o[i] + b * more[i]) / (a + b));
    }
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = double(o[i] + more[i]);
    SameBits same;
    for (Order order : emulator::orders) {
        const bool end = order != Order::Descending;
        Buffer<float> bo(o, end), bmore(more, end), sum(o, end);
        Buffer<double> blse(lse, end), bmore_lse(more_lse, end);
        LAUNCH(ring_merge, {unsigned(rows + 7) / 8}, order, bo.data(), blse.data(), bmore.data(), bmore_lse.data(),
               rows, d);
        LAUNCH(add_assign, {unsigned((o.size() + THREADS - 1) / THREADS)}, order, sum.data(), bmore.data(),
               i64(o.size()));
        same("o", bo.values()), same("lse", blse.values());
        expect("ring_merge o", bo.values(), truth, 2e-7);
        expect("ring_merge lse", blse.values(), truth_lse, 1e-15);
        expect("add_assign", sum.values(), sums, 0);
    }
}

int main(int count, char** arguments) {
    emulator::catch_faults();
    if (count != 2) return 4;
    const Crate crate(arguments[1]);
    check_patches(crate, "patches"), check_patches(crate, "lines");
    check_dropout(crate);
    check_adamw(crate);
    check_rope(crate);
    check_copies<Sixteen>("copy_rows_16", copy_rows_16, 16);
    check_copies<u32>("copy_rows_4", copy_rows_4, 3);
    check_copies<unsigned short>("copy_rows_2", copy_rows_2, 1);
    check_ring(1, 1, 0), check_ring(70, 96, 2), check_ring(33, 100, 1e4);
}
