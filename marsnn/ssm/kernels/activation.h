// Vectors of tensors, and SiLU on them.
#pragma once
#include "gemm.h"

// n <= LANES values of a tensor, zeros behind them
INLINE V some(const Stored* from, long n) {
#if !defined(REDUCED)
    if (n == LANES) return load(from);
#endif
    V v = {};
    for (long i = 0; i < n; i++) v[i] = widened(from[i]);
    return v;
}
INLINE void keep(Stored* to, V v, long n) {
#if !defined(REDUCED)
    if (n == LANES) return store(to, v);
#endif
    for (long i = 0; i < n; i++) to[i] = narrowed(v[i]);
}
#if defined(REDUCED)  // weights and sums, in F
INLINE V some(const F* from, long n) {
    if (n == LANES) return load(from);
    V v = {};
    for (long i = 0; i < n; i++) v[i] = from[i];
    return v;
}
INLINE void keep(F* to, V v, long n) {
    if (n == LANES) return store(to, v);
    for (long i = 0; i < n; i++) to[i] = v[i];
}
#endif

// e^x within two units in the last place; beyond the finite numbers it stays at their ends. x = n ln 2 + r, and
// the series of e^r for |r| <= ln 2 / 2 to where the next term is below half a unit
INLINE V exponential(V x) {
#if defined(DTYPE_float64)
    const F low = -708, high = 709, shift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds
    const F ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    constexpr int TERMS = 13, BITS = 52, BIAS = 1023;
#else
    const F low = -87, high = 88, shift = 12582912.0f;  // 1.5 * 2^23
    const F ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    constexpr int TERMS = 7, BITS = 23, BIAS = 127;
#endif
    x = x < low ? V{} + low : x;
    x = x > high ? V{} + high : x;
    const V n = (x * (F)1.44269504088896340736 + shift) - shift;
    const V r = (x - n * ln2_high) - n * ln2_low;
    F factor[TERMS + 1];
    factor[0] = 1;
    for (int k = 1; k <= TERMS; k++) factor[k] = factor[k - 1] / k;
    V sum = V{} + factor[TERMS];
    for (int k = TERMS - 1; k >= 0; k--) sum = sum * r + factor[k];
    const Picks power = (__builtin_convertvector(n, Picks) + BIAS) << BITS;
    V scale;
    memcpy(&scale, &power, sizeof(V));
    return sum * scale;
}
INLINE V sigmoid(V x) { return 1 / (1 + exponential(-x)); }
