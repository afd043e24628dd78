// What the sources that native.py compiles share: vectors, the tile of all matrix products, room that threads keep, functions of vectors.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr long W = 16, ROWS = 14; // ROWS by two vectors of sums, two more and a number fit into the registers
#elif defined(__AVX__)
constexpr long W = 8, ROWS = 6;
#else
constexpr long W = 4, ROWS = 6;
#endif
constexpr long COLUMNS = 2 * W; // of a panel
constexpr long SOON = 8;       // steps of a tile in which a line comes from the outer caches
typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint8_t flags __attribute__((vector_size(W), aligned(1), may_alias));

inline vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
inline void store(float *p, vec v) { *reinterpret_cast<vec *>(p) = v; }
inline vec load(const uint8_t *p) { return __builtin_convertvector(*reinterpret_cast<const flags *>(p), vec); }
inline vec all(float v) { return v - vec{}; }

// ---- Matrix products at the rate of the processor: the result stays in registers.

// Where a tile's sums go: each row of it to c, or added to what is there with a sign.
struct Target {
    float *c;
    bool set;
    float sign;
};

// Up to four of them, as many as a product has places after two times seven for eight.
struct Targets {
    Target of[4];
    int count = 0;
    Targets() = default;
    Targets(float *c, bool add) { put({c, !add, 1.0f}); }
    void put(Target t) {
        if (count < 4) of[count++] = t; // there never are more: without it the compiler fears so
    }
    Targets at(long offset) const {
        Targets moved = *this;
        for (int i = 0; i < count; i++) moved.of[i].c += offset;
        return moved;
    }
};

// What the next tiles will want, a line of the cache per step along k; step in bytes.
struct Ahead {
    const void *begin = nullptr;
    long step = 0;
};

// [R, N vectors] of a b to some targets, a [R, k] and b [k, N vectors]; steps: of a from row to row and along k, rows of b, rows of c.
template <int R, int N>
void tile(const float *a, const float *b, long k, long ra, long ka, long rb, long rc, const Targets &to, Ahead ahead) {
    vec sum[R][N];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < N; j++) sum[i][j] = vec{};
    const char *line = static_cast<const char *>(ahead.begin);
    const long soon = std::max(0l, k - SOON);
    for (const long end : {soon, k}) {
        if (end == k) // What is there comes into the cache, late enough to be still there when it is wanted.
            for (int t = 0; t < to.count; t++)
                for (int i = 0; i < R; i++)
                    for (int j = 0; j < N; j++) __builtin_prefetch(to.of[t].c + i * rc + j * W, 1, 3);
        for (long p = end == k ? soon : 0; p < end; p++, a += ka, b += rb, line += ahead.step) {
            __builtin_prefetch(line, 0, 2); // of address 0: no harm
            vec v[N];
            for (int j = 0; j < N; j++) v[j] = load(b + j * W);
            for (int i = 0; i < R; i++)
                for (int j = 0; j < N; j++) sum[i][j] += a[i * ra] * v[j];
        }
    }
    for (int t = 0; t < to.count; t++) {
        float *c = to.of[t].c;
        const vec sign = all(to.of[t].sign);
        if (to.of[t].set)
            for (int i = 0; i < R; i++)
                for (int j = 0; j < N; j++) store(c + i * rc + j * W, sum[i][j]);
        else
            for (int i = 0; i < R; i++)
                for (int j = 0; j < N; j++) store(c + i * rc + j * W, load(c + i * rc + j * W) + sign * sum[i][j]);
    }
}

using Tile = void (*)(const float *, const float *, long, long, long, long, long, const Targets &, Ahead);

template <int N, int... R> Tile tile_of(long rows, std::integer_sequence<int, R...>) {
    static constexpr Tile all[] = {tile<R + 1, N>...};
    return all[rows - 1];
}

// A panel of columns: a b to its targets [m, COLUMNS or W]. ahead: for each of the panel's tiles the next k lines of it.
inline void panel(const float *a, const float *b, long m, bool wide, long k, long ra, long ka, long rb, long rc, const Targets &to, Ahead ahead = {}) {
    constexpr std::make_integer_sequence<int, ROWS> sizes{};
    const long parts = (m + ROWS - 1) / ROWS;
    for (long q = 0; q < parts; q++) {
        const long first = m * q / parts, rows = m * (q + 1) / parts - first;
        const Tile t = wide ? tile_of<2>(rows, sizes) : tile_of<1>(rows, sizes);
        t(a + first * ra, b, k, ra, ka, rb, rc, to.at(first * rc), ahead);
        ahead.begin = static_cast<const char *>(ahead.begin) + k * ahead.step;
    }
}

// ---- Memory.

// Room that a thread keeps: what passes through it is in the cache when the next call comes.
inline float *room(int which, long n) {
    struct Room {
        float *begin = nullptr;
        long size = 0;
        ~Room() { std::free(begin); }
    };
    static thread_local Room rooms[9];
    Room &r = rooms[which];
    if (r.size < n) {
        std::free(r.begin);
        r.size = (n + 15) / 16 * 16;
        r.begin = static_cast<float *>(std::aligned_alloc(64, 4 * r.size));
        if (!r.begin) std::abort();
    }
    return r.begin;
}

// Of W vectors the i-th numbers -> the i-th vector: blocks of W / 2 to 1 change sides.
inline void transpose(vec m[W]) {
#pragma GCC unroll 4
    for (int block = W / 2; block; block /= 2) {
        ivec first, second;
        for (int j = 0; j < W; j++) {
            first[j] = j & block ? W + (j ^ block) : j;
            second[j] = j & block ? W + j : j ^ block;
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            if (!(i & block)) {
                const vec upper = m[i], lower = m[i + block];
                m[i] = __builtin_shuffle(upper, lower, first);
                m[i + block] = __builtin_shuffle(upper, lower, second);
            }
    }
}

// ---- Functions of vectors.

// e^x to some units in the last place, from e^-87 to e^88: 2^n e^r with |r| <= ln 2 / 2, and Taylor's sum of e^r.
inline vec exponential(vec x) {
    const vec low = all(-87.3f), high = all(88.3f);
    x = x < low ? low : x > high ? high : x;
    const vec magic = all(12582912.0f); // 1.5 * 2**23: adding it rounds to whole numbers
    const vec shifted = x * 1.44269504f + magic;
    const vec n = shifted - magic;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts, the first without rounding
    vec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const ivec exponent = ((ivec)shifted - (ivec)magic + 127) << 23;
    return p * (vec)exponent;
}

inline vec sigmoid(vec z) { return 1.0f / (1.0f + exponential(-z)); }

} // namespace
