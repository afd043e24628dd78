// Loops of the spherical-harmonic transform on the CPU: both sums of a panel of channels at a time, what lies between them in the cache.
//
// Fields are [B, Y, X, C], coefficients [L, M, B, R, C], tables [M, L, Y], C a multiple of 16: harmonics.py, which calls them.
//
// A row and its mirror are the real and the imaginary part of one complex row: one FFT has the waves of both, as sums and differences of
// the orders m and -m. What is the same in north and south has half the degrees of an order, what is opposite the others: so Legendre's
// sums are over half the rows. All numbers are vectors of channels, which no FFT shuffles.

#include "native.h"

#include <vector>

namespace {

// ---- FFT of vectors: Stockham's, in passes of a few radices, the order of points natural before and after.

struct Complex {
    vec r, i;
};
inline Complex operator+(Complex a, Complex b) { return {a.r + b.r, a.i + b.i}; }
inline Complex operator-(Complex a, Complex b) { return {a.r - b.r, a.i - b.i}; }
inline Complex operator*(float a, Complex b) { return {a * b.r, a * b.i}; }
// Times -i, and times c - i s.
inline Complex turned(Complex a) { return {a.i, -a.r}; }
inline Complex turned(Complex a, float c, float s) { return {a.r * c + a.i * s, a.i * c - a.r * s}; }

// z <- its discrete Fourier transform, sum over n of z[n] exp(-2 pi i k n / N).
template <int N> inline __attribute__((always_inline)) void dft(Complex z[N]) {
    if constexpr (N == 2) {
        const Complex a = z[0], b = z[1];
        z[0] = a + b;
        z[1] = a - b;
    } else if constexpr (N == 3) {
        const Complex s = z[1] + z[2], t = z[0] - 0.5f * s, u = turned(0.866025404f * (z[1] - z[2]));
        z[0] = z[0] + s;
        z[1] = t + u;
        z[2] = t - u;
    } else if constexpr (N == 4) {
        const Complex a = z[0] + z[2], b = z[0] - z[2], c = z[1] + z[3], d = turned(z[1] - z[3]);
        z[0] = a + c;
        z[1] = b + d;
        z[2] = a - c;
        z[3] = b - d;
    } else if constexpr (N == 5) {
        constexpr float c = 0.309016994f, c2 = -0.809016994f, s = 0.951056516f, s2 = 0.587785252f; // of a fifth and of two
        const Complex a = z[1] + z[4], b = z[2] + z[3], d = z[1] - z[4], e = z[2] - z[3];
        const Complex t = z[0] + c * a + c2 * b, u = turned(s * d + s2 * e);
        const Complex t2 = z[0] + c2 * a + c * b, u2 = turned(s2 * d - s * e);
        z[0] = z[0] + a + b;
        z[1] = t + u;
        z[2] = t2 + u2;
        z[3] = t2 - u2;
        z[4] = t - u;
    } else if constexpr (N == 6 || N == 10) { // coprime factors need no turns between them
        constexpr int Q = N / 2;
        Complex y[2][Q];
        for (int n = 0; n < Q; n++) {
            const Complex a = z[2 * n], b = z[(Q + 2 * n) % N];
            y[0][n] = a + b;
            y[1][n] = a - b;
        }
        dft<Q>(y[0]);
        dft<Q>(y[1]);
        for (int n = 0; n < Q; n++) {
            z[(Q + 1) * n % N] = y[0][n];
            z[(Q + (Q + 1) * n) % N] = y[1][n];
        }
    } else if constexpr (N == 8) {
        constexpr float half = 0.707106781f; // its root
        Complex even[4], odd[4];
        for (int n = 0; n < 4; n++) {
            even[n] = z[n] + z[n + 4];
            odd[n] = z[n] - z[n + 4];
        }
        odd[1] = half * (odd[1] + turned(odd[1]));
        odd[2] = turned(odd[2]);
        odd[3] = half * (turned(odd[3]) - odd[3]);
        dft<4>(even);
        dft<4>(odd);
        for (int k = 0; k < 4; k++) {
            z[2 * k] = even[k];
            z[2 * k + 1] = odd[k];
        }
    } else {
        static_assert(N == 9);
        Complex y[3][3]; // of the outer transforms
        for (int n = 0; n < 3; n++) {
            Complex own[3] = {z[n], z[n + 3], z[n + 6]};
            dft<3>(own);
            for (int k = 0; k < 3; k++) y[k][n] = own[k];
        }
        y[1][1] = turned(y[1][1], 0.766044443f, 0.642787610f);
        y[1][2] = turned(y[1][2], 0.173648178f, 0.984807753f);
        y[2][1] = turned(y[2][1], 0.173648178f, 0.984807753f);
        y[2][2] = turned(y[2][2], -0.939692621f, 0.342020143f);
        for (int k = 0; k < 3; k++) {
            dft<3>(y[k]);
            for (int n = 0; n < 3; n++) z[k + 3 * n] = y[k][n];
        }
    }
}

// Radices whose product is n, and cosine and sine of all n-ths of a circle; no radices if n has other prime factors or is a radix itself.
struct Circle {
    long n = 0;
    std::vector<int> radices;
    std::vector<float> turns;

    static std::vector<int> factors(long n) {
        std::vector<int> out;
        for (int r : {10, 9, 8, 6, 5, 4, 3, 2})
            for (; n % r == 0; n /= r) out.push_back(r);
        return n == 1 && out.size() > 1 ? out : std::vector<int>{};
    }
    static const Circle &of(long n) {
        static thread_local Circle known;
        if (known.n != n) {
            known.n = n;
            known.radices = factors(n);
            known.turns.resize(2 * n);
            for (long i = 0; i < n; i++) {
                const double angle = 6.283185307179586477 * double(i) / double(n);
                known.turns[2 * i] = float(std::cos(angle)), known.turns[2 * i + 1] = float(std::sin(angle));
            }
        }
        return known;
    }
};

// A pass: in(i) -> z, out(i, z). done: product of the radices of the passes before.
template <int R, class In, class Out> inline void pass(const Circle &c, long done, In in, Out out) {
    const long parts = c.n / done / R, step = done * parts;
    for (long p = 0; p < parts; p++) {
        float w[2 * R];
        for (int j = 1; j < R; j++) w[2 * j] = c.turns[2 * j * p * done], w[2 * j + 1] = c.turns[2 * j * p * done + 1];
        for (long q = 0; q < done; q++) {
            Complex z[R];
#pragma GCC unroll 10
            for (int k = 0; k < R; k++) z[k] = in(q + p * done + k * step);
            dft<R>(z);
            out(q + R * p * done, z[0]);
#pragma GCC unroll 10
            for (int j = 1; j < R; j++) out(q + (R * p + j) * done, parts == 1 ? z[j] : turned(z[j], w[2 * j], w[2 * j + 1]));
        }
    }
}

template <class In, class Out> inline void pass(int radix, const Circle &c, long done, In in, Out out) {
    switch (radix) {
    case 2: return pass<2>(c, done, in, out);
    case 3: return pass<3>(c, done, in, out);
    case 4: return pass<4>(c, done, in, out);
    case 5: return pass<5>(c, done, in, out);
    case 6: return pass<6>(c, done, in, out);
    case 8: return pass<8>(c, done, in, out);
    case 9: return pass<9>(c, done, in, out);
    case 10: return pass<10>(c, done, in, out);
    }
}

// in(i) -> z for all points, then out(i, z) for all; between them in memory of 4 n vectors.
template <class In, class Out> inline void fft(const Circle &c, float *memory, In in, Out out) {
    long done = 1;
    for (size_t k = 0; k < c.radices.size(); k++) {
        const float *from = memory + k % 2 * 2 * c.n * W;
        float *to = memory + (k + 1) % 2 * 2 * c.n * W;
        const auto get = [from](long i) { return Complex{load(from + 2 * i * W), load(from + 2 * i * W + W)}; };
        const auto put = [to](long i, Complex z) {
            store(to + 2 * i * W, z.r);
            store(to + 2 * i * W + W, z.i);
        };
        const int radix = c.radices[k];
        if (k == 0)
            pass(radix, c, done, in, put);
        else if (k + 1 < c.radices.size())
            pass(radix, c, done, get, put);
        else
            pass(radix, c, done, get, out);
        done *= radix;
    }
}

// ---- Both transforms.

struct Grid {
    long b, ny, nx, c, lmax, mmax, block;
    int parity;   // as in Operands, -1 for None
    long orders;  // that have degrees
    long rows[2]; // of what is the same and what is opposite in north and south; without parity all rows and none
    long panels;  // of a sample
    Grid(const long *s, long of_block, long of_parity)
        : b(s[0]), ny(s[1]), nx(s[2]), c(s[3]), lmax(s[4]), mmax(s[5]), block(of_block), parity(int(of_parity)),
          orders(std::min(lmax, mmax)), rows{parity < 0 ? ny : (ny + 1) / 2, parity < 0 ? 0 : ny / 2},
          panels((c + COLUMNS - 1) / COLUMNS) {}
    // Of a part's degrees of an order: the first, from one to the next, and how many.
    long first(long m, int part) const { return parity < 0 ? m : m + ((part + parity) & 1); }
    long step() const { return parity < 0 ? 1 : 2; }
    const float *table(const float *legendre, long m, int part) const { return legendre + (m * lmax + first(m, part)) * ny; }
    long degrees(long m, int part) const { return std::max(0l, (lmax - first(m, part) + step() - 1) / step()); }
};

// One sample's panel of channels: begin is its first channel in all, w how many it has.
struct Panel {
    const Grid &g;
    long sample, begin, w;
    bool wide;
    Panel(const Grid &grid, long task)
        : g(grid), sample(task / g.panels), begin(task % g.panels * COLUMNS), w(std::min(COLUMNS, g.c - begin)), wide(w == COLUMNS) {}

    // Of waves [M, part, R, Y', w]; with a row between them orders are at no power of two from each other, in other lines of the cache.
    long order() const { return (2 * g.ny + 1) * w; }
    long wave(long m, int part, int r, long y) const { return m * order() + (part * 2 * g.rows[0] + r * g.rows[part] + y) * w; }
    long waves() const { return g.orders * order(); }
    long row(long y) const { return (sample * g.ny + y) * g.nx * g.c + begin; }
    long coefficient(long l, long m, int r) const { return (((l * g.mmax + m) * g.b + sample) * 2 + r) * g.c + begin; }
    long degree() const { return g.mmax * g.b * 2 * g.c; }
};

// A row and its mirror, if it has one, for a vector of channels, with where their waves lie.
struct Rows {
    const Grid &g;
    long north, south;
    bool two;
    long sums[2], others[2]; // of order 0, of both parts R; without parity of either row
    Rows(const Panel &p, long y, long v) : g(p.g), north(p.row(y) + v), south(p.row(g.ny - 1 - y) + v), two(y != g.ny - 1 - y) {
        for (int r = 0; r < 2; r++) {
            sums[r] = p.wave(0, 0, r, y) + v;
            others[r] = (g.parity < 0 ? p.wave(0, 0, r, g.ny - 1 - y) : p.wave(0, 1, r, y)) + v;
        }
    }
};

// What is done to a field as it is read: channel by channel of a sample, [B, C].
struct Scaled {
    const float *scale, *shift;
};

// z: room for X complex numbers, memory: for twice as many.
template <bool SCALED> void fourier(const Panel &p, const float *x, Scaled by, float *waves, float *z, float *memory) {
    const Grid &g = p.g;
    const Circle &c = Circle::of(g.nx);
    const long next = g.nx * g.c;
    for (long y = 0; 2 * y < g.ny; y++)
        for (long v = 0; v < p.w; v += W) {
            const Rows rows(p, y, v);
            vec scale{}, shift{};
            if (SCALED) scale = load(by.scale + p.sample * g.c + p.begin + v), shift = load(by.shift + p.sample * g.c + p.begin + v);
            const auto scaled = [=](vec a) { return SCALED ? a * scale + shift : a; };
            const auto in = [=, north = x + rows.north, south = x + rows.south, step = g.c, two = rows.two](long i) {
                __builtin_prefetch(north + i * step + next, 0, 2);
                __builtin_prefetch(south + i * step - next, 0, 2);
                return Complex{scaled(load(north + i * step)), two ? scaled(load(south + i * step)) : vec{}};
            };
            fft(c, memory, in, [z](long i, Complex a) {
                store(z + 2 * i * W, a.r);
                store(z + 2 * i * W + W, a.i);
            });
            for (long m = 0; m < g.orders; m++) {
                const float *of = z + 2 * m * W, *opposite = z + 2 * (m ? g.nx - m : 0) * W;
                const Complex a{load(of), load(of + W)}, b{load(opposite), load(opposite + W)};
                const Complex n = 0.5f * Complex{a.r + b.r, a.i - b.i}, s = 0.5f * Complex{a.i + b.i, b.r - a.r};
                const Complex one = g.parity < 0 ? n : n + s, two = g.parity < 0 ? s : n - s;
                float *to = waves + m * p.order();
                store(to + rows.sums[0], one.r);
                store(to + rows.sums[1], one.i);
                if (rows.two) {
                    store(to + rows.others[0], two.r);
                    store(to + rows.others[1], two.i);
                }
            }
        }
}

void inverse_fourier(const Panel &p, float *x, const float *waves, float *z, float *memory) {
    const Grid &g = p.g;
    const Circle &c = Circle::of(g.nx);
    const long next = g.nx * g.c;
    std::fill_n(z, 2 * g.nx * W, 0.0f); // orders that are not there
    for (long y = 0; 2 * y < g.ny; y++)
        for (long v = 0; v < p.w; v += W) {
            const Rows rows(p, y, v);
            for (long m = 0; m < g.orders; m++) {
                const float *from = waves + m * p.order();
                const Complex one{load(from + rows.sums[0]), load(from + rows.sums[1])};
                Complex two{};
                if (rows.two) two = {load(from + rows.others[0]), load(from + rows.others[1])};
                const Complex n = g.parity < 0 ? one : one + two, s = g.parity < 0 ? two : one - two;
                // The inverse is the transform with both parts exchanged, before and after.
                float *to = z + 2 * m * W, *opposite = z + 2 * (g.nx - m) * W;
                if (m == 0 || 2 * m == g.nx) {
                    store(to, s.r);
                    store(to + W, n.r);
                    continue;
                }
                store(to, 0.5f * (s.r + n.i));
                store(to + W, 0.5f * (n.r - s.i));
                store(opposite, 0.5f * (s.r - n.i));
                store(opposite + W, 0.5f * (n.r + s.i));
            }
            float *north = x + rows.north, *south = x + rows.south;
            fft(
                c, memory, [z](long i) { return Complex{load(z + 2 * i * W), load(z + 2 * i * W + W)}; },
                [north, south, next, step = g.c, two = rows.two](long i, Complex a) {
                    __builtin_prefetch(north + i * step + next, 1, 2);
                    __builtin_prefetch(south + i * step - next, 1, 2);
                    store(north + i * step, a.i);
                    if (two) store(south + i * step, a.r);
                });
        }
}

// Of all rows of a product of one order and part as many as a tile has: body(first, rows, r, ahead), while the next product's table comes,
// a line of all its rows with every tile.
template <class Body> inline void each_tile(const Panel &p, const float *legendre, long m, int part, long all, Body body) {
    const Grid &g = p.g;
    const int then = part == 0 && g.rows[1] > 0;
    const long after = then ? m : std::min(m + 1, g.orders - 1);
    Ahead next{g.table(legendre, after, then), 4 * g.step() * g.ny};
    const char *end = static_cast<const char *>(next.begin) + 4 * g.rows[then];
    const long tiles = (all + ROWS - 1) / ROWS;
    for (long t = 0; t < tiles; t++)
        for (int r = 0; r < 2; r++) {
            const long first = all * t / tiles;
            body(first, all * (t + 1) / tiles - first, r, next);
            next.begin = static_cast<const char *>(next.begin) + 64;
            if (next.begin >= end) next = {};
        }
}

// Waves -> coefficients; zeros beside them, of the block or of all orders.
void legendre_sums(const Panel &p, float *out, const float *legendre, const float *waves, bool zero) {
    const Grid &g = p.g;
    const long step = g.step(), row = step * p.degree();
    for (long m = 0; m < g.orders; m++)
        for (int part = 0; part < 2; part++) {
            const long n = g.degrees(m, part), k = g.rows[part];
            if (k == 0) continue;
            each_tile(p, legendre, m, part, n, [&](long first, long rows, int r, Ahead next) {
                float *to = out + p.coefficient(g.first(m, part) + first * step, m, r), *then = to + rows * row;
                panel(g.table(legendre, m, part) + first * step * g.ny, waves + p.wave(m, part, r, 0), rows, p.wide, k, step * g.ny, 1, p.w,
                      row, {to, false}, next);
                // Degrees lie far from each other.
                for (long i = 0; i < rows && first + rows < n; i++, then += row)
                    for (long v = 0; v < p.w; v += W) __builtin_prefetch(then + v, 1, 2);
            });
        }
    for (long l = 0; l < g.lmax; l++) {
        const long end = zero ? g.mmax : std::min(g.mmax, (l / g.block + 1) * g.block);
        for (long m = l + 1; m < end; m++)
            for (int r = 0; r < 2; r++) std::fill_n(out + p.coefficient(l, m, r), p.w, 0.0f);
    }
}

void inverse_legendre_sums(const Panel &p, const float *coefficients, const float *legendre, float *waves, float *columns) {
    const Grid &g = p.g;
    for (long m = 0; m < g.orders; m++)
        for (int part = 0; part < 2; part++) {
            const long n = g.degrees(m, part), row = g.step() * p.degree();
            // Degrees lie far from each other: each is read once, and asked for an order before.
            for (int r = 0; r < 2; r++) {
                const float *from = coefficients + p.coefficient(g.first(m, part), m, r);
                for (long i = 0; i < n; i++, from += row)
                    for (long v = 0; v < p.w; v += W) {
                        __builtin_prefetch(from + 2 * g.b * g.c + v, 0, 2);
                        store(columns + (r * n + i) * p.w + v, load(from + v));
                    }
            }
            each_tile(p, legendre, m, part, g.rows[part], [&](long first, long rows, int r, Ahead next) {
                panel(g.table(legendre, m, part) + first, columns + r * n * p.w, rows, p.wide, n, 1, g.step() * g.ny, p.w, p.w,
                      {waves + p.wave(m, part, r, first), false}, next);
            });
        }
}

} // namespace

extern "C" {

// Whether there is an FFT of n points.
long have_fft(long n) { return !Circle::factors(n).empty(); }

// scale x + shift, or x alone if these are null, [B, C]; x [B, Y, X, C] -> coefficients [L, M, B, R, C], for m > l zeros: in blocks() or
// everywhere (zero).
// shape: B, Y, X, C, L, M. block: how many degrees the first of blocks() has.
void analysis(const float *x, const float *scale, const float *shift, float *out, const float *legendre, const long *shape, long block, long parity,
              long zero, long threads) {
    const Grid g(shape, block, parity);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long task = 0; task < g.b * g.panels; task++) {
        const Panel p(g, task);
        float *waves = room(0, p.waves()), *z = room(1, 6 * g.nx * W);
        (scale ? fourier<true> : fourier<false>)(p, x, {scale, shift}, waves, z, z + 2 * g.nx * W);
        legendre_sums(p, out, legendre, waves, zero);
    }
}

// coefficients [L, M, B, R, C] -> x [B, Y, X, C]. Reads l >= m only.
void synthesis(const float *coefficients, float *x, const float *legendre, const long *shape, long block, long parity, long threads) {
    const Grid g(shape, block, parity);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long task = 0; task < g.b * g.panels; task++) {
        const Panel p(g, task);
        float *waves = room(0, p.waves()), *z = room(1, std::max(6 * g.nx * W, 2 * g.lmax * p.w));
        inverse_legendre_sums(p, coefficients, legendre, waves, z);
        inverse_fourier(p, x, waves, z, z + 2 * g.nx * W);
    }
}

} // extern "C"
