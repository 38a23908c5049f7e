// All kernels but attention's at places beyond 2^32 elements (far.h).
#include "far.h"
#include "../../adamw.cu"
#include "../../cast.cu"
#include "../../conv.cu"
#include "../../copy_rows.cu"
#include "../../dropout.cu"
#include "../../gate.cu"
#include "../../gelu.cu"
#include "../../layer_norm.cu"
#include "../../patches.cu"
#include "../../ring.cu"
#include "../../rms_rope.cu"
#include "../../softmax.cu"
#include "../../sum_runs.cu"

constexpr i64 BEYOND = i64(1) << 32;
constexpr Rows ALL = {0, i64(1) << 62};

/// Rows of a norm or gate: sample 100 of a tile, its rows from number 640 on, a run. They begin beyond 2^32 elements,
/// and so do the run's parts.
constexpr int WIDTH = 1100, FIRST_RUN = 10, SAMPLE = 100, TOKENS = 41943, RUNS = 65535;
constexpr i64 FIRST = i64(SAMPLE) * TOKENS + FIRST_RUN * RUN, ROWS = i64(SAMPLE + 1) * TOKENS, FAR = FIRST * WIDTH;
static_assert(FAR > BEYOND && i64(SAMPLE) * RUNS * WIDTH > BEYOND);

constexpr int HERE = RUN * WIDTH; // elements of a run
const unsigned COLUMNS = (WIDTH + THREADS - 1) / THREADS;

/// Blocks of all of a run's rows, and of all its columns.
Blocks rows_from(i64 first) {
    Blocks blocks;
    for (int i = 0; i < RUN; ++i)
        blocks.push_back(block_at(unsigned(first + i)));
    return blocks;
}

Blocks columns_of(unsigned run, unsigned sample, unsigned columns = COLUMNS) {
    Blocks blocks;
    for (unsigned i = 0; i < columns; ++i)
        blocks.push_back({i, run, sample});
    return blocks;
}

void check_layer_norm() {
    const auto x = normal<float>(HERE, 3), dy = normal<float>(HERE), scale = normal<float>(WIDTH),
               shift = normal<float>(WIDTH);
    const PerSample a = {scale.data(), 0}, b = {shift.data(), 0};
    std::vector<float> y(HERE), dx(HERE), parts(2 * WIDTH);
    std::vector<float2> saved(RUN);
    LAUNCH(layer_norm_forward_f32, dim3{RUN}, Order::Ascending, x.data(), y.data(), a, b, ALL, WIDTH, 1, 1e-6f);
    LAUNCH(layer_norm_backward_f32, dim3{RUN}, Order::Ascending, x.data(), dy.data(), dx.data(), saved.data(), a, ALL,
           WIDTH, 1, 1e-6f);
    LAUNCH(layer_norm_columns_f32, (dim3{COLUMNS}), Order::Ascending, x.data(), dy.data(), saved.data(), parts.data(),
           ALL, RUN, WIDTH);

    Sparse<float> fx(ROWS * WIDTH), fdy(ROWS * WIDTH), fy(ROWS * WIDTH), fdx(ROWS * WIDTH);
    Sparse<float> fparts(i64(SAMPLE + 1) * RUNS * 2 * WIDTH);
    Sparse<float2> fsaved(ROWS);
    put(fx.data() + FAR, x), put(fdy.data() + FAR, dy);
    const dim3 grid = {unsigned(ROWS)}, sums = {COLUMNS, RUNS, SAMPLE + 1};
    LAUNCH_BLOCKS(layer_norm_forward_f32, grid, rows_from(FIRST), fx.data(), fy.data(), a, b, ALL, WIDTH, 1, 1e-6f);
    LAUNCH_BLOCKS(layer_norm_backward_f32, grid, rows_from(FIRST), fx.data(), fdy.data(), fdx.data(), fsaved.data(), a,
                  ALL, WIDTH, 1, 1e-6f);
    LAUNCH_BLOCKS(layer_norm_columns_f32, sums, columns_of(FIRST_RUN, SAMPLE), fx.data(), fdy.data(), fsaved.data(),
                  fparts.data(), (Rows{0, TOKENS}), ROWS, WIDTH);
    same("layer_norm_forward", fy.data() + FAR, y.data(), HERE);
    same("layer_norm_backward", fdx.data() + FAR, dx.data(), HERE);
    same("layer_norm_columns", fparts.data() + (i64(SAMPLE) * RUNS + FIRST_RUN) * 2 * WIDTH, parts.data(), 2 * WIDTH);
}

void check_rms_rope() {
    // A row of one sample, run RUNS - 1, whose token is FIRST, too.
    const i64 first = i64(RUNS - 1) * RUN, far = first * WIDTH, rows = first + RUN;
    static_assert(i64(RUNS - 1) * RUN * WIDTH > BEYOND);
    const int grid[3] = {int(rows / 77 + 1), 7, 11}, d = 22;
    std::vector<float2> table(size_t(grid[0]) * 5 + grid[1] * 3 + grid[2] * 3);
    for (size_t i = 0; i < table.size(); ++i)
        table[i] = {float(std::cos(i * 0.1)), float(std::sin(i * 0.1))};
    const auto rope = [&](i64 from) { return Rope{table.data(), grid[0], grid[1], grid[2], from, d}; };
    const auto x = normal<float>(HERE, 3), dy = normal<float>(HERE), weight = normal<float>(WIDTH);
    std::vector<float> y(HERE), dx(HERE), parts(WIDTH), saved(RUN);
    const unsigned columns = (WIDTH / 2 + THREADS - 1) / THREADS;
    LAUNCH(rms_rope_forward_f32, dim3{RUN}, Order::Ascending, x.data(), y.data(), weight.data(), rope(first), ALL,
           WIDTH, 1e-6f);
    LAUNCH(rms_rope_backward_f32, dim3{RUN}, Order::Ascending, x.data(), dy.data(), dx.data(), saved.data(),
           weight.data(), rope(first), ALL, WIDTH, 1e-6f);
    LAUNCH(rms_rope_columns_f32, (dim3{columns}), Order::Ascending, x.data(), dy.data(), saved.data(), parts.data(),
           rope(first), ALL, RUN, WIDTH);

    Sparse<float> fx(rows * WIDTH), fdy(rows * WIDTH), fy(rows * WIDTH), fdx(rows * WIDTH), fparts(i64(RUNS) * WIDTH),
        fsaved(rows);
    put(fx.data() + far, x), put(fdy.data() + far, dy);
    const dim3 of_rows = {unsigned(rows)}, sums = {columns, RUNS};
    LAUNCH_BLOCKS(rms_rope_forward_f32, of_rows, rows_from(first), fx.data(), fy.data(), weight.data(), rope(0), ALL,
                  WIDTH, 1e-6f);
    LAUNCH_BLOCKS(rms_rope_backward_f32, of_rows, rows_from(first), fx.data(), fdy.data(), fdx.data(), fsaved.data(),
                  weight.data(), rope(0), ALL, WIDTH, 1e-6f);
    LAUNCH_BLOCKS(rms_rope_columns_f32, sums, columns_of(RUNS - 1, 0, columns), fx.data(), fdy.data(), fsaved.data(),
                  fparts.data(), rope(0), ALL, rows, WIDTH);
    same("rms_rope_forward", fy.data() + far, y.data(), HERE);
    same("rms_rope_backward", fdx.data() + far, dx.data(), HERE);
    same("rms_rope_columns", fparts.data() + i64(RUNS - 1) * WIDTH, parts.data(), WIDTH);
}

void check_gate() {
    const i64 first = i64(RUNS - 1) * RUN, far = first * WIDTH,
              rows = ROWS; // forward counts runs of the tile, not of a sample
    const auto x = normal<float>(HERE), y = normal<float>(HERE), gates = normal<float>(WIDTH);
    const PerSample gate = {gates.data(), 0};
    std::vector<float> out(HERE), dy(HERE), parts(WIDTH);
    LAUNCH(gate_forward_f32, (dim3{COLUMNS}), Order::Ascending, x.data(), y.data(), out.data(), gate, ALL, RUN, WIDTH);
    LAUNCH(gate_backward_f32, (dim3{COLUMNS}), Order::Ascending, y.data(), x.data(), dy.data(), parts.data(), gate, ALL,
           RUN, WIDTH);

    Sparse<float> fx(rows * WIDTH), fy(rows * WIDTH), fout(rows * WIDTH), fdy(rows * WIDTH),
        fparts(i64(SAMPLE + 1) * RUNS * WIDTH);
    put(fx.data() + far, x), put(fy.data() + far, y);
    LAUNCH_BLOCKS(gate_forward_f32, (dim3{COLUMNS, RUNS}), columns_of(RUNS - 1, 0), fx.data(), fy.data(), fout.data(),
                  gate, ALL, rows, WIDTH);
    same("gate_forward", fout.data() + far, out.data(), HERE);
    put(fx.data() + FAR, x), put(fy.data() + FAR, y);
    LAUNCH_BLOCKS(gate_backward_f32, (dim3{COLUMNS, RUNS, SAMPLE + 1}), columns_of(FIRST_RUN, SAMPLE), fy.data(),
                  fx.data(), fdy.data(), fparts.data(), gate, (Rows{0, TOKENS}), rows, WIDTH);
    same("gate_backward", fdy.data() + FAR, dy.data(), HERE);
    same("gate_backward, parts", fparts.data() + (i64(SAMPLE) * RUNS + FIRST_RUN) * WIDTH, parts.data(), WIDTH);
}

/// Kernels that take element after element: their last block, which is not full.
void check_elementwise() {
    const unsigned last = (1u << 25) + 3;
    const i64 at = i64(last) * THREADS, here = THREADS - 100, n = at + here;
    const auto x = normal<float>(here), y = normal<float>(here), squares = normal<float>(here);
    Sparse<float> fx(n), fy(n), fz(n);
    std::vector<float> got(here), other = y;
    const dim3 grid = {last + 1};
    put(fx.data() + at, x), put(fy.data() + at, y);
    LAUNCH(gelu_forward_f32, dim3{}, Order::Ascending, x.data(), got.data(), here);
    LAUNCH_BLOCKS(gelu_forward_f32, grid, Blocks{block_at(last)}, fx.data(), fz.data(), n);
    same("gelu_forward", fz.data() + at, got.data(), here);
    LAUNCH(gelu_backward_f32, dim3{}, Order::Ascending, x.data(), y.data(), got.data(), here);
    LAUNCH_BLOCKS(gelu_backward_f32, grid, Blocks{block_at(last)}, fx.data(), fy.data(), fz.data(), n);
    same("gelu_backward", fz.data() + at, got.data(), here);
    LAUNCH(add_assign, dim3{}, Order::Ascending, other.data(), x.data(), here);
    LAUNCH_BLOCKS(add_assign, grid, Blocks{block_at(last)}, fy.data(), fx.data(), n);
    same("add_assign", fy.data() + at, other.data(), here);

    std::vector<float> param = x, m = y, v = squares, average = x;
    for (float& value : v)
        value *= value;
    Sparse<float> fm(n), fv(n), faverage(n);
    put(fm.data() + at, m), put(fv.data() + at, v), put(faverage.data() + at, average), put(fy.data() + at, y);
    const AdamW step = {0.9f, 0.99f, 0.1f, 0.01f, 0.4f, 1e-2f, 1.1f, 1e-8f, 1e-3f, 0.05f};
    const i64 near[] = {0, 3, 40, 90}, far[] = {0, 5, at, at + 3, at + 40, at + 90}; // without decay
    LAUNCH(adamw, dim3{}, Order::Ascending, param.data(), y.data(), m.data(), v.data(), average.data(), here, step,
           near, 2);
    LAUNCH_BLOCKS(adamw, grid, Blocks{block_at(last)}, fx.data(), fy.data(), fm.data(), fv.data(), faverage.data(), n,
                  step, far, 3);
    same("adamw, params", fx.data() + at, param.data(), here), same("adamw, m", fm.data() + at, m.data(), here);
    same("adamw, v", fv.data() + at, v.data(), here),
        same("adamw, average", faverage.data() + at, average.data(), here);
}

void check_casts_and_norm() {
    const unsigned last = (1u << 22) + 5;
    const i64 at = i64(last) * THREADS * EACH, here = THREADS * EACH - 100, n = at + here;
    const auto x = normal<float>(here + 100);
    Sparse<float> fx(n + 100), fback(n + 100);
    Sparse<bf16> fy(n + 100);
    std::vector<bf16> y(here + 100);
    put(fx.data() + at, x);
    for (i64 more : {0, 100}) { // element by element, and 16 bytes at a time
        LAUNCH(to_bf16, dim3{}, Order::Ascending, x.data(), y.data(), here + more);
        LAUNCH_BLOCKS(to_bf16, dim3{last + 1}, Blocks{block_at(last)}, fx.data(), fy.data(), n + more);
        same("to_bf16", fy.data() + at, y.data(), here + more);
        LAUNCH_BLOCKS(to_f32, dim3{last + 1}, Blocks{block_at(last)}, fy.data(), fback.data(), n + more);
        std::vector<float> back;
        for (bf16 value : y)
            back.push_back(number(value));
        same("to_f32", fback.data() + at, back.data(), here + more);
    }
    const unsigned block = (1u << 19) + 1;
    const i64 start = i64(block) * THREADS * 64, end = start + i64(x.size());
    Sparse<float> values(end);
    std::vector<double> near(1);
    Sparse<double> parts(block + 1);
    put(values.data() + start, x);
    LAUNCH(norm_squared, dim3{}, Order::Ascending, x.data(), near.data(), i64(x.size()));
    LAUNCH_BLOCKS(norm_squared, dim3{block + 1}, Blocks{block_at(block)}, values.data(), parts.data(), end);
    same("norm_squared", parts.data() + block, near.data(), 1);
}

void check_sum_runs_and_ring() {
    const int runs = 33, sample = 60000;
    const i64 stride = 80000, at = i64(sample) * runs * 2 * WIDTH;
    static_assert(i64(sample) * runs * 2 * WIDTH > BEYOND && sample * stride > BEYOND);
    const auto parts = normal<float>(runs * 2 * WIDTH);
    std::vector<float> gradient(WIDTH, 1);
    Sparse<float> fparts(at + runs * 2 * WIDTH), fgradient(sample * stride + WIDTH);
    put(fparts.data() + at, parts), put(fgradient.data() + sample * stride, gradient);
    LAUNCH(sum_runs, (dim3{COLUMNS}), Order::Ascending, parts.data(), gradient.data(), 0, runs, 1, 2, WIDTH);
    LAUNCH_BLOCKS(sum_runs, (dim3{COLUMNS, sample + 1}), columns_of(sample, 0), fparts.data(), fgradient.data(), stride,
                  runs, 1, 2, WIDTH);
    same("sum_runs", fgradient.data() + sample * stride, gradient.data(), WIDTH);

    const int d = 70, rows = THREADS / 32;
    const unsigned last = (1u << 23) + 1;
    const i64 row = i64(last) * rows, all = row + rows;
    static_assert(((i64(1) << 23) + 1) * rows * d > BEYOND);
    const auto more = normal<float>(rows * d);
    const std::vector<double> more_lse = {0, 1, 2, -3, 4, 1e4, 0.5, 7};
    auto o = normal<float>(rows * d);
    std::vector<double> lse = {1, -1, 2, 3, 4, 9999, 0.25, 8};
    Sparse<float> fo(all * d), fmore(all * d);
    Sparse<double> flse(all), fmore_lse(all);
    put(fo.data() + row * d, o), put(fmore.data() + row * d, more), put(flse.data() + row, lse),
        put(fmore_lse.data() + row, more_lse);
    LAUNCH(ring_merge, dim3{}, Order::Ascending, o.data(), lse.data(), more.data(), more_lse.data(), rows, d);
    LAUNCH_BLOCKS(ring_merge, dim3{last + 1}, Blocks{block_at(last)}, fo.data(), flse.data(), fmore.data(),
                  fmore_lse.data(), all, d);
    same("ring_merge", fo.data() + row * d, o.data(), rows * d),
        same("ring_merge, lse", flse.data() + row, lse.data(), rows);
}

template <class Unit>
void check_copy_rows(const char* name, auto function, int threads, const std::vector<Unit>& values) {
    const auto launch = [&](dim3 grid, Blocks blocks, auto... arguments) {
        emulator::launch(grid, threads, 0, Order::Ascending, [=] { function(arguments...); }, blocks);
    };
    // (2, 3, 4) rows of 3 units, whose strides are far on one side and then on the other.
    const Places far = {{3 * BEYOND + 64, BEYOND + 32, BEYOND / 4 + 16}}, near = {{36, 12, 3}};
    Sparse<Unit> spread(6 * BEYOND);
    std::vector<Unit> back(72);
    const std::vector<Unit> here(values.begin(), values.begin() + 72);
    launch({6, 1}, {}, here.data(), spread.data(), near, far, 3, 4, 3);
    for (i64 i = 0; i < 2; ++i) {
        for (i64 j = 0; j < 3; ++j) {
            for (i64 k = 0; k < 4; ++k) {
                same(name, spread.data() + i * far.s[0] + j * far.s[1] + k * far.s[2], &here[((i * 3 + j) * 4 + k) * 3],
                     3);
            }
        }
    }
    launch({6, 1}, {}, spread.data(), back.data(), far, near, 3, 4, 3);
    same(name, back.data(), here.data(), 72);
    // One long run of rows of 2^16 units, of whose pieces the grid's last block takes every 65,535th.
    const int units = 1 << 16, rows = (1 << 16) + 2;
    const i64 n = i64(rows) * units, last = n - n % (65535 * THREADS) + 65534 * THREADS;
    const i64 at = last < n ? last : last - 65535 * THREADS;
    Sparse<Unit> from(n), to(n);
    put(from.data() + at, std::vector<Unit>(values.begin(), values.begin() + THREADS));
    launch({1, 65535}, {block_at(0, 65534)}, from.data(), to.data(), Places{{0, 0, units}}, Places{{0, 0, units}}, 1,
           rows, units);
    same(name, to.data() + at, values.data(), THREADS);
}

void check_patches() {
    const unsigned local = 399'999; // a token a frame, of one patch
    const Frames frames = {nullptr, 0, 0, 64, 64, 64, 1, 64, 64};
    const int row = 3 * 64 * 64;
    static_assert(i64(local) * row > BEYOND);
    const Key key = {{1, 2, 3, 4, 5, 6, 7, 8}};
    std::vector<u8> pixels(row);
    for (int i = 0; i < row; ++i)
        pixels[i] = u8(i * 37 + i / 256);
    Sparse<u8> fpixels(i64(local + 1) * row);
    Sparse<float> fx0(i64(local + 1) * row), fnoise(i64(local + 1) * row), fx(i64(local + 1) * row);
    std::vector<float> x0(row), noise(row), x(row);
    put(fpixels.data() + i64(local) * row, pixels);
    Frames near = frames, far = frames;
    near.pixels = pixels.data(), near.first = local, far.pixels = fpixels.data();
    LAUNCH(noisy_patches, dim3{3}, Order::Ascending, near, key, local, 1, 0.6f, 0.4f, x0.data(), noise.data(),
           x.data());
    LAUNCH_BLOCKS(noisy_patches, dim3{3 * local + 3},
                  (Blocks{block_at(3 * local), block_at(3 * local + 1), block_at(3 * local + 2)}), far, key, 0,
                  local + 1, 0.6f, 0.4f, fx0.data(), fnoise.data(), fx.data());
    const i64 at = i64(local) * row;
    same("noisy_patches, x0", fx0.data() + at, x0.data(), row),
        same("noisy_patches, noise", fnoise.data() + at, noise.data(), row);
    same("noisy_patches, x", fx.data() + at, x.data(), row);
}

void check_dropout() {
    constexpr i64 block = 600'000, blocks = (WIDTH + DRAWN - 1) / DRAWN; // its whole rows are compared
    constexpr i64 first = (block * THREADS + blocks - 1) / blocks, rows = (block + 1) * THREADS / blocks - first;
    constexpr i64 at = first * WIDTH, here = rows * WIDTH;
    static_assert(at > BEYOND);
    const Key key = {{8, 7, 6, 5, 4, 3, 2, 1}};
    const auto x = normal<float>(here);
    std::vector<float> y(here);
    Sparse<float> fx(at + here), fy(at + here);
    put(fx.data() + at, x);
    LAUNCH(dropout, dim3{1}, Order::Ascending, x.data(), y.data(), key, first, rows, WIDTH, 20000, 1.5f, 0);
    LAUNCH_BLOCKS(dropout, dim3{unsigned(block) + 1}, Blocks{block_at(unsigned(block))}, fx.data(), fy.data(), key, 0,
                  first + rows, WIDTH, 20000, 1.5f, 0);
    same("dropout", fy.data() + at, y.data(), here);
}

void check_vae() {
    const unsigned block = 500000; // of pixels, and a row of scores
    const i64 pixels = i64(block) * PIXELS, at = pixels * WIDTH, here = PIXELS * WIDTH;
    static_assert(i64(500000) * PIXELS * WIDTH > BEYOND);
    const auto x = normal<float>(here), factors = normal<float>(WIDTH);
    std::vector<float> y(here);
    Sparse<float> fx(at + here), fy(at + here);
    put(fx.data() + at, x);
    LAUNCH(conv_pack_f32, dim3{}, Order::Ascending, x.data(), y.data(), factors.data(), PIXELS, WIDTH, 1);
    LAUNCH_BLOCKS(conv_pack_f32, dim3{block + 1}, Blocks{block_at(block)}, fx.data(), fy.data(), factors.data(),
                  pixels + PIXELS, WIDTH, 1);
    same("conv_pack", fy.data() + at, y.data(), here);
    LAUNCH(softmax_f32, dim3{}, Order::Ascending, x.data(), y.data(), WIDTH, 0.7f);
    LAUNCH_BLOCKS(softmax_f32, dim3{unsigned(pixels) + 1}, Blocks{block_at(unsigned(pixels))}, fx.data(), fy.data(),
                  WIDTH, 0.7f);
    same("softmax", fy.data() + at, y.data(), WIDTH);

    const int width = 2000, channels = 100, row = 30000;
    const i64 line = i64(width) * channels;
    static_assert(i64(2000) * 100 * 30000 > BEYOND);
    const Taps taps = {1, 3, 3, 0, 0, 1, width, channels, width, 904};
    const auto frame = normal<float>(3 * line);
    std::vector<float> a(THREADS), fa(THREADS);
    Sparse<float> far((row + 3) * line);
    put(far.data() + row * line, frame);
    const auto units = [](const float* x) { return reinterpret_cast<const u32*>(x); };
    const auto gather = [&](const float* x, float* a, i64 first) {
        LAUNCH(conv_gather_4, dim3{}, Order::Ascending, units(x), units(x), units(x), reinterpret_cast<u32*>(a), first,
               taps, THREADS);
    };
    gather(frame.data(), a.data(), 7), gather(far.data(), fa.data(), i64(row) * width + 7);
    same("conv_gather", fa.data(), a.data(), THREADS);
}

int main() {
    emulator::catch_faults();
    check_layer_norm(), check_rms_rope(), check_gate(), check_elementwise(), check_casts_and_norm(),
        check_sum_runs_and_ring(), check_dropout(), check_vae();
    std::vector<Sixteen> sixteens;
    std::vector<u32> fours;
    std::vector<unsigned short> twos;
    for (u32 i = 1; i <= THREADS; ++i)
        sixteens.push_back({{i, i + 1, i * 7, ~i}}), fours.push_back(i * 77777), twos.push_back(i);
    check_copy_rows("copy_rows_16", copy_rows_16, copy_rows_16_threads, sixteens);
    check_copy_rows("copy_rows_4", copy_rows_4, copy_rows_4_threads, fours);
    check_copy_rows("copy_rows_2", copy_rows_2, copy_rows_2_threads, twos);
    check_patches();
}
