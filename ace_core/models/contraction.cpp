// The spectral contraction of sfno.py on the CPU, a complex product per degree, and its gradients.
//
// Rows are [L, M, B, R, C], weights [L, C, R, C], R = 2 (real, imaginary), C a multiple of 16; n rows of a degree: its orders times B.
// A complex product takes three real ones: with P = x_r w_r, Q = x_i w_i and S = (x_r + x_i) (w_r + w_i) it is P - Q and S - P - Q.
// Weights come from memory, each is read once: while the products of some run, the next ones are fetched.

#include "native.h"

#include <atomic>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr long LINE = 16;                         // numbers in a line of the cache
constexpr long HEIGHT = (ROWS + W - 1) / W * W;   // of a tile of rows that lie one beside the other
constexpr long FEW = 4;                           // rows, for which weights are not worth to be arranged
constexpr long SPAN = W == 16 ? 8 : 4;            // rows of a tile of three sums

constexpr long LARGE = 1 << 21;                   // numbers that the next one to need them will not find in a cache

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

// Past the cache, to a whole line of memory that will not be needed soon: it is not read before.
inline void store_past(float *p, vec v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
    _mm_stream_ps(p, (__m128)v);
#else
    store(p, v);
#endif
}

// What comes next from memory: with each of the last tiles that run before, a line per step.
struct Stream {
    const float *begin = nullptr;
    long step = 0, second = 0, third = 0; // from line to line of a tile; where the second and the third tile begin
    long sweeps = 0, tile = 0;            // how many tiles it takes; the next one, from below 0 on
    Ahead take() {
        const long i = tile++;
        if (!begin || i < 0 || i >= sweeps) return {};
        return {begin + i % 2 * second + i / 2 * third, 4 * step};
    }
};

// Tiles of n rows; two even of a few rows, so that the next weights can come with them.
inline long parts(long n) { return std::min(n, std::max(2l, (n + ROWS - 1) / ROWS)); }

// Rows [n, R, C] -> their tiles [parts, 3, C, HEIGHT] of real parts, imaginary parts and sums.
void split(const float *x, float *to, long n, long c) {
    for (long q = 0; q < parts(n); q++) {
        const long first = n * q / parts(n), last = n * (q + 1) / parts(n);
        float *at = to + q * 3 * c * HEIGHT;
        for (long k = 0; k < c; k += W)
            for (long h = 0; h < HEIGHT; h += W) {
                vec r[W], i[W];
                for (long v = 0; v < W; v++) {
                    const float *row = x + (first + h + v) * 2 * c + k;
                    const bool there = first + h + v < last;
                    r[v] = there ? load(row) : vec{};
                    i[v] = there ? load(row + c) : vec{};
                }
                transpose(r);
                transpose(i);
                for (long v = 0; v < W; v++) {
                    float *line = at + (k + v) * HEIGHT + h;
                    store(line, r[v]);
                    store(line + c * HEIGHT, i[v]);
                    store(line + 2 * c * HEIGHT, r[v] + i[v]);
                }
            }
    }
}

// A tile of rows that lie one beside the other: with known steps it runs 6% faster.
template <int R, int N>
__attribute__((flatten)) void beside(const float *a, const float *b, long k, long rb, long rc, Target one, Target two, Ahead ahead) {
    tile<R, N>(a, b, k, 1, HEIGHT, rb, rc, one, two, ahead);
}

using Beside = void (*)(const float *, const float *, long, long, long, Target, Target, Ahead);

template <int N, int... R> Beside beside_of(long rows, std::integer_sequence<int, R...>) {
    static constexpr Beside all[] = {beside<R + 1, N>...};
    return all[rows - 1];
}

// Three factors of a panel of columns, or of rows; from step to step along k.
struct Three {
    const float *real, *imaginary, *sum;
    long step, step_of_sum;
};

// What becomes of real a times real b, and of imaginary a times imaginary b, in the real and in the imaginary part of a result.
struct Signs {
    How real_of_i, imaginary_of_r, imaginary_of_i;
};

// One tile of the three products.
struct Product {
    long rows, k, rc;
    bool wide;
    void operator()(const float *a, const float *b, long rb, Target one, Target two, Ahead ahead) const {
        constexpr std::make_integer_sequence<int, ROWS> sizes{};
        (wide ? beside_of<2>(rows, sizes) : beside_of<1>(rows, sizes))(a, b, k, rb, rc, one, two, ahead);
    }
};

// n rows, split, times a panel.
void times(const float *x, const Three &b, long n, bool wide, long c, float *real, float *imaginary, Signs s, Stream &next) {
    const auto each = [&](long which, const float *factor, long step, How of_real, How of_imaginary) {
        for (long q = 0; q < parts(n); q++) {
            const long first = n * q / parts(n);
            const Product p{n * (q + 1) / parts(n) - first, c, 2 * c, wide};
            p(x + (3 * q + which) * c * HEIGHT, factor, step, at({real, of_real}, first * 2 * c), at({imaginary, of_imaginary}, first * 2 * c),
              next.take());
        }
    };
    each(2, b.sum, b.step_of_sum, How::none, How::set);
    each(0, b.real, b.step, How::set, s.imaginary_of_r);
    each(1, b.imaginary, b.step, s.real_of_i, s.imaginary_of_i);
}

// Few rows times weights as they lie: the result is in the first cache, and the weights pass once, STEP rows of them at a time.
void few(const float *x, const float *w, float *out, long n, long c, const float *next) {
    constexpr long STEP = 4;
    std::fill_n(out, n * 2 * c, 0.0f);
    for (long k = 0; k < c; k += STEP, w += STEP * 2 * c)
        for (long i = 0; i < n; i++) {
            const float *then = i ? nullptr : k + STEP < c ? w + STEP * 2 * c : next;
            vec xr[STEP], xi[STEP];
            for (long q = 0; q < STEP; q++) xr[q] = all(x[i * 2 * c + k + q]), xi[q] = all(x[i * 2 * c + c + k + q]);
            float *to = out + i * 2 * c;
            for (long j = 0; j < c; j += W) {
                vec r = load(to + j), m = load(to + c + j);
#pragma GCC unroll 4
                for (long q = 0; q < STEP; q++) {
                    const float *from = w + q * 2 * c + j;
                    const vec wr = load(from), wi = load(from + c);
                    r += xr[q] * wr;
                    m += xr[q] * wi;
                    r -= xi[q] * wi;
                    m += xi[q] * wr;
                    if (then) __builtin_prefetch(then + q * 2 * c + j), __builtin_prefetch(then + q * 2 * c + c + j);
                }
                store(to + j, r);
                store(to + c + j, m);
            }
        }
}

// A panel of weights' columns -> the sums of real and imaginary parts, [C, COLUMNS].
void sums(const float *w, float *to, long c, long columns) {
    for (long k = 0; k < c; k++, w += 2 * c, to += COLUMNS)
        for (long j = 0; j < columns; j += W) store(to + j, load(w + j) + load(w + c + j));
}

// A panel of weights' rows, turned -> [3, C, COLUMNS]: real parts, imaginary parts and the differences of the two.
void turn(const float *w, float *to, long c, long columns) {
    for (long j = 0; j < columns; j += W)
        for (long k = 0; k < c; k += W) {
            vec r[W], i[W];
            for (long v = 0; v < W; v++) r[v] = load(w + (j + v) * 2 * c + k), i[v] = load(w + (j + v) * 2 * c + c + k);
            transpose(r);
            transpose(i);
            for (long v = 0; v < W; v++) {
                float *at = to + (k + v) * COLUMNS + j;
                store(at, r[v]);
                store(at + c * COLUMNS, i[v]);
                store(at + 2 * c * COLUMNS, r[v] - i[v]);
            }
        }
}

// Rows [n, R, C] -> [C / width, n, 3, width] of real parts, imaginary parts and their sums, or differences.
void interleave(const float *x, float *to, long n, long c, long width, float sign) {
    for (long j = 0; j < c; j += width)
        for (long i = 0; i < n; i++, to += 3 * width)
            for (long v = 0; v < width; v++) {
                const float r = x[i * 2 * c + j + v], m = x[i * 2 * c + c + j + v];
                to[v] = r, to[width + v] = m, to[2 * width + v] = r + sign * m;
            }
}

// Gradient dw [C, R, C] of a degree's weights: with P = x_r' g_r, Q = x_i' g_i and D = (x_r - x_i)' (g_r + g_i) it is P + Q and D - P + Q.
// All three in one loop, since n is small: so they are put together before they leave the registers.
void of_weights(const float *x, const float *g, float *dw, long n, long c, bool past) {
    float *a = room(2, 3 * n * c), *b = room(3, 3 * n * c);
    interleave(x, a, n, c, SPAN, -1.0f);
    interleave(g, b, n, c, W, 1.0f);
    for (long j = 0; j < c; j += W)
        for (long i = 0; i < c; i += SPAN) {
            vec sum[3][SPAN];
            for (long q = 0; q < 3; q++)
                for (long h = 0; h < SPAN; h++) sum[q][h] = vec{};
            const float *left = a + 3 * n * i, *right = b + 3 * n * j;
            for (long k = 0; k < n; k++, left += 3 * SPAN, right += 3 * W) {
#pragma GCC unroll 3
                for (long q = 0; q < 3; q++) {
                    const vec v = load(right + q * W);
#pragma GCC unroll 8
                    for (long h = 0; h < SPAN; h++) sum[q][h] += left[q * SPAN + h] * v;
                }
            }
#pragma GCC unroll 8
            for (long h = 0; h < SPAN; h++) {
                float *to = dw + (i + h) * 2 * c + j;
                const vec r = sum[0][h] + sum[1][h], m = sum[2][h] - sum[0][h] + sum[1][h];
                past ? store_past(to, r) : store(to, r);
                past ? store_past(to + c, m) : store(to + c, m);
            }
        }
}

} // namespace

extern "C" {

// out = rows weight; out may be rows.
void contract(const float *rows, const float *weight, float *out, const long *shape, long threads) {
    const Sizes s(shape);
    const long c = s.c;
    each_degree(s, threads, [&](long d, long next) {
        const long n = s.rows(d);
        const float *x = rows + d * s.degree(), *w = weight + d * s.weights(), *then = next < 0 ? nullptr : weight + next * s.weights();
        float *y = out + d * s.degree(), *a = room(0, 3 * c * HEIGHT * parts(s.most())), *sum = room(1, c * COLUMNS);
        if (n <= FEW) {
            std::copy_n(x, n * 2 * c, a);
            few(a, w, y, n, c, then);
        } else {
            split(x, a, n, c);
            for (long j = 0; j < c; j += COLUMNS) {
                const long columns = std::min(COLUMNS, c - j), sweeps = 2 * ((columns + LINE - 1) / LINE);
                sums(w + j, sum, c, columns);
                Stream ahead{j + COLUMNS < c ? w + j + COLUMNS : then, 2 * c, c, LINE, sweeps, std::min(0l, sweeps - 3 * parts(n))};
                times(a, {w + j, w + c + j, sum, 2 * c, COLUMNS}, n, columns == COLUMNS, c, y + j, y + c + j,
                      {How::subtract, How::subtract, How::subtract}, ahead);
            }
        }
        s.zeros(out, d);
    });
}

// The gradients of contract from grad, that of out: that of the rows, which takes its place, and dw of the weight, perhaps null. With
// P = g_r w_r', Q = g_i w_i' and D = (g_r + g_i) (w_r - w_i)' the first is P + Q and D - P + Q.
void contract_backward(const float *rows, const float *weight, float *grad, float *dw, const long *shape, long threads) {
    const Sizes s(shape);
    const long c = s.c;
    const bool past = s.l * s.weights() > LARGE && reinterpret_cast<uintptr_t>(dw) % 64 == 0;
    each_degree(s, threads, [&](long d, long next) {
        const long n = s.rows(d);
        const float *w = weight + d * s.weights(), *then = next < 0 ? nullptr : weight + next * s.weights();
        float *g = grad + d * s.degree(), *a = room(0, 3 * c * HEIGHT * parts(s.most())), *b = room(1, 3 * c * COLUMNS);
        if (dw) of_weights(rows + d * s.degree(), g, dw + d * s.weights(), n, c, past);
        split(g, a, n, c);
        for (long j = 0; j < c; j += COLUMNS) {
            const long columns = std::min(COLUMNS, c - j), sweeps = 2 * columns / LINE;
            turn(w + j * 2 * c, b, c, columns);
            Stream ahead{j + COLUMNS < c ? w + (j + COLUMNS) * 2 * c : then, LINE, c * LINE, 2 * c * LINE, sweeps,
                         std::min(0l, sweeps - 3 * parts(n))};
            times(a, {b, b + c * COLUMNS, b + 2 * c * COLUMNS, COLUMNS, COLUMNS}, n, columns == COLUMNS, c, g + j, g + c + j,
                  {How::add, How::subtract, How::add}, ahead);
        }
        s.zeros(grad, d);
    });
}

} // extern "C"
