// The spectral contraction of sfno.py and noise_sfno.py on the CPU, a complex product per degree and group of channels, and its gradients.
//
// Rows are [L, M, B, R, G, C], weights [L, G, C, R, C], R = 2 (real, imaginary), C a multiple of 16; n rows of a degree: its orders times B.
// A complex product a b takes three real ones: with P = a_r b_r, Q = a_i b_i and S = (a_r + a_i) (b_r + b_i) it is P - Q and S - P - Q.
// Weights come from memory, each is read once: while the products of some run, the next ones are fetched.

#include "native.h"

#include <atomic>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr long SPAN = W == 16 ? 8 : 4; // rows of a tile: three sums of each are in registers, and what b has
constexpr long LINE = 16;              // numbers in a line of the cache
constexpr long LARGE = 1 << 21;        // numbers that who needs them next will not find in a cache

// Numbers of a shape: L, M, B, G, C, the first degree, and of every degree the orders that are defined, of which those above it are zero.
struct Sizes {
    long l, m, b, groups, c, first;
    const long *ends;
    explicit Sizes(const long *s) : l(s[0]), m(s[1]), b(s[2]), groups(s[3]), c(s[4]), first(s[5]), ends(s + 6) {}
    long rows(long d) const { return b * std::min(first + d + 1, m); }
    long most() const { return l ? rows(l - 1) : 0; }
    long line() const { return groups * c; }  // from a real number to its imaginary one
    long weights() const { return c * 2 * c; } // of a group
    long offset(long i) const { return i / groups * m * b * 2 * line() + i % groups * c; } // of the rows of part i
    void zeros(float *out, long i) const {
        const long d = i / groups;
        for (long r = rows(d) * 2; r < ends[d] * b * 2; r++) std::fill_n(out + offset(i) + r * line(), c, 0.0f);
    }
};

// body(i, n, w, then) for every part, a group of a degree, by one thread each, the largest first: what is left at the end is small. n: its
// rows; w: its weights; then: those of the thread's next part, or null.
template <class Body> void each_part(const Sizes &s, const float *weight, long threads, Body body) {
    std::atomic<long> left(s.l * s.groups);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (long i = --left, next; i >= 0; i = next) {
        next = std::max(--left, -1l);
        body(i, s.rows(i / s.groups), weight + i * s.weights(), next < 0 ? nullptr : weight + next * s.weights());
    }
}

// To a whole line of memory past the cache: it is not read before.
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

// What went past the cache is there for other threads.
inline void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Complex numbers: the real ones, how far the imaginary ones are, and the step from row to row.
template <class Number> struct Complex {
    Number *real;
    long imaginary, step;
};

// What the next tiles will want: two lines of the cache per step along k, which is in numbers.
struct Pairs {
    const float *begin;
    long step;
};

// [R, W] = a b, a [k, 3, SPAN] (real, imaginary, their sum), b [k, W].
template <int R, bool PAST>
inline __attribute__((always_inline)) void tile_of_three(const float *a, Complex<const float> b, long k, Complex<float> to, Pairs ahead) {
    if (!ahead.begin) ahead = {a, 0}; // address 0 would be looked for in vain every time
    vec sum[3][R];
    for (int q = 0; q < 3; q++)
        for (int i = 0; i < R; i++) sum[q][i] = vec{};
    for (long p = 0; p < k; p++, a += 3 * SPAN, b.real += b.step, ahead.begin += ahead.step) {
        __builtin_prefetch(ahead.begin, 0, 2);
        __builtin_prefetch(ahead.begin + LINE, 0, 2);
        vec v[3] = {load(b.real), load(b.real + b.imaginary)};
        v[2] = v[0] + v[1];
#pragma GCC unroll 3
        for (int q = 0; q < 3; q++)
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) sum[q][i] += a[q * SPAN + i] * v[q];
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        float *real = to.real + i * to.step, *imaginary = real + to.imaginary;
        const vec r = sum[0][i] - sum[1][i], m = sum[2][i] - sum[0][i] - sum[1][i];
        if (PAST)
            store_past(real, r), store_past(imaginary, m);
        else
            store(real, r), store(imaginary, m);
    }
}

using Three = void (*)(const float *, Complex<const float>, long, Complex<float>, Pairs);

template <int... R> Three three_of(long rows, std::integer_sequence<int, R...>) {
    static constexpr Three all[] = {tile_of_three<R + 1, false>...};
    return all[rows - 1];
}

inline long parts(long n) { return (n + SPAN - 1) / SPAN; }

// Rows [n, R, C of line] -> tiles [parts, C, 3, SPAN].
void split(const float *x, float *to, long n, long c, long step) {
    for (long q = 0; q < parts(n); q++, to += 3 * c * SPAN) {
        const long first = n * q / parts(n), rows = n * (q + 1) / parts(n) - first;
        for (long k = 0; k < c; k += W) {
            for (long half = 0; half < 2 * SPAN; half += W) { // real and imaginary parts at once, if a vector has room for both
                vec line[W];
                for (long v = 0; v < W; v++) {
                    const long part = (half + v) / SPAN, row = (half + v) % SPAN;
                    line[v] = row < rows ? load(x + ((first + row) * 2 + part) * step + k) : vec{};
                }
                transpose(line);
                for (long v = 0; v < W; v++) store(to + (k + v) * 3 * SPAN + half, line[v]);
            }
            for (float *at = to + k * 3 * SPAN; at < to + (k + W) * 3 * SPAN; at += 3 * SPAN)
                for (long v = 0; v < SPAN; v++) at[2 * SPAN + v] = at[v] + at[SPAN + v];
        }
    }
}

// Of rows [n, R, C of line] the conjugates -> tiles [C / SPAN, n, 3, SPAN].
void split_columns(const float *x, float *to, long n, long c, long line) {
    for (long j = 0; j < c; j += SPAN)
        for (long i = 0; i < n; i++, to += 3 * SPAN)
            for (long v = 0; v < SPAN; v++) {
                const float r = x[i * 2 * line + j + v], m = x[(i * 2 + 1) * line + j + v];
                to[v] = r, to[SPAN + v] = -m, to[2 * SPAN + v] = r - m;
            }
}

// n rows, split, times W columns. The next weights come with the last tile, so that they are still there.
void times(const float *x, Complex<const float> b, long n, long c, float *to, long line, Pairs ahead) {
    constexpr std::make_integer_sequence<int, SPAN> sizes{};
    for (long q = 0; q < parts(n); q++) {
        const long first = n * q / parts(n), rows = n * (q + 1) / parts(n) - first;
        const Complex<float> y{to + first * 2 * line, line, 2 * line};
        three_of(rows, sizes)(x + 3 * q * c * SPAN, b, c, y, q == parts(n) - 1 ? ahead : Pairs{});
    }
}

// W of weights' rows [C, R] -> the conjugates, turned: [C, R, W].
void turn(const float *w, float *to, long c) {
    for (long k = 0; k < c; k += W) {
        vec r[W], i[W];
        for (long v = 0; v < W; v++) r[v] = load(w + v * 2 * c + k), i[v] = -load(w + v * 2 * c + c + k);
        transpose(r);
        transpose(i);
        for (long v = 0; v < W; v++, to += 2 * W) {
            store(to, r[v]);
            store(to + W, i[v]);
        }
    }
}

// Gradient dw [C, R, C] of a part's weights.
template <bool PAST> void of_weights(const float *x, const float *g, float *dw, long n, long c, long line) {
    float *a = room(2, 3 * n * c);
    split_columns(x, a, n, c, line);
    for (long j = 0; j < c; j += W)
        for (long i = 0; i < c; i += SPAN)
            tile_of_three<SPAN, PAST>(a + 3 * n * i, {g + j, line, 2 * line}, n, {dw + i * 2 * c + j, c, 2 * c}, {});
    if (PAST) fence();
}

} // namespace

extern "C" {

// out = rows weight; out may be rows.
void contract(const float *rows, const float *weight, float *out, const long *shape, long threads) {
    const Sizes s(shape);
    const long c = s.c, line = s.line();
    each_part(s, weight, threads, [&](long i, long n, const float *w, const float *then) {
        float *y = out + s.offset(i), *a = room(0, 3 * c * SPAN * parts(s.most()));
        split(rows + s.offset(i), a, n, c, line);
        for (long j = 0; j < c; j += W) {
            // Two lines each of half the rows, then of the other half.
            const long pair = j / (2 * W) * 2 * W + 2 * W, half = j / W % 2;
            const float *ahead = pair < c ? w + pair : then;
            times(a, {w + j, c, 2 * c}, n, c, y + j, line, ahead ? Pairs{ahead + half * c * c, c} : Pairs{});
        }
        s.zeros(out, i);
    });
}

// The gradients of contract from grad, that of out: drows, perhaps grad, and dw of the weight, perhaps null.
void contract_backward(const float *rows, const float *weight, const float *grad, float *drows, float *dw, const long *shape, long threads) {
    const Sizes s(shape);
    const long c = s.c, line = s.line();
    const bool past = s.l * s.groups * s.weights() > LARGE && reinterpret_cast<uintptr_t>(dw) % 64 == 0;
    each_part(s, weight, threads, [&](long i, long n, const float *w, const float *then) {
        const float *x = rows + s.offset(i), *g = grad + s.offset(i);
        float *dx = drows + s.offset(i), *a = room(0, 3 * c * SPAN * parts(s.most())), *b = room(1, 2 * c * W);
        if (dw) (past ? of_weights<true> : of_weights<false>)(x, g, dw + i * s.weights(), n, c, line);
        split(g, a, n, c, line);
        for (long j = 0; j < c; j += W) {
            turn(w + j * 2 * c, b, c);
            const float *ahead = j + W < c ? w + (j + W) * 2 * c : then;
            times(a, {b, W, 2 * W}, n, c, dx + j, line, ahead ? Pairs{ahead, 2 * W} : Pairs{});
        }
        s.zeros(drows, i);
    });
}

} // extern "C"
