// Products of small matrices that lie in the cache: blocks of rows and vectors held in registers.
//
//   F        double for DTYPE_float64, else float: what is computed in
//   Stored   what lies in the tensors: F, or bfloat16
//   V        LANES values of F side by side
#pragma once
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

#if defined(DTYPE_float64)
typedef double F;
typedef double Stored;
#elif defined(DTYPE_float32)
typedef float F;
typedef float Stored;
#elif defined(DTYPE_bfloat16)
typedef float F;
typedef uint16_t Stored;
#define REDUCED
#else
#error "define DTYPE_float32, DTYPE_float64 or DTYPE_bfloat16"
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define ROWS 6  // 6 x 4 sums, 4 values of b and one of a: 29 of 32 registers
#define COLS 4
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define ROWS 6
#define COLS 2
#else
#define VECTOR_BYTES 16
#define ROWS 6
#define COLS 2
#endif
typedef F V __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(F)), may_alias));
constexpr long LANES = VECTOR_BYTES / sizeof(F);

INLINE long padded(long n) { return (n + LANES - 1) / LANES * LANES; }
INLINE V load(const F* p) { return *(const V*)p; }
INLINE void store(F* p, V v) { *(V*)p = v; }

#if defined(DTYPE_float64)
typedef int64_t Lane;
#else
typedef int32_t Lane;
#endif
typedef Lane Picks __attribute__((vector_size(VECTOR_BYTES)));

// lane by lane: i -> f(i)
template <typename Function>
INLINE Picks picks(Function f) {
    Picks p = {};
    for (long i = 0; i < LANES; i++) p[i] = f(i);
    return p;
}
// lane i is a[p[i]], or b[p[i] - LANES]
INLINE V shuffled(V a, V b, Picks p) {
#if defined(__clang__)
    V made = {};
    for (long i = 0; i < LANES; i++) made[i] = p[i] < LANES ? a[p[i]] : b[p[i] - LANES];
    return made;
#else
    return __builtin_shuffle(a, b, p);
#endif
}
INLINE F sum(V v) {
    for (long s = LANES / 2; s; s /= 2) v += shuffled(v, v, picks([s](long i) { return i ^ s; }));
    return v[0];
}
INLINE V first(V v, long n) {  // lanes from n on become zero
    const Picks lane = picks([](long i) { return i; });
    const Picks kept = lane < (Picks{} + (Lane)n);
    Picks bits;
    memcpy(&bits, &v, sizeof(V));
    bits &= kept;
    memcpy(&v, &bits, sizeof(V));
    return v;
}

// ---- between tensors and what is computed in -------------------------------------------------------------

#if defined(REDUCED)
INLINE F widened(Stored x) {
    uint32_t bits = (uint32_t)x << 16;
    F value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE Stored narrowed(F x) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (Stored)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
INLINE F widened(Stored x) { return x; }
INLINE Stored narrowed(F x) { return x; }
#endif

// rows x n values at stride `step` into rows of `width` >= n, the rest of each row zero
static void gather(const Stored* from, long step, long rows, long n, F* to, long width) {
    for (long i = 0; i < rows; i++) {
        for (long j = 0; j < n; j++) to[i * width + j] = widened(from[i * step + j]);
        for (long j = n; j < width; j++) to[i * width + j] = 0;
    }
}
static void scatter(const F* from, long width, long rows, long n, Stored* to, long step) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < n; j++) to[i * step + j] = narrowed(from[i * width + j]);
}
template <long S>
static INLINE void swapped(V* row) {  // blocks of S x S across the diagonal, in all blocks of 2 S x 2 S
    const Picks low = picks([](long i) { return i & S ? LANES + i - S : i; });
    const Picks high = picks([](long i) { return i & S ? LANES + i : i + S; });
    for (long i = 0; i < LANES; i++)
        if (!(i & S)) {
            const V a = row[i], b = row[i + S];
            row[i] = shuffled(a, b, low);
            row[i + S] = shuffled(a, b, high);
        }
    if constexpr (S > 1) swapped<S / 2>(row);
}
// rows x n values of `from` [rows, width] to `to` [n, out], zeros where there are no rows
static void transpose(const F* from, long width, long rows, long n, F* to, long out) {
    for (long i = 0; i < out; i += LANES)
        for (long j = 0; j < n; j += LANES) {
            V block[LANES];
            for (long k = 0; k < LANES; k++) block[k] = i + k < rows ? load(from + (i + k) * width + j) : V{};
            swapped<LANES / 2>(block);
            for (long k = 0; k < LANES && j + k < n; k++) store(to + (j + k) * out + i, block[k]);
        }
}
// to[i, :] = scale[i] from[i, :]
static void scaled(const F* from, const F* scale, long rows, long width, F* to) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < width; j += LANES)
            store(to + i * width + j, scale[i] * load(from + i * width + j));
}
static F inner(const F* a, const F* b, long n) {  // n a multiple of LANES
    V total = {}, other = {};
    long j = 0;
    for (; j + LANES < n; j += 2 * LANES) {
        total += load(a + j) * load(b + j);
        other += load(a + j + LANES) * load(b + j + LANES);
    }
    if (j < n) total += load(a + j) * load(b + j);
    return sum(total + other);
}

// ---- c = a b, or c += a b --------------------------------------------------------------------------------

enum Shape {
    FULL,
    LOWER_A,  // a[i, k] is zero for k > i
    UPPER_A,  // a[i, k] is zero for k < i
    LOWER_C,  // c[i, j] is wanted for j <= i alone; the rest is left as it is or holds anything
};

template <int MR, int NV, bool ADD>
static void block(long k0, long k1, const F* a, long ar, long ac, const F* b, long ldb, F* c, long ldc) {
    V total[MR][NV];
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) total[i][v] = ADD ? load(c + i * ldc + v * LANES) : V{};
    for (long k = k0; k < k1; k++) {
        V row[NV];
        for (int v = 0; v < NV; v++) row[v] = load(b + k * ldb + v * LANES);
        for (int i = 0; i < MR; i++) {
            const F value = a[i * ar + k * ac];
            for (int v = 0; v < NV; v++) total[i][v] += value * row[v];
        }
    }
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) store(c + i * ldc + v * LANES, total[i][v]);
}

template <int NV, bool ADD>
static INLINE void some_rows(long rows, long k0, long k1, const F* a, long ar, long ac, const F* b, long ldb,
                             F* c, long ldc) {
    switch (rows) {
        case 1: return block<1, NV, ADD>(k0, k1, a, ar, ac, b, ldb, c, ldc);
        case 2: return block<2, NV, ADD>(k0, k1, a, ar, ac, b, ldb, c, ldc);
        case 3: return block<3, NV, ADD>(k0, k1, a, ar, ac, b, ldb, c, ldc);
        case 4: return block<4, NV, ADD>(k0, k1, a, ar, ac, b, ldb, c, ldc);
        case 5: return block<5, NV, ADD>(k0, k1, a, ar, ac, b, ldb, c, ldc);
        default: return block<ROWS, NV, ADD>(k0, k1, a, ar, ac, b, ldb, c, ldc);
    }
}

// a is m x k at strides (ar, ac), b is k x n in rows of ldb, c is m x n in rows of ldc; n a multiple of LANES
template <bool ADD>
static void product(Shape shape, long m, long n, long k, const F* a, long ar, long ac, const F* b, long ldb,
                    F* c, long ldc) {
    for (long j = 0; j < n; j += COLS * LANES) {
        const long vectors = (n - j) / LANES < COLS ? (n - j) / LANES : COLS;
        for (long i = 0; i < m; i += ROWS) {
            const long rows = m - i < ROWS ? m - i : ROWS;
            if (shape == LOWER_C && j > i + rows - 1) continue;
            const long k0 = shape == UPPER_A ? i : 0;
            const long k1 = shape == LOWER_A && i + rows < k ? i + rows : k;
            const F* from = a + i * ar;
            F* to = c + i * ldc + j;
            switch (vectors) {
                case 1: some_rows<1, ADD>(rows, k0, k1, from, ar, ac, b + j, ldb, to, ldc); break;
#if COLS > 2
                case 2: some_rows<2, ADD>(rows, k0, k1, from, ar, ac, b + j, ldb, to, ldc); break;
                case 3: some_rows<3, ADD>(rows, k0, k1, from, ar, ac, b + j, ldb, to, ldc); break;
#endif
                default: some_rows<COLS, ADD>(rows, k0, k1, from, ar, ac, b + j, ldb, to, ldc);
            }
        }
    }
}
