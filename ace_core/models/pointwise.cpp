// What networks do point by point, on the CPU: products with weights, the perceptron between norm and sum, and their gradients.
//
// Fields are [rows, C], channels beside each other, C a multiple of W. Products of large weights take one level of Strassen's seven for
// eight (1969, doi:10.1007/BF02165411), of larger ones two: sums of quarters are made where operands are brought into the cache anyway, and the
// results are added to their places from registers. Callers: blocks.py, conditional.py.

#include "native.h"

#include <vector>

namespace {

constexpr long CHUNK = (ROWS < 12 ? 16 : 8) * ROWS; // rows whose hidden layer stays in a core's cache; their quarters are whole tiles
constexpr long GROUP = 4;   // chunks that are summed over at once: fewer rows pay more for adding to sums than for the products
constexpr long LARGE = 256; // width from which seven products of quarters and their sums are less than eight
constexpr long TWICE = 384; // from which those are made of seven products each
constexpr long MANY = 1024; // rows for which these sums of a weight are worth being made
constexpr long PAD = 16;    // of rows in the cache: without, many of them have the same few lines
constexpr long SEVEN = 7;

enum Room { SUMS, PANEL, FIRST, SECOND, THIRD, BUFFERS, TOTALS, OF_NORM, REST };

// ---- Seven for eight.

// Of a factor, quarter a plus or minus quarter b (rows of quarters first: 0 1 / 2 3); b < 0: a alone.
struct Quarters {
    int a, b;
    float sign;
};
constexpr Quarters LEFT[SEVEN] = {{0, 3, 1}, {2, 3, 1}, {0, -1, 1}, {3, -1, 1}, {0, 1, 1}, {2, 0, -1}, {1, 3, -1}};
constexpr Quarters RIGHT[SEVEN] = {{0, 3, 1}, {0, -1, 1}, {1, 3, -1}, {2, 0, -1}, {3, -1, 1}, {0, 1, 1}, {2, 3, 1}};
// Where the products belong: to one or two quarters of the result.
struct Place {
    int quarter;
    float sign;
    bool first; // what is there before this product does not count
};
constexpr Place NOWHERE{-1, 0, false};
constexpr Place PLACES[SEVEN][2] = {{{0, 1, true}, {3, 1, true}},
                                    {{2, 1, true}, {3, -1, false}},
                                    {{1, 1, true}, {3, 1, false}},
                                    {{0, 1, false}, {2, 1, false}},
                                    {{1, 1, false}, {0, -1, false}},
                                    {{3, 1, false}, NOWHERE},
                                    {{0, 1, false}, NOWHERE}};

// Where the product of number i belongs, for a result [m, n] of rows at a distance of rc.
inline Targets quarters(const Targets &result, int i, long m, long n, long rc) {
    Targets out;
    for (int t = 0; t < result.count; t++)
        for (const Place &p : PLACES[i])
            if (p.quarter >= 0) {
                const Target &of = result.of[t];
                out.put({of.c + p.quarter / 2 * (m / 2) * rc + p.quarter % 2 * (n / 2), of.set && p.first, of.sign * p.sign});
            }
    return out;
}

// Of four quarters' numbers the seven sums, or single ones, each at a distance of line from the one before.
constexpr std::make_integer_sequence<int, SEVEN> ALL_SEVEN{};
template <int... I> inline void store_sums(const Quarters (&of)[SEVEN], const vec (&v)[4], float *out, long line, std::integer_sequence<int, I...>) {
    (store(out + I * line, of[I].b < 0 ? v[of[I].a] : of[I].sign < 0 ? v[of[I].a] - v[of[I].b] : v[of[I].a] + v[of[I].b]), ...);
}

bool large(long k, long n) { return k >= LARGE && n >= LARGE && k % (2 * W) == 0 && n % (2 * W) == 0; }

// ---- A weight as panels of columns.

// Of a weight [k, n] from w: rows or, if turned, columns at a distance of line.
struct Weight {
    const float *w;
    long line, k, n;
    bool turned;
};

// Numbers of the weight's block from (k0, n0), plus sign times those of the block from (k1, n1), to one panel [k, width] at out.
void pack(const Weight &w, long k0, long n0, bool both, long k1, long n1, float sign, long k, long width, float *out) {
    if (!w.turned) {
        for (long p = 0; p < k; p++)
            for (long j = 0; j < width; j += W) {
                vec v = load(w.w + (k0 + p) * w.line + n0 + j);
                if (both) v += sign * load(w.w + (k1 + p) * w.line + n1 + j);
                store(out + p * width + j, v);
            }
        return;
    }
    for (long j = 0; j < width; j += W) {
        long p = 0;
        for (; p + W <= k; p += W) {
            vec m[W];
            for (long i = 0; i < W; i++) {
                m[i] = load(w.w + (n0 + j + i) * w.line + k0 + p);
                if (both) m[i] += sign * load(w.w + (n1 + j + i) * w.line + k1 + p);
            }
            transpose(m);
            for (long i = 0; i < W; i++) store(out + (p + i) * width + j, m[i]);
        }
        for (; p < k; p++)
            for (long i = 0; i < W; i++) {
                float v = w.w[(n0 + j + i) * w.line + k0 + p];
                if (both) v += sign * w.w[(n1 + j + i) * w.line + k1 + p];
                out[p * width + j + i] = v;
            }
    }
}

// A weight as products want it: of 7^levels products, each of a part k of k by n of n.
struct Factor {
    Weight weight;
    int levels;
    long k, n;
    float *packed;

    // rows: about how many it will be multiplied with.
    Factor(Weight w, long rows, Room where)
        : weight(w), levels(levels_of(w, rows)), k(w.k >> levels), n(w.n >> levels), packed(room(where, products(levels) * k * n)) {}

    static long products(int levels) { return levels == 2 ? SEVEN * SEVEN : levels ? SEVEN : 1; }

    // By all threads of a team.
    void make() const {
        const long count = (n + COLUMNS - 1) / COLUMNS;
#pragma omp for schedule(static)
        for (long task = 0; task < (levels ? SEVEN : 1) * count; task++) {
            const long i = task / count, first = task % count * COLUMNS, width = std::min(COLUMNS, n - first);
            const Quarters q = levels ? RIGHT[i] : Quarters{0, -1, 1};
            if (levels < 2)
                quarter(q, first, width, packed + i * k * n + first * k);
            else
                sixteenths(q, first, width, packed + i * SEVEN * k * n + first * k);
        }
    }

  private:
    static int levels_of(const Weight &w, long rows) {
        if (rows >= MANY && w.k >= TWICE && w.n >= TWICE && w.k % (4 * W) == 0 && w.n % (4 * W) == 0) return 2;
        return rows >= 2 * ROWS && large(w.k, w.n) ? 1 : 0;
    }

    // Of the sum of two quarters, or one, or of the whole, the columns from first.
    void quarter(Quarters q, long first, long width, float *out) const {
        const long high = levels ? weight.k / 2 : k, wide = levels ? weight.n / 2 : n;
        pack(weight, q.a / 2 * high, q.a % 2 * wide + first, q.b >= 0, q.b / 2 * high, q.b % 2 * wide + first, q.sign, high, width, out);
    }

    // Of that sum's own quarters the seven sums' columns from first.
    void sixteenths(Quarters q, long first, long width, float *out) const {
        float *left = room(PANEL, 4 * k * width), *right = left + 2 * k * width;
        quarter(q, first, width, left);
        quarter(q, n + first, width, right);
        const float *parts[4] = {left, right, left + k * width, right + k * width};
        for (long p = 0; p < k * width; p += W) {
            vec v[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) v[i] = load(parts[i] + p);
            store_sums(RIGHT, v, out + p, k * n, ALL_SEVEN);
        }
    }
};

// c [m, n] = or += a b for packed panels of b.
void panels(const float *a, long ra, long ka, const float *packed, long m, long k, long n, long rc, const Targets &to) {
    const long parts = (m + ROWS - 1) / ROWS;
    for (long j = 0; j < n; j += COLUMNS) {
        const bool wide = n - j >= COLUMNS;
        const float *next = packed + (j + COLUMNS) * k;
        panel(a, packed + j * k, m, wide, k, ra, ka, wide ? COLUMNS : W, rc, to.at(j), {next, 4 * COLUMNS / parts});
    }
}

// c [m, n] = or += a b of 7^levels products, by one thread; m a multiple of 2^levels.
void times(const float *a, long ra, const Factor &b, long m, long rc, const Targets &to) {
    const long k = b.k, n = b.n, h = m >> b.levels, line = k + PAD, size = h * line;
    if (b.levels == 0) return panels(a, ra, 1, b.packed, m, k, n, rc, to);
    float *sums = room(SUMS, (b.levels == 2 ? SEVEN : 1) * size);
    for (int i = 0; i < SEVEN; i++) {
        const Quarters q = LEFT[i];
        const float *one = a + q.a / 2 * (m / 2) * ra + q.a % 2 * (b.weight.k / 2), *other = q.b < 0 ? nullptr : a + q.b / 2 * (m / 2) * ra + q.b % 2 * (b.weight.k / 2);
        const auto sum = [=](long offset) { return q.b < 0 ? load(one + offset) : load(one + offset) + q.sign * load(other + offset); };
        if (b.levels == 1) {
            for (long r = 0; r < h && q.b >= 0; r++)
                for (long p = 0; p < k; p += W) store(sums + r * line + p, sum(r * ra + p));
            const bool alone = q.b < 0;
            panels(alone ? one : sums, alone ? ra : line, 1, b.packed + i * k * n, h, k, n, rc, quarters(to, i, m, 2 * n, rc));
            continue;
        }
        // The sum's own quarters need no place: only their sums are wanted.
        for (long r = 0; r < h; r++)
            for (long p = 0; p < k; p += W) {
                vec v[4];
#pragma GCC unroll 4
                for (int s = 0; s < 4; s++) v[s] = sum((s / 2 * h + r) * ra + s % 2 * k + p);
                store_sums(LEFT, v, sums + r * line + p, size, ALL_SEVEN);
            }
        const Targets of_quarter = quarters(to, i, m, 4 * n, rc);
        for (int j = 0; j < SEVEN; j++)
            panels(sums + j * size, line, 1, b.packed + (i * SEVEN + j) * k * n, h, k, n, rc, quarters(of_quarter, j, m / 2, 2 * n, rc));
    }
}

// The same of any m, set or added.
void times(const float *a, long ra, const Factor &b, float *c, long rc, long m, bool add) {
    const long k = b.weight.k, n = b.weight.n, unit = 1 << b.levels, even = m / unit * unit, rest = m - even;
    if (even) times(a, ra, b, even, rc, {c, add});
    if (!rest) return;
    // The last rows that do not make up a half, or a quarter, with others: with zeros below them.
    float *last = room(REST, unit * (k + n)), *product = last + unit * k;
    std::fill_n(last, unit * k, 0.0f);
    for (long r = 0; r < rest; r++) std::memcpy(last + r * k, a + (even + r) * ra, 4 * k);
    times(last, k, b, unit, n, {product, false});
    for (long r = 0; r < rest; r++)
        for (long j = 0; j < n; j += W) {
            float *to = c + (even + r) * rc + j;
            store(to, add ? load(to) + load(product + r * n + j) : load(product + r * n + j));
        }
}

// ---- Gradients of weights.

// The sum over rows of g^T x, [p, q], g [rows, p] and x [rows, q], chunk by chunk.
struct Outer {
    long p, q;
    bool seven;
    float *out, *totals; // the result; sums of the seven products until finish

    Outer(long p, long q, float *out, float *totals) : p(p), q(q), seven(large(p, q)), out(out), totals(totals) {}
    static long size(long p, long q) { return large(p, q) ? SEVEN * p * q / 4 : 0; }

    // By all threads of a team, which go on before the others have done it.
    void add(const float *g, long rg, const float *x, long rx, long m, bool first) const {
        if (!seven) return plainly(g, rg, x, rx, m, first);
        const long h = (m + 1) / 2, a = p / 2, b = q / 2, count = (b + COLUMNS - 1) / COLUMNS, line = a + PAD;
        float *sums = room(SUMS, h * line), *columns = room(PANEL, h * COLUMNS);
        long last = -1;
#pragma omp for schedule(static) collapse(2) nowait
        for (long i = 0; i < SEVEN; i++)
            for (long j = 0; j < count; j++) {
                if (i != last) sides(g, rg, LEFT[i], true, m, a, 0, a, line, sums), last = i;
                const long width = std::min(COLUMNS, b - j * COLUMNS);
                sides(x, rx, RIGHT[i], false, m, b, j * COLUMNS, width, width, columns);
                panel(sums, columns, a, width == COLUMNS, h, 1, line, width, b, {totals + i * a * b + j * COLUMNS, !first});
            }
    }

    // From the seven to the result, by all threads.
    void finish() const {
        if (!seven) return;
        const long a = p / 2, b = q / 2;
#pragma omp barrier
#pragma omp for schedule(static)
        for (long r = 0; r < p; r++)
            for (long c = 0; c < q; c += W) {
                const int quarter = int(r / a * 2 + c / b);
                vec sum{};
                for (int i = 0; i < SEVEN; i++)
                    for (const Place &place : PLACES[i])
                        if (place.quarter == quarter) {
                            const vec v = load(totals + i * a * b + r % a * b + c % b);
                            sum += place.sign * v;
                        }
                store(out + r * q + c, sum);
            }
    }

  private:
    // A quarter of x, or one plus or minus another, from column first on; turned: of x with rows for columns. A missing row is of zeros.
    static void sides(const float *x, long rx, Quarters q, bool turned, long m, long half, long first, long width, long line, float *out) {
        const long h = (m + 1) / 2;
        const auto below = [&](int which) { return turned ? which % 2 : which / 2; };
        const auto right = [&](int which) { return turned ? which / 2 : which % 2; };
        for (long r = 0; r < h; r++) {
            const float *rows[2] = {nullptr, nullptr};
            for (int i = 0; i < 2; i++) {
                const int which = i ? q.b : q.a;
                if (which >= 0 && below(which) * h + r < m) rows[i] = x + (below(which) * h + r) * rx + right(which) * half + first;
            }
            for (long c = 0; c < width; c += W) {
                vec v = rows[0] ? load(rows[0] + c) : vec{};
                if (rows[1]) v += q.sign * load(rows[1] + c);
                store(out + r * line + c, v);
            }
        }
    }

    void plainly(const float *g, long rg, const float *x, long rx, long m, bool first) const {
        float *columns = room(PANEL, m * COLUMNS);
        const long count = (q + COLUMNS - 1) / COLUMNS;
#pragma omp for schedule(static) nowait
        for (long j = 0; j < count; j++) {
            const long width = std::min(COLUMNS, q - j * COLUMNS);
            for (long r = 0; r < m; r++)
                for (long c = 0; c < width; c += W) store(columns + r * width + c, load(x + r * rx + j * COLUMNS + c));
            panel(g, columns, p, width == COLUMNS, m, 1, rg, width, q, {out + j * COLUMNS, !first});
        }
    }
};

// ---- Activations.

enum Kind { NONE, GELU, RELU, SILU };

struct Activated {
    vec value, slope;
};

template <Kind K> inline Activated activated(vec x) {
    if constexpr (K == NONE) return {x, all(1.0f)};
    if constexpr (K == RELU) {
        const vec zero{}, one = all(1.0f);
        return {x < zero ? zero : x, x > zero ? one : zero};
    }
    if constexpr (K == SILU) {
        const vec s = sigmoid(x);
        return {x * s, s * (1.0f + x * (1.0f - s))};
    }
    // The normal distribution's tail over its density as a polynomial of 1 / (1 + c |x|), as Hastings (1955) did it, fitted anew: within
    // 1.2e-7 of the tail itself.
    const vec zero{}, size = x < zero ? -x : x, density = exponential(-0.5f * x * x), t = 1.0f / (1.0f + 0.2316419f * size);
    vec s = -0.0707835821f * t + 0.249233656f;
    s = s * t - 0.204431163f;
    s = s * t + 0.227924501f;
    s = s * t + 0.0120581599f;
    s = s * t + 0.103133925f;
    s = s * t + 0.0903363253f;
    s = s * t + 0.0925282329f;
    const vec tail = density * t * s, below = x < zero ? tail : 1.0f - tail;
    return {x * below, below + 0.398942280f * x * density};
}

#if defined(__AVX512F__)
// The normal distribution's tail from 0 to END in as many parts as a vector has numbers, so that a number finds its polynomial within a register:
// half the time of activated. Interpolated at Chebyshev's points, within 4e-9.
constexpr int DEGREE = 5;
constexpr float END = 5.6f;

struct Tails {
    vec of[DEGREE + 1];
    Tails() {
        constexpr int n = DEGREE + 1;
        for (int part = 0; part < W; part++) {
            double at[n], newton[n], sum[n] = {};
            for (int i = 0; i < n; i++) {
                at[i] = 0.5 * std::cos((i + 0.5) * M_PI / n);
                newton[i] = 0.5 * std::erfc((part + 0.5 + at[i]) * END / W * M_SQRT1_2);
            }
            for (int i = 1; i < n; i++)
                for (int j = n - 1; j >= i; j--) newton[j] = (newton[j] - newton[j - 1]) / (at[j] - at[j - i]);
            for (int i = n - 1; i >= 0; i--) { // Horner's scheme on polynomials
                for (int j = n - 1; j > 0; j--) sum[j] = sum[j - 1] - at[i] * sum[j];
                sum[0] = newton[i] - at[i] * sum[0];
            }
            for (int i = 0; i < n; i++) of[i][part] = float(sum[i]);
        }
    }
};
const Tails TAILS;

inline vec gelu(vec x) {
    const vec size = x < vec{} ? -x : x, last = all(END * (1 - 1e-6f));
    const vec scaled = (size < last ? size : last) * (W / END) - 0.5f, shifted = scaled + 12582912.0f; // 1.5 * 2**23: rounds to whole numbers
    const ivec part = (ivec)shifted & (W - 1);
    const vec at = scaled - (shifted - 12582912.0f);
    vec tail = __builtin_shuffle(TAILS.of[DEGREE], part);
#pragma GCC unroll 5
    for (int i = DEGREE - 1; i >= 0; i--) tail = tail * at + __builtin_shuffle(TAILS.of[i], part);
    tail = size < last ? tail : vec{};
    return x * (x < vec{} ? tail : 1.0f - tail);
}
#else
inline vec gelu(vec x) { return activated<GELU>(x).value; }
#endif

template <Kind K> inline vec value(vec x) { return K == GELU ? gelu(x) : activated<K>(x).value; }

// body(the kind as a type), so that loops are compiled for each.
template <class Body> inline void of_kind(long kind, Body body) {
    switch (kind) {
    case GELU: return body(std::integral_constant<Kind, GELU>{});
    case RELU: return body(std::integral_constant<Kind, RELU>{});
    case SILU: return body(std::integral_constant<Kind, SILU>{});
    default: return body(std::integral_constant<Kind, NONE>{});
    }
}

// ---- Rows in parts.

// Rows of samples [B, P], in chunks of size, a sample's last one of what is left.
struct Chunks {
    long p, step, each, count;
    Chunks(long b, long p, long size = CHUNK) : p(p), step(size), each((p + size - 1) / size), count(b * each) {}
    long sample(long q) const { return q / each; }
    long first(long q) const { return sample(q) * p + q % each * step; }
    long rows(long q) const { return std::min(step, p - q % each * step); }
};
static_assert(CHUNK % 2 == 0);

// Sums over a sample's rows: of blocks in float, of those in double, in parts that do not depend on the number of threads.
constexpr long BLOCK = 64, PARTS = 32;

// body(sample, first row, last row, sums [2, C] to add to) for every block; then [B, 2, C] in all.
template <class Body> std::vector<double> summed(long b, long p, long c, long threads, Body body) {
    const long parts = std::max(1l, std::min(PARTS, p / (2 * BLOCK)));
    std::vector<double> all(b * parts * 2 * c, 0.0), sums(b * 2 * c, 0.0);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long task = 0; task < b * parts; task++) {
        std::vector<float> of_block(2 * c);
        const long sample = task / parts, end = p * (task % parts + 1) / parts;
        for (long first = p * (task % parts) / parts; first < end; first += BLOCK) {
            std::fill(of_block.begin(), of_block.end(), 0.0f);
            body(sample, sample * p + first, sample * p + std::min(first + BLOCK, end), of_block.data());
            for (long i = 0; i < 2 * c; i++) all[task * 2 * c + i] += of_block[i];
        }
    }
    for (long task = 0; task < b * parts; task++)
        for (long i = 0; i < 2 * c; i++) sums[task / parts * 2 * c + i] += all[task * 2 * c + i];
    return sums;
}

// out [m, n] = added + bias, either of which may be null.
inline void start(float *out, const float *added, const float *bias, long m, long n) {
    for (long r = 0; r < m; r++)
        for (long j = 0; j < n; j += W) store(out + r * n + j, (added ? load(added + r * n + j) : vec{}) + (bias ? load(bias + j) : vec{}));
}

// A norm over rows and, once these are known, what it does to them: scale and shift, [B, C]. All null: none.
struct Following {
    const float *weight, *bias;
    float eps;
    float *scale, *shift;
};

// Of chunks of rows [m, n], written over by act(x): about their mean, and the sums of what is left and of its squares about that; from these, those
// of all.
struct Moments {
    const Chunks &chunks;
    long n;
    Following norm;
    std::vector<float> of; // [count, 3, n]

    // None if no norm wants them.
    Moments(const Chunks &chunks, long n, Following norm) : chunks(chunks), n(n), norm(norm), of(norm.scale ? chunks.count * 3 * n : 0) {}

    void activate(long q, float *x, long kind) {
        const long m = chunks.rows(q);
        float *mean = of.empty() ? nullptr : &of[q * 3 * n];
        if (!mean && kind == NONE) return;
        of_kind(kind, [&](auto k) {
            long j = 0;
            for (; j + 4 * W <= n; j += 4 * W) columns<4, k.value>(x + j, m, mean ? mean + j : nullptr);
            for (; j < n; j += W) columns<1, k.value>(x + j, m, mean ? mean + j : nullptr);
        });
    }

    // Two sets of numbers together as Chan, Golub and LeVeque (1979) have it.
    void finish() const {
        if (of.empty()) return;
        for (long i = 0; i * chunks.each < chunks.count; i++)
            for (long j = 0; j < n; j++) {
                double middle = 0, squares = 0;
                for (long q = i * chunks.each, before = 0; q < (i + 1) * chunks.each; before += chunks.rows(q++)) {
                    const float *own = &of[q * 3 * n + j];
                    const double m = double(chunks.rows(q)), rest = own[n], d = own[0] + rest / m - middle;
                    squares += own[2 * n] - rest * rest / m + d * d * m * double(before) / (m + double(before));
                    middle += d * m / (m + double(before));
                }
                const double scale = norm.weight[j] / std::sqrt(squares / double(chunks.p) + double(norm.eps));
                norm.scale[i * n + j] = float(scale);
                norm.shift[i * n + j] = float(norm.bias[j] - middle * scale);
            }
    }

  private:
    template <int N, Kind K> void columns(float *x, long m, float *mean) const {
        vec sum[N] = {};
        for (long r = 0; r < m; r++)
            for (int i = 0; i < N; i++) {
                float *at = x + r * n + i * W;
                const vec v = value<K>(load(at));
                if (K != NONE) store(at, v);
                sum[i] += v;
            }
        if (!mean) return;
        vec rest[N] = {}, squares[N] = {};
        for (int i = 0; i < N; i++) sum[i] *= 1.0f / float(m);
        for (long r = 0; r < m; r++)
            for (int i = 0; i < N; i++) {
                const vec d = load(x + r * n + i * W) - sum[i];
                rest[i] += d;
                squares[i] += d * d;
            }
        for (int i = 0; i < N; i++) {
            store(mean + i * W, sum[i]);
            store(mean + n + i * W, rest[i]);
            store(mean + 2 * n + i * W, squares[i]);
        }
    }
};

// ---- Norms of rows a = act(x), x [B, P, C], as perceptrons want them: chunk by chunk.

// scale a + shift, [B, C] each.
struct Affine {
    static constexpr bool OVER_ROWS = true; // its statistics are over rows: the gradient wants sums over them
    const float *x, *scale, *shift;
    long c, kind;

    void make() const {}
    long scratch() const { return 0; }
    // Rows [m, C] at a distance of line; a: null, or there too before the norm. scratch: of as many numbers a row, at a distance of wide.
    void fill(long first, long m, long sample, float *a, float *normed, long line, float *, long) const {
        of_kind(kind, [&](auto k) {
            for (long r = 0; r < m; r++)
                for (long j = 0; j < c; j += W) {
                    const vec v = value<k.value>(load(x + (first + r) * c + j));
                    if (a) store(a + r * line + j, v);
                    store(normed + r * line + j, v * load(scale + sample * c + j) + load(shift + sample * c + j));
                }
        });
    }
};

inline float total(vec v) {
    float sum = 0;
    for (long i = 0; i < W; i++) sum += v[i];
    return sum;
}

// 1 / the standard deviation of c numbers, which are left without their mean.
inline float centre(float *a, vec sum, long c, float eps) {
    const vec mean = all(total(sum) / c);
    vec squares{};
    for (long j = 0; j < c; j += W) {
        const vec v = load(a + j) - mean;
        store(a + j, v);
        squares += v * v;
    }
    return 1.0f / std::sqrt(total(squares) / c + eps);
}

// z scale + shift, z: a over channels less its mean, by its standard deviation. (scale, shift) [B, P, 2 C] = row + maps w^T: maps [B, P, N],
// w [2 C, N], row [2 C] or, if sampled, [B, 2 C].
struct Conditional {
    static constexpr bool OVER_ROWS = false;
    const float *x, *maps, *row;
    long c, n, kind;
    bool sampled;
    float eps;
    Factor factor;

    // shape: B, P, C, N, sampled, kind. columns: 2 C, or C where the shift is not wanted.
    Conditional(const float *x, const float *maps, const float *w, const float *row, const long *shape, float eps, long columns)
        : x(x), maps(maps), row(row), c(shape[2]), n(shape[3]), kind(shape[5]), sampled(shape[4]), eps(eps),
          factor({w, n, n, columns, true}, shape[1], OF_NORM) {}
    void make() const { factor.make(); }
    long scratch() const { return 2 * c; }
    // As many columns as the factor has, at a distance of wide.
    void conditions(long first, long m, long sample, float *both, long wide) const {
        for (long r = 0; r < m; r++) std::memcpy(both + r * wide, row + (sampled ? sample * 2 * c : 0), 4 * factor.weight.n);
        times(maps + first * n, n, factor, both, wide, m, true);
    }
    void fill(long first, long m, long sample, float *, float *normed, long line, float *both, long wide) const {
        conditions(first, m, sample, both, wide);
        of_kind(kind, [&](auto k) {
            for (long r = 0; r < m; r++) {
                float *out = normed + r * line;
                const float *scale = both + r * wide, *shift = scale + c;
                vec sum{};
                for (long j = 0; j < c; j += W) {
                    const vec v = value<k.value>(load(x + (first + r) * c + j));
                    store(out + j, v);
                    sum += v;
                }
                const vec inverse_std = all(centre(out, sum, c, eps));
                for (long j = 0; j < c; j += W) store(out + j, load(out + j) * inverse_std * load(scale + j) + load(shift + j));
            }
        });
    }
};

// What is added, [B, P, C]: x, or if there is a scale, [B, C], scale x + shift.
struct Residual {
    const float *x, *scale, *shift;
};

// out [B, P, O] = residual + down act(up norm + up_bias) + down_bias; up [H, C], down [O, H]. hidden: null, or what goes into act, [B, P, H].
// following: of out.
template <class Norm>
void perceptron_of(const Norm &norm, Residual residual, const float *up, const float *up_bias, const float *down, const float *down_bias,
                   float *out, float *hidden, Following following, long b, long p, long h, long o, long kind, long threads) {
    const long c = norm.c, line = c + PAD, wide = std::max(h, norm.scratch()) + PAD;
    const Chunks chunks(b, p);
    const Factor rise({up, c, c, h, true}, chunks.p, FIRST), fall({down, h, h, o, true}, chunks.p, SECOND);
    Moments moments(chunks, o, following);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        norm.make();
        rise.make();
        fall.make();
#pragma omp for schedule(dynamic)
        for (long q = 0; q < chunks.count; q++) {
            const long first = chunks.first(q), m = chunks.rows(q), sample = chunks.sample(q);
            float *normed = room(BUFFERS, CHUNK * (line + wide)), *active = normed + CHUNK * line;
            norm.fill(first, m, sample, nullptr, normed, line, active, wide);
            float *before = hidden ? hidden + first * h : active;
            const long step = hidden ? h : wide;
            times(normed, line, rise, before, step, m, false);
            of_kind(kind, [&](auto k) {
                for (long r = 0; r < m; r++)
                    for (long j = 0; j < h; j += W) {
                        const vec v = load(before + r * step + j) + load(up_bias + j);
                        if (hidden) store(before + r * step + j, v);
                        store(active + r * wide + j, value<k.value>(v));
                    }
            });
            const float *scale = residual.scale ? residual.scale + sample * o : nullptr, *shift = residual.shift + sample * o;
            for (long r = first; r < first + m; r++)
                for (long j = 0; j < o; j += W) {
                    vec v = load(residual.x + r * o + j);
                    if (scale) v = v * load(scale + j) + load(shift + j);
                    store(out + r * o + j, v + load(down_bias + j));
                }
            times(active, wide, fall, out + first * o, o, m, true);
            moments.activate(q, out + first * o, NONE);
        }
    }
    moments.finish();
}

// The gradients of perceptron_of from g, that of out: of the normalised field (dn [B, P, C]), weights and biases. hidden as perceptron_of left
// it, or null, then it is computed again. Of statistics over rows, mean [B, C], also the sums of dn over P with 1 and with a - mean, [B, C].
template <class Norm>
void perceptron_of_backward(const Norm &norm, const float *g, const float *hidden, const float *mean, const float *up, const float *up_bias,
                            const float *down, float *dn, float *d_up, float *d_up_bias, float *d_down, float *d_down_bias, float *sum,
                            float *covariance, long b, long p, long h, long o, long kind, long threads) {
    const long c = norm.c, line = c + PAD, wide = std::max(h, norm.scratch()) + PAD;
    const Chunks chunks(b, p);
    const long group = std::min((GROUP + threads - 1) / threads * threads, chunks.count);
    const Factor back({down, h, o, h, false}, chunks.p, FIRST), last({up, c, h, c, false}, chunks.p, SECOND);
    const Factor again({up, c, hidden ? 0 : c, hidden ? 0 : h, true}, chunks.p, THIRD); // room for nothing if it is not wanted
    float *totals = room(TOTALS, Outer::size(o, h) + Outer::size(h, c));
    const Outer of_down(o, h, d_down, totals), of_up(h, c, d_up, totals + Outer::size(o, h));
    const long rows = group * CHUNK, each = h + o + (Norm::OVER_ROWS ? 2 * c : 0);
    float *normed = room(BUFFERS, rows * ((Norm::OVER_ROWS ? 2 : 1) * line + (hidden ? 2 : 3) * wide));
    float *active = normed + rows * line, *dh = active + rows * wide, *computed = dh + rows * wide;
    float *a = Norm::OVER_ROWS ? hidden ? computed : computed + rows * wide : nullptr;
    std::vector<float> sums(chunks.count * each, 0.0f);
    if (!chunks.count) std::fill_n(d_up, h * c, 0.0f), std::fill_n(d_down, o * h, 0.0f);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        norm.make();
        back.make();
        last.make();
        if (!hidden) again.make();
        for (long base = 0; base < chunks.count; base += group) {
            const long end = std::min(base + group, chunks.count), begin = chunks.first(base);
#pragma omp for schedule(static, 1)
            for (long q = base; q < end; q++) {
                const long first = chunks.first(q), m = chunks.rows(q), sample = chunks.sample(q), at = first - begin;
                float *of_h = &sums[q * each], *of_o = of_h + h, *of_c = of_o + o;
                norm.fill(first, m, sample, a ? a + at * line : nullptr, normed + at * line, line, active + at * wide, wide);
                const float *before = hidden ? hidden + first * h : computed + at * wide;
                const long step = hidden ? h : wide;
                if (!hidden) {
                    for (long r = at; r < at + m; r++)
                        for (long j = 0; j < h; j += W) store(computed + r * wide + j, load(up_bias + j));
                    times(normed + at * line, line, again, computed + at * wide, wide, m, true);
                }
                times(g + first * o, o, back, dh + at * wide, wide, m, false);
                of_kind(kind, [&](auto k) {
                    for (long r = 0; r < m; r++)
                        for (long j = 0; j < h; j += W) {
                            const Activated v = activated<k.value>(load(before + r * step + j));
                            const vec d = load(dh + (at + r) * wide + j) * v.slope;
                            store(active + (at + r) * wide + j, v.value);
                            store(dh + (at + r) * wide + j, d);
                            store(of_h + j, load(of_h + j) + d);
                        }
                });
                for (long r = first; r < first + m; r++)
                    for (long j = 0; j < o; j += W) store(of_o + j, load(of_o + j) + load(g + r * o + j));
                times(dh + at * wide, wide, last, dn + first * c, c, m, false);
                for (long r = at; Norm::OVER_ROWS && r < at + m; r++)
                    for (long j = 0; j < c; j += W) {
                        const vec d = load(dn + (begin + r) * c + j);
                        store(of_c + j, load(of_c + j) + d);
                        store(of_c + c + j, load(of_c + c + j) + d * (load(a + r * line + j) - load(mean + sample * c + j)));
                    }
            }
            const long m = chunks.first(end - 1) + chunks.rows(end - 1) - begin;
            of_down.add(g + begin * o, o, active, wide, m, base == 0);
            of_up.add(dh, wide, normed, line, m, base == 0);
#pragma omp barrier
        }
        if (chunks.count) of_down.finish(), of_up.finish();
    }
    std::vector<double> of_all(h + o, 0.0), of_sample(b * 2 * c, 0.0);
    for (long q = 0; q < chunks.count; q++) {
        for (long j = 0; j < h + o; j++) of_all[j] += sums[q * each + j];
        for (long j = 0; j < each - h - o; j++) of_sample[chunks.sample(q) * 2 * c + j] += sums[q * each + h + o + j];
    }
    for (long j = 0; j < h; j++) d_up_bias[j] = float(of_all[j]);
    for (long j = 0; j < o; j++) d_down_bias[j] = float(of_all[h + j]);
    for (long i = 0; Norm::OVER_ROWS && i < b; i++)
        for (long j = 0; j < c; j++) sum[i * c + j] = float(of_sample[i * 2 * c + j]), covariance[i * c + j] = float(of_sample[(i * 2 + 1) * c + j]);
}

} // namespace

extern "C" {

// Of a = act(x), [B, P, C], also written to y if there is one (perhaps x): mean and variance over P, [B, C].
void moments(const float *x, float *y, float *mean, float *variance, const long *shape, long threads) {
    const long b = shape[0], p = shape[1], c = shape[2], kind = shape[3];
    // From about the mean, that of some points, so that a large one does not take the digits of the squares.
    const long some = std::min(32l, p);
    std::vector<float> origins(b * c, 0.0f);
    of_kind(kind, [&](auto k) {
        for (long i = 0; i < b * some; i++)
            for (long j = 0; j < c; j += W) {
                float *to = &origins[i / some * c + j];
                const vec a = value<k.value>(load(x + (i / some * p + i % some * p / some) * c + j));
                store(to, load(to) + a * (1.0f / some));
            }
        const auto sums = summed(b, p, c, threads, [&](long i, long first, long last, float *sum) {
            for (long j = 0; j < c; j += W) {
                const vec origin = load(&origins[i * c + j]);
                vec one{}, two{};
                for (long r = first; r < last; r++) {
                    const vec a = value<k.value>(load(x + r * c + j)), v = a - origin;
                    if (y) store(y + r * c + j, a);
                    one += v;
                    two += v * v;
                }
                store(sum + j, one);
                store(sum + c + j, two);
            }
        });
        for (long i = 0; i < b; i++)
            for (long j = 0; j < c; j++) {
                const double m = sums[i * 2 * c + j] / p;
                mean[i * c + j] = float(m + origins[i * c + j]);
                variance[i * c + j] = float(std::max(sums[(i * 2 + 1) * c + j] / p - m * m, 0.0)); // in this order NaN stays
            }
    });
}

// g += more, if there is more; sums over P of g and g (x - mean), [B, C].
void norm_sums(float *g, const float *more, const float *x, const float *mean, float *sum, float *covariance, const long *shape, long threads) {
    const long b = shape[0], p = shape[1], c = shape[2];
    const auto sums = summed(b, p, c, threads, [&](long i, long first, long last, float *to) {
        for (long j = 0; j < c; j += W) {
            const vec middle = load(mean + i * c + j);
            vec one{}, two{};
            for (long r = first; r < last; r++) {
                vec v = load(g + r * c + j);
                if (more) store(g + r * c + j, v += load(more + r * c + j));
                one += v;
                two += v * (load(x + r * c + j) - middle);
            }
            store(to + j, one);
            store(to + c + j, two);
        }
    });
    for (long i = 0; i < b; i++)
        for (long j = 0; j < c; j++) sum[i * c + j] = float(sums[i * 2 * c + j]), covariance[i * c + j] = float(sums[(i * 2 + 1) * c + j]);
}

// g = act'(x) (slope (act(x) - mean) + flat + scale g), per sample and channel.
void norm_gradient(float *g, const float *x, const float *mean, const float *scale, const float *slope, const float *flat, const long *shape,
                   long threads) {
    const long b = shape[0], p = shape[1], c = shape[2];
    of_kind(shape[3], [&](auto k) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (long r = 0; r < b * p; r++) {
            const long of = r / p * c;
            for (long j = 0; j < c; j += W) {
                const Activated a = activated<k.value>(load(x + r * c + j));
                const vec d = load(slope + of + j) * (a.value - load(mean + of + j)) + load(flat + of + j) + load(scale + of + j) * load(g + r * c + j);
                store(g + r * c + j, k.value == NONE ? d : d * a.slope);
            }
        }
    });
}

// y [B, P, n] = act(added + bias + w (scale x + shift)), x [B, P, k], w [n, k] (turned) or [k, n]. Perhaps null: scale and shift, [B, k]; bias;
// added, of y's shape (perhaps y) or, if it is the same for all samples, [P, n]; norm, of y.
// shape: B, P, k, n, turned, same, act.
void multiply(const float *x, const float *scale, const float *shift, const float *w, const float *bias, const float *added, float *y,
              const float *norm_weight, const float *norm_bias, float *norm_scale, float *norm_shift, const long *shape, float eps, long threads) {
    const long b = shape[0], p = shape[1], k = shape[2], n = shape[3], kind = shape[6], line = k + PAD;
    const bool turned = shape[4], same = shape[5];
    const Chunks chunks(b, p);
    const Factor factor({w, turned ? k : n, k, n, turned}, p, FIRST);
    Moments moments(chunks, n, {norm_weight, norm_bias, eps, norm_scale, norm_shift});
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        factor.make();
#pragma omp for schedule(dynamic)
        for (long q = 0; q < chunks.count; q++) {
            const long first = chunks.first(q), m = chunks.rows(q), sample = chunks.sample(q);
            const float *left = x + first * k;
            float *out = y + first * n;
            if (scale) {
                float *normed = room(BUFFERS, CHUNK * line);
                Affine{x, scale, shift, k, NONE}.fill(first, m, sample, nullptr, normed, line, nullptr, 0);
                left = normed;
            }
            if (bias || (added && added != y)) start(out, added ? added + (first - (same ? sample * p : 0)) * n : nullptr, bias, m, n);
            times(left, scale ? line : k, factor, out, n, m, added || bias);
            moments.activate(q, out, kind);
        }
    }
    moments.finish();
}

// y [B, P, n] = act(added + x^T w^T + bias) of planes x [B, k, P], w [n, k] (turned) or [k, n]; added (perhaps y) and bias perhaps null.
void from_planes(const float *x, const float *w, const float *bias, const float *added, float *y, const long *shape, long threads) {
    const long p = shape[1], k = shape[2], n = shape[3], kind = shape[5];
    const bool turned = shape[4];
    const Chunks chunks(shape[0], p);
    const Factor factor({w, turned ? k : n, k, n, turned}, 0, FIRST);
    Moments moments(chunks, n, {});
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        factor.make();
#pragma omp for schedule(dynamic)
        for (long q = 0; q < chunks.count; q++) {
            const long first = chunks.first(q), m = chunks.rows(q), sample = chunks.sample(q);
            float *out = y + first * n;
            if (bias || (added && added != y)) start(out, added ? added + first * n : nullptr, bias, m, n);
            panels(x + sample * k * p + first - sample * p, 1, p, factor.packed, m, k, n, n, {out, added || bias});
            moments.activate(q, out, kind);
        }
    }
}

// Planes y [B, n, P] = w x^T, x [B, P, k], w [n, k], k a multiple of W.
void to_planes(const float *x, const float *w, float *y, const long *shape, long threads) {
    const long b = shape[0], p = shape[1], k = shape[2], n = shape[3], each = (p + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 4)
    for (long task = 0; task < b * each; task++) {
        const long sample = task / each, first = task % each * COLUMNS, m = std::min(COLUMNS, p - first);
        const float *rows = x + (sample * p + first) * k;
        float *columns = room(PANEL, k * COLUMNS), *to = y + sample * n * p + first, *part = room(BUFFERS, m < COLUMNS ? n * COLUMNS : 0);
        for (long j = 0; j < k; j += W)
            for (long half = 0; half < COLUMNS; half += W) {
                vec v[W];
                for (long i = 0; i < W; i++) v[i] = half + i < m ? load(rows + (half + i) * k + j) : vec{};
                transpose(v);
                for (long i = 0; i < W; i++) store(columns + (j + i) * COLUMNS + half, v[i]);
            }
        // A sample's last points may be fewer than a panel is wide.
        const bool whole = m == COLUMNS;
        panel(w, columns, n, true, k, k, 1, COLUMNS, whole ? p : COLUMNS, {whole ? to : part, false});
        for (long r = 0; r < n && !whole; r++) std::memcpy(to + r * p, part + r * COLUMNS, 4 * m);
    }
}

// y = act(x), n numbers, a multiple of W.
void activate(const float *x, float *y, const long *shape, long threads) {
    of_kind(shape[1], [&](auto k) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (long i = 0; i < shape[0]; i += W) store(y + i, value<k.value>(load(x + i)));
    });
}

// dx = act'(x) g.
void activate_backward(const float *g, const float *x, float *dx, const long *shape, long threads) {
    of_kind(shape[1], [&](auto k) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (long i = 0; i < shape[0]; i += W) store(dx + i, load(g + i) * activated<k.value>(load(x + i)).slope);
    });
}

// Gradients of a weight, w [p, q] = sum over rows of g^T x, g [rows, p], x [rows, q], and of a bias [p], if there is one.
void outer(const float *g, const float *x, float *w, float *bias, const long *shape, long threads) {
    const long p = shape[1], q = shape[2];
    const Chunks chunks(1, shape[0], GROUP * CHUNK);
    const Outer total(p, q, w, room(TOTALS, Outer::size(p, q)));
    if (!chunks.count) std::fill_n(w, p * q, 0.0f);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        for (long i = 0; i < chunks.count; i++) total.add(g + chunks.first(i) * p, p, x + chunks.first(i) * q, q, chunks.rows(i), i == 0);
        if (chunks.count) total.finish();
    }
    if (!bias) return;
    const auto sums = summed(1, shape[0], p, threads, [&](long, long first, long last, float *sum) {
        for (long j = 0; j < p; j += W) {
            vec one{};
            for (long r = first; r < last; r++) one += load(g + r * p + j);
            store(sum + j, one);
        }
    });
    for (long j = 0; j < p; j++) bias[j] = float(sums[j]);
}

// out [B, P, O] = residual + down act(up (scale a + shift) + up_bias) + down_bias, a = first(x), [B, P, C]; up [H, C], down [O, H].
// hidden: null, or what goes into act, [B, P, H]. If there is a residual_scale, [B, C], the residual is that times it plus residual_shift.
// norm: that follows, of out, or null.
void perceptron(const float *x, const float *scale, const float *shift, const float *residual, const float *residual_scale,
                const float *residual_shift, const float *up, const float *up_bias, const float *down, const float *down_bias, float *out,
                float *hidden, const float *norm_weight, const float *norm_bias, float *norm_scale, float *norm_shift, const long *shape, float eps,
                long threads) {
    const Affine norm{x, scale, shift, shape[2], shape[5]};
    perceptron_of(norm, {residual, residual_scale, residual_shift}, up, up_bias, down, down_bias, out, hidden,
                  {norm_weight, norm_bias, eps, norm_scale, norm_shift}, shape[0], shape[1], shape[3], shape[4], shape[6], threads);
}

// The gradients of perceptron from g, that of out: of the normalised field (dn [B, P, C]; its sums over P with 1 and with a - mean, [B, C]),
// weights and biases. hidden as perceptron left it, or null, then it is computed again.
void perceptron_backward(const float *x, const float *g, const float *hidden, const float *scale, const float *shift, const float *mean,
                         const float *up, const float *up_bias, const float *down, float *dn, float *d_up, float *d_up_bias,
                         float *d_down, float *d_down_bias, float *sum, float *covariance, const long *shape, long threads) {
    const Affine norm{x, scale, shift, shape[2], shape[5]};
    perceptron_of_backward(norm, g, hidden, mean, up, up_bias, down, dn, d_up, d_up_bias, d_down, d_down_bias, sum, covariance, shape[0],
                           shape[1], shape[3], shape[4], shape[6], threads);
}

// As Conditional says it; shape: B, P, C, N, whether row is of samples, the kind of activation before the norm.
void conditional_norm(const float *x, const float *maps, const float *weight, const float *row, float *out, const long *shape, float eps,
                      long threads) {
    const Conditional norm(x, maps, weight, row, shape, eps, 2 * shape[2]);
    const Chunks chunks(shape[0], shape[1]);
    const long wide = 2 * norm.c + PAD;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        norm.make();
#pragma omp for schedule(static)
        for (long q = 0; q < chunks.count; q++) {
            const long first = chunks.first(q);
            norm.fill(first, chunks.rows(q), chunks.sample(q), nullptr, out + first * norm.c, norm.c, room(BUFFERS, CHUNK * wide), wide);
        }
    }
}

// Its gradients from g: of x, perhaps in g's place, of maps, if wanted, of the weight, turned ([N, 2 C]), and of row.
void conditional_norm_backward(const float *x, const float *g, const float *maps, const float *weight, const float *row, float *dx, float *d_maps,
                               float *d_weight, float *d_row, const long *shape, float eps, long threads) {
    const Conditional norm(x, maps, weight, row, shape, eps, shape[2]);
    const long b = shape[0], c = norm.c, n = norm.n, both = 2 * c, wide = both + PAD;
    const Chunks chunks(b, shape[1]);
    const long group = std::min((GROUP + threads - 1) / threads * threads, chunks.count);
    const Factor turned({weight, n, both, n, false}, chunks.p, FIRST);
    const Outer total_weight(n, both, d_weight, room(TOTALS, Outer::size(n, both)));
    float *buffer = room(BUFFERS, group * CHUNK * wide);
    std::vector<float> sums(chunks.count * both, 0.0f);
    if (!chunks.count) std::fill_n(d_weight, n * both, 0.0f);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        norm.make();
        if (d_maps) turned.make();
        for (long base = 0; base < chunks.count; base += group) {
            const long end = std::min(base + group, chunks.count), begin = chunks.first(base);
#pragma omp for schedule(static, 1)
            for (long q = base; q < end; q++) {
                const long first = chunks.first(q), m = chunks.rows(q);
                float *of_chunk = buffer + (first - begin) * wide, *of_row = &sums[q * both];
                norm.conditions(first, m, chunks.sample(q), of_chunk, wide);
                float *slope = room(PANEL, c);
                of_kind(norm.kind, [&](auto k) {
                    for (long r = 0; r < m; r++) {
                        const float *own = x + (first + r) * c, *grad = g + (first + r) * c;
                        float *gz = of_chunk + r * wide, *z = gz + c, *to = dx + (first + r) * c; // gz: the scale first
                        vec sum{}, one{}, two{};
                        for (long j = 0; j < c; j += W) {
                            const Activated a = activated<k.value>(load(own + j));
                            store(z + j, a.value);
                            store(slope + j, a.slope);
                            sum += a.value;
                        }
                        const float inverse_std = centre(z, sum, c, norm.eps);
                        for (long j = 0; j < c; j += W) {
                            const vec d = load(gz + j) * load(grad + j), v = load(z + j) * inverse_std;
                            store(gz + j, d);
                            store(z + j, v);
                            one += d;
                            two += d * v;
                        }
                        const vec mean = all(total(one) / c), covariance = all(total(two) / c);
                        for (long j = 0; j < c; j += W) {
                            const vec v = load(z + j), t = load(grad + j);
                            const vec d = (load(gz + j) - mean - v * covariance) * inverse_std;
                            store(to + j, k.value == NONE ? d : d * load(slope + j));
                            store(gz + j, t * v);
                            store(z + j, t);
                            store(of_row + j, load(of_row + j) + t * v);
                            store(of_row + c + j, load(of_row + c + j) + t);
                        }
                    }
                });
                if (d_maps) times(of_chunk, wide, turned, d_maps + first * n, n, m, false);
            }
            const long m = chunks.first(end - 1) + chunks.rows(end - 1) - begin;
            total_weight.add(maps + begin * n, n, buffer, wide, m, base == 0);
#pragma omp barrier
        }
        if (chunks.count) total_weight.finish();
    }
    const long samples = norm.sampled ? b : 1;
    std::vector<double> of_sample(samples * both, 0.0);
    for (long q = 0; q < chunks.count; q++)
        for (long j = 0; j < both; j++) of_sample[(norm.sampled ? chunks.sample(q) : 0) * both + j] += sums[q * both + j];
    for (long j = 0; j < samples * both; j++) d_row[j] = float(of_sample[j]);
}

// As perceptron and perceptron_backward, after a conditional norm; shape: B, P, C, N, whether row is of samples, the kind before the norm, H, O,
// the kind between the products.
void conditional_perceptron(const float *x, const float *maps, const float *weight, const float *row, const float *residual, const float *up,
                            const float *up_bias, const float *down, const float *down_bias, float *out, float *hidden, const long *shape,
                            float eps, long threads) {
    const Conditional norm(x, maps, weight, row, shape, eps, 2 * shape[2]);
    perceptron_of(norm, {residual, nullptr, nullptr}, up, up_bias, down, down_bias, out, hidden, {}, shape[0], shape[1], shape[6],
                  shape[7], shape[8], threads);
}

void conditional_perceptron_backward(const float *x, const float *maps, const float *weight, const float *row, const float *g,
                                     const float *hidden, const float *up, const float *up_bias, const float *down, float *dn, float *d_up,
                                     float *d_up_bias, float *d_down, float *d_down_bias, const long *shape, float eps, long threads) {
    const Conditional norm(x, maps, weight, row, shape, eps, 2 * shape[2]);
    perceptron_of_backward(norm, g, hidden, nullptr, up, up_bias, down, dn, d_up, d_up_bias, d_down, d_down_bias, nullptr, nullptr, shape[0],
                           shape[1], shape[6], shape[7], shape[8], threads);
}

} // extern "C"
