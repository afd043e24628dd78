// The spectral contraction of sfno.py on the CPU, a complex product per degree, and its gradients.
//
// Rows are [L, M, B, R, C], weights [L, C, R, C], R = 2 (real, imaginary), C a multiple of 16; n rows of a degree: its orders times B.
// A complex product takes three real ones: with P = x_r w_r, Q = x_i w_i and S = (x_r + x_i) (w_r + w_i) it is P - Q and S - P - Q.
// Weights come from memory, each is read once: while the products of some run, the next ones are fetched.

#include "native.h"

#include <atomic>

namespace {

constexpr long LINE = 64;         // bytes
constexpr long CACHE = 96 * 1024; // numbers: a bit less than half of a core's own

// Numbers of a shape: L, M, B, C, the first degree, and of every degree the orders that are defined, of which those above it are zero.
struct Sizes {
    long l, m, b, c, first;
    const long *ends;
    explicit Sizes(const long *s) : l(s[0]), m(s[1]), b(s[2]), c(s[3]), first(s[4]), ends(s + 5) {}
    long rows(long d) const { return b * std::min(first + d + 1, m); }
    long most() const { return l ? rows(l - 1) : 0; }
    long degree() const { return m * b * 2 * c; } // numbers of one
    long weights() const { return c * 2 * c; }
    void zeros(float *out, long d) const { std::fill(out + d * degree() + rows(d) * 2 * c, out + d * degree() + ends[d] * b * 2 * c, 0.0f); }
};

// body(d, next) for every degree by one thread each, the largest first: what is left at the end is small. next: the thread's next one, or -1.
template <class Body> void each_degree(const Sizes &s, long threads, Body body) {
    std::atomic<long> left(s.l);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (long d = --left, next; d >= 0; d = next) {
        next = std::max(--left, -1l);
        body(d, next);
    }
}

// Real parts, imaginary parts and their sums of n rows -> [3, n, C].
void split(const float *x, float *to, long n, long c) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j < c; j += W) {
            const vec r = load(x + i * 2 * c + j), m = load(x + i * 2 * c + c + j);
            float *p = to + i * c + j;
            store(p, r);
            store(p + n * c, m);
            store(p + 2 * n * c, r + m);
        }
}

// The lines that come next, in the order of memory, tile by tile.
struct Stream {
    const char *at = nullptr, *end = nullptr;
    long step = LINE;
    Stream(const float *begin, long numbers, long steps)
        : at(reinterpret_cast<const char *>(begin)), end(at + 4 * numbers), step(begin && 4 * numbers > steps * LINE ? 2 * LINE : LINE) {}
    Ahead take(long k) {
        if (at >= end) return {};
        const Ahead lines{at, step};
        at += k * step;
        return lines;
    }
};

// One of the three products: n rows times a panel.
void times(const float *a, const float *b, long n, bool wide, long k, long ra, long rc, Target one, Target two, Stream &next) {
    constexpr std::make_integer_sequence<int, ROWS> sizes{};
    const long parts = (n + ROWS - 1) / ROWS;
    for (long q = 0; q < parts; q++) {
        const long first = n * q / parts, rows = n * (q + 1) / parts - first;
        const Tile t = wide ? tile_of<2>(rows, sizes) : tile_of<1>(rows, sizes);
        t(a + first * ra, b, k, ra, 1, COLUMNS, rc, at(one, first * rc), at(two, first * rc), next.take(k));
    }
}

// Weights of k channels in, from w on -> panels [3, k, COLUMNS] of real parts, imaginary parts and sums.
void pack(const float *w, float *to, long k, long c) {
    for (long p = 0; p < k; p++, w += 2 * c)
        for (long j = 0; j < c; j += W) {
            const vec r = load(w + j), i = load(w + c + j);
            float *at = to + j / COLUMNS * 3 * k * COLUMNS + p * COLUMNS + j % COLUMNS;
            store(at, r);
            store(at + k * COLUMNS, i);
            store(at + 2 * k * COLUMNS, r + i);
        }
}

} // namespace

#ifndef DEPTH
#define DEPTH 96
#endif

extern "C" {

// out = rows weight, which may be rows.
void contract(const float *rows, const float *weight, float *out, const long *shape, long threads) {
    const Sizes s(shape);
    const long c = s.c, depth = std::min(c, long(DEPTH)), panels = (c + COLUMNS - 1) / COLUMNS;
    each_degree(s, threads, [&](long d, long next) {
        const long n = s.rows(d);
        float *x = room(0, 3 * s.most() * c), *w = room(1, 3 * depth * panels * COLUMNS), *y = out + d * s.degree();
        split(rows + d * s.degree(), x, n, c);
        const float *from = weight + d * s.weights();
        for (long begin = 0; begin < c; begin += depth) {
            const long k = std::min(depth, c - begin);
            pack(from + begin * 2 * c, w, k, c);
            const long then = begin + k < c ? d : next, row = begin + k < c ? begin + k : 0;
            const long steps = 3 * panels * ((n + ROWS - 1) / ROWS) * k;
            Stream ahead(then < 0 ? nullptr : weight + then * s.weights() + row * 2 * c, then < 0 ? 0 : std::min(depth, c - row) * 2 * c, steps);
            const How set = begin ? How::add : How::set;
            for (long j = 0; j < c; j += COLUMNS) {
                const bool wide = j + COLUMNS <= c;
                const float *p = w + j / COLUMNS * 3 * k * COLUMNS, *a = x + begin;
                times(a + 2 * n * c, p + 2 * k * COLUMNS, n, wide, k, c, 2 * c, {y + c + j, set}, {}, ahead);
                times(a, p, n, wide, k, c, 2 * c, {y + j, set}, {y + c + j, How::subtract}, ahead);
                times(a + n * c, p + k * COLUMNS, n, wide, k, c, 2 * c, {y + j, How::subtract}, {y + c + j, How::subtract}, ahead);
            }
        }
        s.zeros(out, d);
    });
}

} // extern "C"
