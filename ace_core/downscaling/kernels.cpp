// Loops of the downscaling network on the CPU that torch has no operator for: Winograd's transforms, and group norm with SiLU.
//
// Fields are [B, Y, X, C], C a multiple of 16. Everything in the inner loop is a vector of W channels. Callers: conv.py, group_norm.py.

#include "native.h"

#include <numeric>
#include <vector>

namespace {

// ---- Winograd F(4x4, 3x3) at the points 0, a, -a, b, -b and infinity (Lavin and Gray 2016, doi:10.1109/CVPR.2016.435).

constexpr long TILE = 4, SUMS = 6;
// Between the 36 planes of all that is [36, ...]: without, sizes that are powers of two have all planes in the same few lines of the cache.
constexpr long GAP = 16;
constexpr long CACHE = 1 << 17; // numbers that half of a core's own holds
constexpr float a = 0.75f, b = 1.5f;
constexpr float a2 = a * a, b2 = b * b, P = a2 * b2, S = a2 + b2;

// Of six neighbours of a line, the six factors of the sums.
inline void data(const vec d[6], vec v[6]) {
    v[0] = P * d[0] - S * d[2] + d[4];
    vec even = d[4] - b2 * d[2], odd = a * (d[3] - b2 * d[1]);
    v[1] = even + odd;
    v[2] = even - odd;
    even = d[4] - a2 * d[2], odd = b * (d[3] - a2 * d[1]);
    v[3] = even + odd;
    v[4] = even - odd;
    v[5] = P * d[1] - S * d[3] + d[5];
}

// The transpose of data.
inline void data_of(const vec v[6], vec d[6]) {
    vec ea = v[1] + v[2], oa = a * (v[1] - v[2]), eb = v[3] + v[4], ob = b * (v[3] - v[4]);
    d[0] = P * v[0];
    d[1] = P * v[5] - b2 * oa - a2 * ob;
    d[2] = -S * v[0] - b2 * ea - a2 * eb;
    d[3] = oa + ob - S * v[5];
    d[4] = v[0] + ea + eb;
    d[5] = v[5];
}

// Of six sums, the four results of a line.
inline void results(const vec m[6], vec y[4]) {
    vec ea = m[1] + m[2], oa = a * (m[1] - m[2]), eb = m[3] + m[4], ob = b * (m[3] - m[4]);
    y[0] = m[0] + ea + eb;
    y[1] = oa + ob;
    y[2] = a2 * ea + b2 * eb;
    y[3] = a2 * oa + b2 * ob + m[5];
}

// The transpose of results.
inline void results_of(const vec y[4], vec m[6]) {
    vec ea = y[0] + a2 * y[2], oa = a * (y[1] + a2 * y[3]), eb = y[0] + b2 * y[2], ob = b * (y[1] + b2 * y[3]);
    m[0] = y[0];
    m[1] = ea + oa;
    m[2] = ea - oa;
    m[3] = eb + ob;
    m[4] = eb - ob;
    m[5] = y[3];
}

// Of a kernel's three numbers, the six factors of the sums: its polynomial at the points, over Lagrange's denominators.
inline void kernel(const vec g[3], vec u[6]) {
    u[0] = g[0] * (1.0f / P);
    vec even = (g[0] + a2 * g[2]) * (0.5f / (a2 * (a2 - b2))), odd = g[1] * (0.5f * a / (a2 * (a2 - b2)));
    u[1] = even + odd;
    u[2] = even - odd;
    even = (g[0] + b2 * g[2]) * (0.5f / (b2 * (b2 - a2))), odd = g[1] * (0.5f * b / (b2 * (b2 - a2)));
    u[3] = even + odd;
    u[4] = even - odd;
    u[5] = g[2];
}

// The transpose of kernel.
inline void kernel_of(const vec u[6], vec g[3]) {
    const vec ea = (u[1] + u[2]) * (0.5f / (a2 * (a2 - b2))), eb = (u[3] + u[4]) * (0.5f / (b2 * (b2 - a2)));
    g[0] = u[0] * (1.0f / P) + ea + eb;
    g[1] = (u[1] - u[2]) * (0.5f * a / (a2 * (a2 - b2))) + (u[3] - u[4]) * (0.5f * b / (b2 * (b2 - a2)));
    g[2] = a2 * ea + b2 * eb + u[5];
}

// out(i, j, v): of the N x N values in(i, j), M x M: by Line along the columns, then along the rows.
template <long N, long M, void (*Line)(const vec *, vec *), class In, class Out> inline __attribute__((always_inline)) void both(In in, Out out) {
    vec half[M][N];
#pragma GCC unroll 6
    for (long x = 0; x < N; x++) {
        vec line[N], turned[M];
#pragma GCC unroll 6
        for (long y = 0; y < N; y++) line[y] = in(y, x);
        Line(line, turned);
#pragma GCC unroll 6
        for (long y = 0; y < M; y++) half[y][x] = turned[y];
    }
#pragma GCC unroll 6
    for (long y = 0; y < M; y++) {
        vec turned[M];
        Line(half[y], turned);
#pragma GCC unroll 6
        for (long x = 0; x < M; x++) out(y, x, turned[x]);
    }
}

struct Fields {
    long ny, nx;       // of a field
    long rows, across; // of tiles in a field
};

// Some rows of tiles, from first to last, of some channels, width from begin on, of fields [B, Y, X, channels].
struct Part {
    const Fields &f;
    long channels, first, last, begin, width;

    long tiles() const { return (last - first) * f.across; }
    long plane() const { return tiles() * width + GAP; }
    // Of a tile's first channel in [36, tiles, width].
    long sums(long row, long t) const { return ((row - first) * f.across + t) * width; }
    const float *field(const float *x, long row) const { return x + row / f.rows * f.ny * f.nx * channels + begin; }
    float *field(float *x, long row) const { return x + row / f.rows * f.ny * f.nx * channels + begin; }
};

// Where the points of N x N of a field are that begin at (y0, x0), which may reach over its border.
template <long N> struct Window {
    long y0, x0, step, line;
    bool whole, row[N], column[N];
    Window(const Part &p, long y, long x) : y0(y), x0(x), step(p.channels), line(p.f.nx * p.channels), whole(true) {
        for (long i = 0; i < N; i++) {
            row[i] = y + i >= 0 && y + i < p.f.ny, column[i] = x + i >= 0 && x + i < p.f.nx;
            whole = whole && row[i] && column[i];
        }
    }
    long at(long i, long j) const { return (y0 + i) * line + (x0 + j) * step; }
    bool there(long i, long j) const { return row[i] && column[j]; }
};

// The five below are for all threads of a team, which have done it on return.

// body(w, row, t, c) for every tile of a part and every vector of its channels: w is the window of N x N points that begins reach before it.
template <long N, class Body> inline void each_tile(const Part &p, long reach, Body body) {
#pragma omp for schedule(static)
    for (long row = p.first; row < p.last; row++)
        for (long t = 0; t < p.f.across; t++) {
            const Window<N> w(p, row % p.f.rows * TILE - reach, t * TILE - reach);
            for (long c = 0; c < p.width; c += W) body(w, row, t, c);
        }
}

// x [B, Y, X, channels] -> v [36, tiles, width]: the sums of the part's tiles.
void tiles_of_data(const Part &p, const float *x, float *v) {
    const long plane = p.plane();
    each_tile<SUMS>(p, 1, [&](const Window<SUMS> &w, long row, long t, long c) {
        const float *from = p.field(x, row) + c;
        float *to = v + p.sums(row, t) + c;
        const auto put = [&](long i, long j, vec sum) { store(to + (i * SUMS + j) * plane, sum); };
        if (w.whole)
            both<SUMS, SUMS, data>([&](long i, long j) { return load(from + w.at(i, j)); }, put);
        else
            both<SUMS, SUMS, data>([&](long i, long j) { return w.there(i, j) ? load(from + w.at(i, j)) : vec{}; }, put);
    });
}

// The transpose of tiles_of_data: adds to x what the part's tiles have of it.
void data_of_tiles(const Part &p, float *x, const float *v) {
    const long plane = p.plane();
    const long begin = p.first / p.f.rows, end = (p.last - 1) / p.f.rows + 1;
    // Neighbouring tiles share points, so that a thread has all tiles of a field's channels.
#pragma omp for schedule(static) collapse(2)
    for (long field = begin; field < end; field++)
        for (long c = 0; c < p.width; c += W)
            for (long line = 0; line < p.f.rows * p.f.across; line++) {
                const long row = field * p.f.rows + line / p.f.across, t = line % p.f.across;
                if (row < p.first || row >= p.last) continue;
                const Window<SUMS> w(p, row % p.f.rows * TILE - 1, t * TILE - 1);
                const float *from = v + p.sums(row, t) + c;
                float *to = p.field(x, row) + c;
                both<SUMS, SUMS, data_of>([&](long i, long j) { return load(from + (i * SUMS + j) * plane); },
                                          [&](long i, long j, vec more) {
                                              float *at = to + w.at(i, j);
                                              if (w.there(i, j)) store(at, load(at) + more);
                                          });
            }
}

// m [36, tiles, width] -> y [B, Y, X, channels] + bias [channels].
void results_of_tiles(const Part &p, float *y, const float *m, const float *bias) {
    const long plane = p.plane();
    each_tile<TILE>(p, 0, [&](const Window<TILE> &w, long row, long t, long c) {
        const float *from = m + p.sums(row, t) + c;
        float *to = p.field(y, row) + c;
        const vec offset = bias ? load(bias + p.begin + c) : vec{};
        both<SUMS, TILE, results>([&](long i, long j) { return load(from + (i * SUMS + j) * plane); },
                                  [&](long i, long j, vec result) {
                                      if (w.there(i, j)) store(to + w.at(i, j), result + offset);
                                  });
    });
}

// The transpose of results_of_tiles: y [B, Y, X, channels] -> m [36, tiles, width].
void tiles_of_results(const Part &p, const float *y, float *m) {
    const long plane = p.plane();
    each_tile<TILE>(p, 0, [&](const Window<TILE> &w, long row, long t, long c) {
        const float *from = p.field(y, row) + c;
        float *to = m + p.sums(row, t) + c;
        both<TILE, SUMS, results_of>([&](long i, long j) { return w.there(i, j) ? load(from + w.at(i, j)) : vec{}; },
                                     [&](long i, long j, vec sum) { store(to + (i * SUMS + j) * plane, sum); });
    });
}

// For every one of the 36, c [m, n] = or += a b, by all threads of a team; b: from plane to plane and from row to row.
void products(const float *a, const float *b, long plane, long rb, float *c, long m, long n, long k, long ra, long ka, bool add) {
    const long panels = (n + COLUMNS - 1) / COLUMNS;
#pragma omp for schedule(static) collapse(2)
    for (long p = 0; p < SUMS * SUMS; p++)
        for (long j = 0; j < panels; j++) {
            const long at = j * COLUMNS;
            panel(a + p * (m * k + GAP), b + p * plane + at, m, at + COLUMNS <= n, k, ra, ka, rb, n, {c + p * (m * n + GAP) + at, add});
        }
}

struct Sizes {
    long b, c, o;
    Fields f;
    long rows, step; // of tiles: all, and of a part
    bool one;        // part has them all
    // B, Y, X, C, O
    explicit Sizes(const long *s) : b(s[0]), c(s[3]), o(s[4]), f{s[1], s[2], (s[1] + TILE - 1) / TILE, (s[2] + TILE - 1) / TILE} {
        rows = b * f.rows;
        // A part's sums stay in the cache, unless they are less than the kernels, which every part reads and whose gradient it adds to.
        const long tiles = std::max(CACHE / (SUMS * SUMS * (c + o)), 2 * c * o / (c + o));
        const long parts = std::max(1l, (rows * f.across + tiles - 1) / tiles); // also of no fields
        step = std::max(1l, (rows + parts - 1) / parts);
        one = step >= rows;
    }
    // Of so many channels as many at a time as the cache holds the kernels of; with several parts all, so that they are made once.
    long width(long channels) const { return one ? std::min(channels, COLUMNS) : channels; }
    long sums(long channels) const { return SUMS * SUMS * (step * f.across * channels + GAP); }
};

// Some kernels of w [O, C, 3, 3]: of all C, and of width O from begin on; if turned, the other way round.
struct Kernels {
    long rows, lanes, begin, row, lane, size; // how many, the first lane, from one to the next in w, all its numbers
    Kernels(long o, long c, bool turned, long first, long width)
        : rows(turned ? o : c), lanes(width), begin(first), row(turned ? 9 * c : 9), lane(turned ? 9 : 9 * c), size(9 * o * c) {}
    long plane() const { return rows * lanes + GAP; }
    long at(long r, long l) const { return r * row + (begin + l) * lane; }

    // The nine numbers of W kernels as nine vectors, and back.
    void read(const float *w, long r, long c, vec line[W < 9 ? 9 : W]) const {
        if constexpr (W < 9) {
            for (long l = 0; l < W; l++)
                for (long i = 0; i < 9; i++) line[i][l] = w[at(r, c + l) + i];
        } else {
            const float *end = w + size;
            for (long l = 0; l < W; l++) {
                const float *from = w + at(r, c + l);
                if (from + W <= end)
                    line[l] = load(from);
                else
                    std::memcpy(&line[l], from, 9 * sizeof(float));
            }
            transpose(line);
        }
    }
    void write(float *w, long r, long c, vec line[W < 9 ? 9 : W]) const {
        if constexpr (W < 9) {
            for (long l = 0; l < W; l++)
                for (long i = 0; i < 9; i++) w[at(r, c + l) + i] = line[i][l];
        } else {
            transpose(line);
            for (long l = 0; l < W; l++) std::memcpy(w + at(r, c + l), &line[l], 9 * sizeof(float));
        }
    }
};

// The two below, too, are for all threads of a team.

// Kernels of w times gain -> those of the sums, u [36, rows, lanes].
void kernels_of_sums(const Kernels &k, const float *w, float *u, float gain) {
#pragma omp for schedule(static)
    for (long r = 0; r < k.rows; r++)
        for (long c = 0; c < k.lanes; c += W) {
            vec line[W < 9 ? 9 : W];
            k.read(w, r, c, line);
            both<3, SUMS, kernel>([&](long i, long j) { return gain * line[i * 3 + j]; },
                                  [&](long i, long j, vec v) { store(u + (i * SUMS + j) * k.plane() + r * k.lanes + c, v); });
        }
}

// The transpose of kernels_of_sums.
void sums_of_kernels(const Kernels &k, float *w, const float *u, float gain) {
#pragma omp for schedule(static)
    for (long r = 0; r < k.rows; r++)
        for (long c = 0; c < k.lanes; c += W) {
            vec line[W < 9 ? 9 : W]{};
            both<SUMS, 3, kernel_of>([&](long i, long j) { return load(u + (i * SUMS + j) * k.plane() + r * k.lanes + c); },
                                     [&](long i, long j, vec g) { line[i * 3 + j] = gain * g; });
            k.write(w, r, c, line);
        }
}

} // namespace

extern "C" {

// Numbers that the kernels of the sums need: of C channels in and O out.
long size_of_kernels(long c, long o) { return SUMS * SUMS * (c * o + GAP); }

void pack(const float *w, float *u, const long *shape, float gain, long threads) {
    const Kernels k(shape[0], shape[1], false, 0, shape[0]);
#pragma omp parallel num_threads(threads) if (threads > 1)
    kernels_of_sums(k, w, u, gain);
}

// y [B, Y, X, O] = gain x * w + bias: x [B, Y, X, C], w [O, C, 3, 3]; packed: null, or w and gain as pack leaves them.
void convolve(const float *x, const float *w, const float *packed, const float *bias, float *y, const long *shape, float gain, long threads) {
    const Sizes s(shape);
    const long width = s.width(s.o);
    float *v = room(0, s.sums(s.c)), *m = room(1, s.sums(width)), *u = packed ? nullptr : room(2, size_of_kernels(s.c, width));
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (long begin = 0; begin < s.o; begin += width) {
        const long n = std::min(width, s.o - begin);
        const Kernels k(s.o, s.c, false, begin, n);
        if (u) kernels_of_sums(k, w, u, gain);
        const float *factors = packed ? packed + begin : u;
        const long plane = packed ? s.c * s.o + GAP : k.plane(), row = packed ? s.o : n;
        for (long first = 0; first < s.rows; first += s.step) {
            const long last = std::min(first + s.step, s.rows);
            const Part in{s.f, s.c, first, last, 0, s.c}, out{s.f, s.o, first, last, begin, n};
            if (begin == 0) tiles_of_data(in, x, v);
            products(v, factors, plane, row, m, in.tiles(), n, s.c, s.c, 1, false);
            results_of_tiles(out, y, m, bias);
        }
    }
}

// The gradients of convolve from dy, that of y: dx [B, Y, X, C] and dw [O, C, 3, 3], either perhaps null.
void convolve_backward(const float *x, const float *dy, const float *w, float *dx, float *dw, const long *shape, float gain, long threads) {
    const Sizes s(shape);
    const long wide_o = s.width(s.o), wide_c = s.width(s.c), line = s.f.nx * s.c;
    const long of_u = size_of_kernels(wide_c, s.o), of_du = size_of_kernels(s.c, wide_o);
    float *v = room(0, s.sums(s.c)), *m = room(1, s.sums(s.o)), *u = room(2, of_u + of_du), *du = u + of_u;
    if (dw && !s.rows) std::fill_n(dw, 9 * s.c * s.o, 0.0f);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        if (dx) {
#pragma omp for schedule(static)
            for (long i = 0; i < s.b * s.f.ny; i++) std::fill_n(dx + i * line, line, 0.0f);
        }
        for (long first = 0; first < s.rows; first += s.step) {
            const long last = std::min(first + s.step, s.rows);
            const Part in{s.f, s.c, first, last, 0, s.c}, out{s.f, s.o, first, last, 0, s.o};
            tiles_of_results(out, dy, m);
            if (dw) tiles_of_data(in, x, v);
            for (long begin = 0; dw && begin < s.o; begin += wide_o) {
                const Kernels k(s.o, s.c, false, begin, std::min(wide_o, s.o - begin));
                products(v, m + begin, out.plane(), s.o, du, s.c, k.lanes, in.tiles(), 1, s.c, first > 0);
                if (last == s.rows) sums_of_kernels(k, dw, du, gain);
            }
            for (long begin = 0; dx && begin < s.c; begin += wide_c) {
                const Kernels k(s.o, s.c, true, begin, std::min(wide_c, s.c - begin));
                if (first == 0) kernels_of_sums(k, w, u, gain);
                products(m, u, k.plane(), k.lanes, v, in.tiles(), k.lanes, s.o, s.o, 1, false);
                data_of_tiles({s.f, s.c, first, last, begin, k.lanes}, dx, v);
            }
        }
    }
}

} // extern "C"

// ---- Group norm and SiLU.

namespace {

// Sums of many numbers: a block in float, the blocks in double.
constexpr long BLOCK = 64;

struct Norm {
    long fields, n, c, width; // of a group
    long block, blocks;       // channels that a thread has of a field
    Norm(const long *s, long threads) : fields(s[0]), n(s[1]), c(s[2]), width(c / s[3]), block(c), blocks(1) {
        if (fields < threads) block = std::lcm(W, width), blocks = c / block;
        if (c % block) block = c, blocks = 1;
    }
};

} // namespace

extern "C" {

// y = keep SiLU(x scale + offset), x [B, N, C], with the scale and the offset that make a group of x + shift of mean 0 and variance 1,
// then weight and bias. shift: null, or [B, C]. keep: null, or 0 and 1, a field's flags every kept numbers. saved [B, 4, C]: mean of x,
// scale, centre (x + centre is of mean 0), 1 / deviation.
void norm_silu(const float *x, const float *shift, const float *weight, const float *bias, const uint8_t *keep, float *y, float *saved,
               const long *shape, long kept, float eps, long threads) {
    const Norm s(shape, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long task = 0; task < s.fields * s.blocks; task++) {
        const long i = task / s.blocks, c0 = task % s.blocks * s.block, c1 = c0 + s.block;
        const float *in = x + i * s.n * s.c;
        float *mean = saved + 4 * i * s.c, *scale = mean + s.c, *centre = scale + s.c, *inverse = centre + s.c;
        std::vector<double> sum(2 * s.c, 0.0);
        // From the first point, so that a large mean does not take the digits of the squares.
        for (long begin = 0; begin < s.n; begin += BLOCK) {
            const long end = std::min(begin + BLOCK, s.n);
            for (long c = c0; c < c1; c += W) {
                const vec origin = load(in + c);
                vec one{}, two{};
                for (long p = begin; p < end; p++) {
                    const vec v = load(in + p * s.c + c) - origin;
                    one += v;
                    two += v * v;
                }
                for (long k = 0; k < W; k++) sum[c + k] += one[k], sum[s.c + c + k] += two[k];
            }
        }
        for (long first = c0; first < c1; first += s.width) {
            double of_group = 0.0, square = 0.0;
            const long last = first + s.width;
            for (long c = first; c < last; c++) {
                sum[c] /= s.n;
                sum[s.c + c] = std::max(0.0, sum[s.c + c] / s.n - sum[c] * sum[c]);
                mean[c] = float(sum[c] += in[c]);
                of_group += sum[c] + (shift ? shift[i * s.c + c] : 0.0f);
            }
            of_group /= s.width;
            for (long c = first; c < last; c++) {
                const double off = sum[c] + (shift ? shift[i * s.c + c] : 0.0f) - of_group;
                square += sum[s.c + c] + off * off;
            }
            const double deviation = 1.0 / std::sqrt(square / s.width + eps);
            for (long c = first; c < last; c++) {
                inverse[c] = float(deviation);
                scale[c] = float(deviation * weight[c]);
                centre[c] = float((shift ? shift[i * s.c + c] : 0.0f) - of_group);
            }
        }
        for (long p = 0; p < s.n; p++) {
            const long at = (i * s.n + p) * s.c;
            for (long c = c0; c < c1; c += W) {
                const vec z = (load(x + at + c) + load(centre + c)) * load(scale + c) + load(bias + c);
                const vec out = z * sigmoid(z);
                store(y + at + c, keep ? out * load(keep + i * kept + p * s.c + c) : out);
            }
        }
    }
}

// The gradients of norm_silu: of x (dx), and per field and channel [B, C] of shift, weight and bias.
void norm_silu_backward(const float *x, const float *grad, const float *weight, const float *bias, const uint8_t *keep,
                        const float *saved, float *dx, float *dshift, float *dweight, float *dbias, const long *shape, long kept,
                        long threads) {
    const Norm s(shape, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long task = 0; task < s.fields * s.blocks; task++) {
        const long i = task / s.blocks, c0 = task % s.blocks * s.block, c1 = c0 + s.block;
        const float *mean = saved + 4 * i * s.c, *scale = mean + s.c, *centre = scale + s.c, *inverse = centre + s.c;
        const float *in = x + i * s.n * s.c, *g = grad + i * s.n * s.c;
        const uint8_t *k = keep ? keep + i * kept : nullptr;
        float *out = dx + i * s.n * s.c;
        std::vector<double> sum(2 * s.c, 0.0);
        for (long begin = 0; begin < s.n; begin += BLOCK) {
            const long end = std::min(begin + BLOCK, s.n);
            for (long c = c0; c < c1; c += W) {
                const vec middle = load(centre + c), factor = load(scale + c), offset = load(bias + c);
                vec one{}, two{};
                for (long p = begin; p < end; p++) {
                    const long at = p * s.c + c;
                    const vec h = load(in + at) + middle;
                    const vec z = h * factor + offset;
                    const vec part = sigmoid(z);
                    vec dz = load(g + at) * part * (1.0f + z * (1.0f - part));
                    if (k) dz *= load(k + at);
                    store(out + at, dz);
                    one += dz;
                    two += dz * h;
                }
                for (long j = 0; j < W; j++) sum[c + j] += one[j], sum[s.c + c + j] += two[j];
            }
        }
        // Of a group, per value: what the gradient has of a constant and of the normalised field, which the norm takes out.
        std::vector<float> slope(s.c), constant(s.c);
        for (long first = c0; first < c1; first += s.width) {
            double flat = 0.0, along = 0.0;
            const long last = first + s.width;
            for (long c = first; c < last; c++) {
                flat += weight[c] * sum[c];
                along += weight[c] * sum[s.c + c] * inverse[c];
            }
            const double values = double(s.n) * s.width;
            for (long c = first; c < last; c++) {
                const double r = inverse[c];
                const double sl = -r * r * along / values, co = -r * flat / values;
                slope[c] = float(sl), constant[c] = float(co);
                const long at = i * s.c + c;
                if (dshift) dshift[at] = float(sum[c] * scale[c] + s.n * (co + sl * (double(mean[c]) + centre[c])));
                dweight[at] = float(sum[s.c + c] * r);
                dbias[at] = float(sum[c]);
            }
        }
        for (long p = 0; p < s.n; p++)
            for (long c = c0; c < c1; c += W) {
                const long at = p * s.c + c;
                const vec h = load(in + at) + load(centre + c);
                store(out + at, load(out + at) * load(scale + c) + h * load(&slope[c]) + load(&constant[c]));
            }
    }
}

} // extern "C"
