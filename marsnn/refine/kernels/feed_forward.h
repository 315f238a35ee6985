// Llama's feed-forward net for a few tokens: y = x + W_down sparse(silu(W_gate n) * W_up n), n = norm(x).
//
// W_down [D, N] is read whole, or, transposed and each row padded to whole vectors [N, width], in those rows
// whose activation stays: threads take columns of them, so that nothing is added up between threads.
#pragma once
#include "kept.h"

struct Down {
    const Stored *weight, *bias;  // [D, N]; [D] or null
    const Stored* rows;           // [N, width], or null: read the weight whole
    long N, D, width;
    long choice, number;  // what stays: see kept.h
    double level;
};
struct FeedForward {
    const Stored *norm, *gate, *up, *gate_bias, *up_bias;  // [D], [N, D] twice, biases [N] or null
    double eps;
    Down down;
};

constexpr long BLOCK = VECTOR_BYTES == 64 ? 18 : 10;  // vectors of sums held in registers
constexpr long AHEAD = 3;                             // rows that are fetched before their turn
constexpr long LINE = 64 / sizeof(Stored);

// out = sum_i value[i] rows[index[i]] in NV vectors of columns
template <long NV>
static void gathered(const Stored* rows, long width, const int32_t* index, const F* value, long count,
                     F* out) {
    V total[NV] = {};
    for (long i = 0; i < count; i++) {
        const Stored* next = rows + index[i + AHEAD < count ? i + AHEAD : i] * width;
        for (long at = 0; at < NV * LANES; at += LINE) __builtin_prefetch(next + at);
        const Stored* row = rows + index[i] * width;
        for (long v = 0; v < NV; v++) total[v] += value[i] * wide(row + v * LANES);
    }
    for (long v = 0; v < NV; v++) store(out + v * LANES, total[v]);
}
template <long NV = BLOCK>
static void gather_block(long vectors, const Stored* rows, long width, const int32_t* index, const F* value,
                         long count, F* out) {
    if (!vectors) return;
    if (vectors == NV) return gathered<NV>(rows, width, index, value, count, out);
    if constexpr (NV > 1) gather_block<NV - 1>(vectors, rows, width, index, value, count, out);
}

INLINE void put(Stored* to, F y, const Stored* bias, const Stored* residual, long d) {
    if (bias) y += widened(bias[d]);
    to[d] = narrowed(residual ? rounded(y) + widened(residual[d]) : y);
}

// the product with h [R, padded N], of which what doesn't stay becomes zero
template <long R>
static void down_of(const Down& p, F* h, const Stored* residual, Stored* out, long threads, Run run) {
    const long step = padded(p.N), vectors = p.width / LANES;
    int32_t* index = (int32_t*)malloc((p.N + 1) * sizeof(int32_t));
    F* value = (F*)malloc((p.N + 1 + padded(p.D)) * sizeof(F));
    F* sums = value + p.N + 1;
    const long fewest = (vectors + BLOCK - 1) / BLOCK, blocks = fewest < threads ? threads : fewest;
    for (long r = 0; r < R; r++) {
        F* row = h + r * step;
        if (!p.rows && p.choice == ALL) continue;
        const long count = kept(row, p.N, p.choice, p.number, (F)p.level, index, value);
        const Stored* add = residual ? residual + r * p.D : nullptr;
        if (p.rows) {
            share(run, threads, blocks, [&](long b) {
                const long from = vectors * b / blocks, to = vectors * (b + 1) / blocks;
                gather_block(to - from, p.rows + from * LANES, p.width, index, value, count,
                             sums + from * LANES);
                for (long d = from * LANES; d < to * LANES && d < p.D; d++)
                    put(out + r * p.D, sums[d], p.bias, add, d);
            });
        } else {
            memset(row, 0, step * sizeof(F));
            for (long i = 0; i < count; i++) row[index[i]] = value[i];
        }
    }
    if (!p.rows)
        in_pieces(run, threads, p.D, p.N * sizeof(Stored), 1, [&](long from, long to) {
            for (long d = from; d < to; d++) {
                F y[R];
                dots<R>(p.weight + d * p.N, h, step, p.N, y);
                for (long r = 0; r < R; r++)
                    put(out + r * p.D, y[r], p.bias, residual ? residual + r * p.D : nullptr, d);
            }
        });
    free(index);
    free(value);
}

template <long R>
static void down_alone(const Down& p, const Stored* x, Stored* out, long threads, Run run) {
    F* h = (F*)malloc(R * padded(p.N) * sizeof(F));
    normalised<R>(x, nullptr, 0, p.N, h, padded(p.N));
    down_of<R>(p, h, nullptr, out, threads, run);
    free(h);
}

template <long R>
static void whole(const FeedForward& p, const Stored* x, Stored* out, long threads, Run run) {
    const long D = p.down.D, N = p.down.N, step = padded(D), inner = padded(N);
    F* h = (F*)calloc(2 * R * inner + R * step, sizeof(F));
    F *up = h + R * inner, *n = up + R * inner;
    normalised<R>(x, p.norm, p.eps, D, n, step);
    // in whole vectors, so that no two threads meet in one
    in_pieces(run, threads, inner, 2 * D * sizeof(Stored), LANES, [&](long from, long to) {
        for (long i = from; i < to && i < N; i++) {
            F a[R], b[R];
            dots<R>(p.gate + i * D, n, step, D, a);
            dots<R>(p.up + i * D, n, step, D, b);
            for (long r = 0; r < R; r++) {
                h[r * inner + i] = rounded(a[r] + (p.gate_bias ? widened(p.gate_bias[i]) : 0));
                up[r * inner + i] = rounded(b[r] + (p.up_bias ? widened(p.up_bias[i]) : 0));
            }
        }
        for (long r = 0; r < R; r++)
            for (long i = from; i < to; i += LANES) {
                const V gate = load(h + r * inner + i), turned = gate * sigmoid(gate);
                for (long j = i; j < i + LANES; j++)
                    h[r * inner + j] = rounded(rounded(turned[j - i]) * up[r * inner + j]);
            }
    });
    down_of<R>(p.down, h, x, out, threads, run);
    free(h);
}

// the second product alone, without norm and residual: x [R, N] to out [R, D]
extern "C" void down(const Down* p, const Stored* x, Stored* out, long R, long threads, Run run) {
    switch (R) {
        case 1: return down_alone<1>(*p, x, out, threads, run);
        case 2: return down_alone<2>(*p, x, out, threads, run);
        case 3: return down_alone<3>(*p, x, out, threads, run);
        default: return down_alone<MOST>(*p, x, out, threads, run);
    }
}
// x [R, D] to out [R, D]
extern "C" void feed_forward(const FeedForward* p, const Stored* x, Stored* out, long R, long threads,
                             Run run) {
    switch (R) {
        case 1: return whole<1>(*p, x, out, threads, run);
        case 2: return whole<2>(*p, x, out, threads, run);
        case 3: return whole<3>(*p, x, out, threads, run);
        default: return whole<MOST>(*p, x, out, threads, run);
    }
}
