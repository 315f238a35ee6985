// Products of weights with the activation of a few tokens: what counts is how fast weights come from memory.
//
//   Stored   weights and activations as they lie in tensors     F   what is computed in
//   R        tokens, of samples that are decoded side by side: 1 to MOST, known to the compiler
#pragma once
#include <cmath>
#include <cstdlib>
#include "activation.h"
#include "share.h"

constexpr long MOST = 4;

constexpr long FORWARD = 4096;   // bytes ahead that are asked for: a page, which hardware stops at
constexpr long PIECE = 1 << 16;  // bytes of weights that a thread takes at a time

// calls work(from, to) for parts of 0 to n, multiples of `whole` but for the last, each with `bytes` for one
template <typename Work>
static void in_pieces(Run run, long threads, long n, long bytes, long whole, const Work& work) {
    const long size = (PIECE / bytes / whole + 1) * whole;
    share(run, threads, (n + size - 1) / size, [&](long i) {
        work(i * size, (i + 1) * size < n ? (i + 1) * size : n);
    });
}

INLINE V wide(const Stored* p) {
#if defined(REDUCED)
    typedef uint16_t Half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
    typedef uint32_t Whole __attribute__((vector_size(VECTOR_BYTES)));
    const Whole bits = __builtin_convertvector(*(const Half*)p, Whole) << 16;
    V v;
    memcpy(&v, &bits, sizeof(V));
    return v;
#else
    return load(p);
#endif
}

INLINE F rounded(F x) { return widened(narrowed(x)); }

// out[r] = w . x[r], for r of R; x in rows of `step`, zeros behind its K values
template <long R>
INLINE void dots(const Stored* w, const F* x, long step, long K, F* out) {
    constexpr long WAYS = R > 2 ? 2 : 4;  // sums that don't wait for one another
    V total[R][WAYS] = {};
    long k = 0;
    for (; k + WAYS * LANES <= K; k += WAYS * LANES)
        for (long j = 0; j < WAYS; j++) {
            const V v = wide(w + k + j * LANES);
            __builtin_prefetch((const char*)(w + k + j * LANES) + FORWARD);
            for (long r = 0; r < R; r++) total[r][j] += v * load(x + r * step + k + j * LANES);
        }
    for (; k < K; k += LANES) {
        const V v = K - k < LANES ? some(w + k, K - k) : wide(w + k);
        for (long r = 0; r < R; r++) total[r][0] += v * load(x + r * step + k);
    }
    for (long r = 0; r < R; r++) {
        for (long j = 1; j < WAYS; j++) total[r][0] += total[r][j];
        out[r] = sum(total[r][0]);
    }
}

// RMSNorm of x [R, K] to rows of `step`, zeros behind them, rounded where Llama's rounds; without weight, x
template <long R>
static void normalised(const Stored* x, const Stored* weight, double eps, long K, F* to, long step) {
    for (long r = 0; r < R; r++) {
        F* row = to + r * step;
        F squares = 0;
        for (long k = 0; k < K; k++) row[k] = widened(x[r * K + k]);
        for (long k = K; k < step; k++) row[k] = 0;
        if (!weight) continue;
        squares = inner(row, row, step) / K;
        const F scale = 1 / std::sqrt(squares + (F)eps);
        for (long k = 0; k < K; k++) row[k] = rounded(widened(weight[k]) * rounded(row[k] * scale));
    }
}
