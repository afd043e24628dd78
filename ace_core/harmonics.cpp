// Loops of the spherical-harmonic transform on the CPU: both sums of a panel of channels at a time, what lies between them in the cache.
//
// Fields are [B, Y, X, C], coefficients [L, M, B, R, C], tables [M, L, Y] and rows (m, R) over X / 2 points: harmonics.py, which calls them.
//
// Fourier sums: with h = X / 2 and j in 1..h-1, the points j, h - j, h + j and X - j have the same cosine and sine but for signs that are
// those of even or of odd orders. So four sums and differences of four points, and then four products over a quarter of the circle.

#include "native.h"

namespace {

enum { EVEN_COS, EVEN_SIN, ODD_COS, ODD_SIN, SUMS };

struct Grid {
    long b, ny, nx, c, lmax, mmax, block;
    int parity;      // as in Operands, -1 for None
    long h, k;       // points of half a circle, and of a quarter with both ends
    long orders;     // that have degrees
    long rows[2];    // of what is the same and what is opposite in north and south; without parity all rows and none
    long panels;     // of a sample
    Grid(const long *s, long of_block, long of_parity)
        : b(s[0]), ny(s[1]), nx(s[2]), c(s[3]), lmax(s[4]), mmax(s[5]), block(of_block), parity(int(of_parity)), h(nx / 2), k(h / 2 + 1),
          orders(std::min(lmax, mmax)), rows{parity < 0 ? ny : (ny + 1) / 2, parity < 0 ? 0 : ny / 2}, panels((c + COLUMNS - 1) / COLUMNS) {}
    // Of a part's degrees of an order: the first, from one to the next, and how many.
    long first(long m, int part) const { return parity < 0 ? m : m + ((part + parity) & 1); }
    long step() const { return parity < 0 ? 1 : 2; }
    long degrees(long m, int part) const { return std::max(0l, (lmax - first(m, part) + step() - 1) / step()); }
};

// One sample's panel of channels: begin is its first channel in all, w how many it has.
struct Panel {
    const Grid &g;
    long sample, begin, w;
    bool wide;
    Panel(const Grid &grid, long task)
        : g(grid), sample(task / g.panels), begin(task % g.panels * COLUMNS), w(std::min(COLUMNS, g.c - begin)), wide(w == COLUMNS) {}

    // Of waves [M, part, R, Y', w]; the line between orders keeps those of sizes that are powers of two out of the same few lines of the cache.
    long order() const { return (2 * g.ny + 1) * w; }
    long wave(long m, int part, int r, long y) const { return m * order() + (part * 2 * g.rows[0] + r * g.rows[part] + y) * w; }
    long waves() const { return g.orders * order(); }
    long point(long y, long x) const { return ((sample * g.ny + y) * g.nx + x) * g.c + begin; }
    long coefficient(long l, long m, int r) const { return (((l * g.mmax + m) * g.b + sample) * 2 + r) * g.c + begin; }
    long degree() const { return g.mmax * g.b * 2 * g.c; }
    long sum(int part, int which, long j) const { return ((part * SUMS + which) * g.k + j) * w; }
    long sums() const { return 2 * SUMS * g.k * w; }
};

// Four sums of a row, of the vector of channels that at(x) gives at x.
template <class At> inline void fold(const Grid &g, long j, At at, vec s[SUMS]) {
    const vec a = at(j), b = at(j + g.h), f = a + b, d = a - b;
    if (j == 0 || 2 * j == g.h) {
        s[EVEN_COS] = f;
        s[EVEN_SIN] = vec{};
        s[ODD_COS] = j ? vec{} : d;
        s[ODD_SIN] = j ? d : vec{};
        return;
    }
    const vec c = at(g.h - j), e = at(g.nx - j), of = c + e, od = c - e;
    s[EVEN_COS] = f + of;
    s[EVEN_SIN] = f - of;
    s[ODD_COS] = d - od;
    s[ODD_SIN] = d + od;
}

// The transpose.
template <class To> inline void unfold(const Grid &g, long j, const vec s[SUMS], To to) {
    const vec a = s[EVEN_COS] + s[EVEN_SIN], b = s[ODD_COS] + s[ODD_SIN];
    to(j, a + b);
    to(j + g.h, a - b);
    if (j == 0 || 2 * j == g.h) return;
    const vec c = s[EVEN_COS] - s[EVEN_SIN], d = s[ODD_SIN] - s[ODD_COS];
    to(g.h - j, c + d);
    to(g.nx - j, c - d);
}

// A row and its mirror, or one row (south < 0) -> sums.
void fold_rows(const Panel &p, const float *x, long north, long south, float *sums) {
    const Grid &g = p.g;
    for (long j = 0; j < g.k; j++)
        for (long v = 0; v < p.w; v += W) {
            vec n[SUMS], s[SUMS];
            const float *row = x + p.point(north, 0) + v, *other = x + p.point(std::max(0l, south), 0) + v;
            fold(g, j, [&](long i) { return load(row + i * g.c); }, n);
            if (south >= 0) {
                fold(g, j, [&](long i) { return load(other + i * g.c); }, s);
                for (int i = 0; i < SUMS; i++) {
                    store(sums + p.sum(0, i, j) + v, n[i] + s[i]);
                    store(sums + p.sum(1, i, j) + v, n[i] - s[i]);
                }
            } else
                for (int i = 0; i < SUMS; i++) store(sums + p.sum(0, i, j) + v, n[i]);
        }
}

// The transpose.
void unfold_rows(const Panel &p, float *x, long north, long south, const float *sums) {
    const Grid &g = p.g;
    for (long j = 0; j < g.k; j++)
        for (long v = 0; v < p.w; v += W) {
            vec n[SUMS], s[SUMS];
            float *row = x + p.point(north, 0) + v, *other = x + p.point(std::max(0l, south), 0) + v;
            for (int i = 0; i < SUMS; i++) n[i] = load(sums + p.sum(0, i, j) + v);
            if (south >= 0) {
                for (int i = 0; i < SUMS; i++) {
                    const vec d = load(sums + p.sum(1, i, j) + v);
                    s[i] = n[i] - d;
                    n[i] = n[i] + d;
                }
                unfold(g, j, s, [&](long i, vec value) { store(other + i * g.c, value); });
            }
            unfold(g, j, n, [&](long i, vec value) { store(row + i * g.c, value); });
        }
}

// Part of the tables and of the waves that a product of Fourier sums has to do with.
struct Sum {
    const float *table;
    int r;
    long m, orders; // the first, and how many
    long j;         // the first: sines of 0 are 0
};

inline Sum sum_of(const Grid &g, int which, const float *even, const float *odd) {
    const bool first = which == EVEN_COS || which == EVEN_SIN, sine = which == EVEN_SIN || which == ODD_SIN;
    return {(first ? even : odd) + (sine ? g.h : 0), sine, first ? 0 : 1, first ? (g.orders + 1) / 2 : g.orders / 2, sine ? 1 : 0};
}

// What comes next of a row of the field, while a product of its sums is made: each of the four has some of the lines.
inline Ahead ahead(const Panel &p, const float *x, long y, int which, long tiles) {
    if (y < 0 || y >= p.g.ny) return {};
    const long j = (which & 1) * tiles * p.g.k;
    if (j >= p.g.nx) return {};
    return {x + p.point(y, j) + (which >> 1) * (p.w / 2), 4 * p.g.c};
}

void fourier(const Panel &p, const float *x, const float *even, const float *odd, float *waves, float *sums) {
    const Grid &g = p.g;
    for (long y = 0; y < g.rows[0]; y++) {
        const long south = y < g.rows[1] ? g.ny - 1 - y : -1;
        fold_rows(p, x, y, south, sums);
        for (int part = 0; part < (south < 0 ? 1 : 2); part++)
            for (int i = 0; i < SUMS; i++) {
                const Sum s = sum_of(g, i, even, odd);
                const long next = y + 1 < g.rows[0] ? (part ? south - 1 : y + 1) : -1;
                panel(s.table + s.j, sums + p.sum(part, i, s.j), s.orders, p.wide, g.k - s.j, 2 * g.h, 1, p.w, 2 * p.order(),
                      {waves + p.wave(s.m, part, s.r, y), How::set}, {}, ahead(p, x, next, i, (s.orders + ROWS - 1) / ROWS));
            }
    }
}

void inverse_fourier(const Panel &p, float *x, const float *even, const float *odd, const float *waves, float *sums) {
    const Grid &g = p.g;
    std::fill_n(sums, p.sums(), 0.0f); // the sines of 0
    for (long y = 0; y < g.rows[0]; y++) {
        const long south = y < g.rows[1] ? g.ny - 1 - y : -1;
        for (int part = 0; part < (south < 0 ? 1 : 2); part++)
            for (int i = 0; i < SUMS; i++) {
                const Sum s = sum_of(g, i, even, odd);
                panel(s.table + s.j, waves + p.wave(s.m, part, s.r, y), g.k - s.j, p.wide, s.orders, 1, 2 * g.h, 2 * p.order(), p.w,
                      {sums + p.sum(part, i, s.j), How::set}, {}, ahead(p, x, part ? south : y, i, (g.k + ROWS - 1) / ROWS));
            }
        unfold_rows(p, x, y, south, sums);
    }
}

// Waves -> coefficients; zeros beside them, of the block or of all orders.
void legendre_sums(const Panel &p, float *out, const float *legendre, const float *waves, bool zero) {
    const Grid &g = p.g;
    for (long m = 0; m < g.orders; m++)
        for (int part = 0; part < 2; part++)
            if (const long n = g.degrees(m, part), k = g.rows[part], l = g.first(m, part); n && k)
                for (int r = 0; r < 2; r++)
                    panel(legendre + (m * g.lmax + l) * g.ny, waves + p.wave(m, part, r, 0), n, p.wide, k, g.step() * g.ny, 1, p.w,
                          g.step() * p.degree(), {out + p.coefficient(l, m, r), How::set});
    for (long l = 0; l < g.lmax; l++) {
        const long end = zero ? g.mmax : std::min(g.mmax, (l / g.block + 1) * g.block);
        for (long m = l + 1; m < end; m++)
            for (int r = 0; r < 2; r++) std::fill_n(out + p.coefficient(l, m, r), p.w, 0.0f);
    }
}

void inverse_legendre_sums(const Panel &p, const float *coefficients, const float *legendre, float *waves, float *column) {
    const Grid &g = p.g;
    for (long m = 0; m < g.orders; m++)
        for (int part = 0; part < 2; part++) {
            const long n = g.degrees(m, part), rows = g.rows[part], l = g.first(m, part), row = g.step() * p.degree();
            for (int r = 0; rows && r < 2; r++) {
                const float *from = coefficients + p.coefficient(l, m, r);
                // Degrees lie far from each other: each is read once, and asked for an order before.
                for (long i = 0; i < n; i++, from += row)
                    for (long v = 0; v < p.w; v += W) {
                        __builtin_prefetch(from + 2 * g.b * g.c + v, 0, 2);
                        store(column + i * p.w + v, load(from + v));
                    }
                panel(legendre + (m * g.lmax + l) * g.ny, column, rows, p.wide, n, 1, g.step() * g.ny, p.w, p.w,
                      {waves + p.wave(m, part, r, 0), How::set});
            }
        }
}

} // namespace

extern "C" {

// x [B, Y, X, C] -> coefficients [L, M, B, R, C]. shape: B, Y, X, C, L, M. block: of degrees, as blocks() has them.
void analysis(const float *x, float *out, const float *legendre, const float *even, const float *odd, const long *shape, long block,
              long parity, long zero, long threads) {
    const Grid g(shape, block, parity);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long task = 0; task < g.b * g.panels; task++) {
        const Panel p(g, task);
        float *waves = room(0, p.waves()), *sums = room(1, p.sums());
        fourier(p, x, even, odd, waves, sums);
        legendre_sums(p, out, legendre, waves, zero);
    }
}

// coefficients [L, M, B, R, C] -> x [B, Y, X, C]. Reads l >= m only.
void synthesis(const float *coefficients, float *x, const float *legendre, const float *even, const float *odd, const long *shape, long block,
               long parity, long threads) {
    const Grid g(shape, block, parity);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long task = 0; task < g.b * g.panels; task++) {
        const Panel p(g, task);
        float *waves = room(0, p.waves()), *sums = room(1, std::max(p.sums(), g.lmax * p.w));
        inverse_legendre_sums(p, coefficients, legendre, waves, sums);
        inverse_fourier(p, x, even, odd, waves, sums);
    }
}

} // extern "C"
