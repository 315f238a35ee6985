// One token through the convolution, the update of the memory and the gate of an `SSDCore`.
//
//     u      = bias + sum_k weight[k] (token, then recent, newest first), through SiLU if asked for
//     b, c   turned by the token's position, where there is a RoPE
//     S'     = decay S + b x^T            x, b, c the parts of u; decay = sigmoid(-(a + decay bias))
//     y      = (S'^T c + skip x) silu(z + gate bias)
//
// Layout: inputs [B, z | u | a], recent [K - 1, B, C] newest last, memory [B, H, N, P], position [B]. Weights
// in F. What comes after may lie where it was before.
#pragma once
#include <cmath>
#include <cstdlib>
#include "gemm.h"
#include "share.h"

struct Problem {
    long B, H, G, P, N, K;
    long silu, scaled;  // SiLU behind the convolution; what enters is scaled by 1 - decay
    long threads;
};

INLINE F sigmoid(F x) { return 1 / (1 + std::exp(-x)); }

// value i and value i + N / 2 of each vector turn by position frequency[i]; as `rotated` in ssd.py
static void rotate(F* vectors, long count, long N, int64_t position, const double* frequency) {
    const long half = N / 2;
    for (long i = 0; i < half; i++) {
        const double angle = (double)position * frequency[i];
        const F turn = (F)std::cos(angle), lift = (F)std::sin(angle);
        for (long g = 0; g < count; g++) {
            F* v = vectors + g * N + i;
            const F first = v[0], second = v[half];
            v[0] = first * turn - second * lift;
            v[half] = second * turn + first * lift;
        }
    }
}

// one head: memory S to T, output [P] to y; z and gate may be null
static void head(const Problem& p, const F* x, const F* b, const F* c, F a, const F* S, F* T, F skip,
                 const Stored* z, const F* gate, F* out, Stored* y) {
    const F decay = sigmoid(-a), entering = p.scaled ? sigmoid(a) : 1;
    for (long i = 0; i < p.P; i++) out[i] = 0;
    for (long n = 0; n < p.N; n++) {
        const F key = entering * b[n], query = c[n];
#pragma omp simd  // S and T may be one, which a compiler can't know
        for (long i = 0; i < p.P; i++) {
            const F value = decay * S[n * p.P + i] + key * x[i];
            T[n * p.P + i] = value;
            out[i] += query * value;
        }
    }
    for (long i = 0; i < p.P; i++) {
        F value = out[i] + skip * x[i];
        if (gate) {
            const F turned = widened(z[i]) + gate[i];
            value *= turned * sigmoid(turned);
        }
        y[i] = narrowed(value);
    }
}

// gate, skip, frequency [N / 2] may be null
extern "C" void forward(const Problem* q, const Stored* inputs, const F* weight, const F* bias,
                        const F* decay_bias, const F* gate, const F* skip, const double* frequency,
                        const int64_t* position, const Stored* recent, const F* memory, Stored* y,
                        Stored* recent_after, F* memory_after, Run run) {
    const Problem p = *q;
    const long inner = p.H * p.P, C = inner + 2 * p.G * p.N, z = gate ? inner : 0, all = z + C + p.H;
    F* u = (F*)malloc((C + inner) * sizeof(F));
    for (long s = 0; s < p.B; s++) {
        const Stored* token = inputs + s * all + z;
        for (long i = 0; i < C; i++) u[i] = bias[i] + weight[i] * widened(token[i]);
        for (long k = 1; k < p.K; k++) {
            const Stored* past = recent + ((p.K - 1 - k) * p.B + s) * C;
            for (long i = 0; i < C; i++) u[i] += weight[k * C + i] * widened(past[i]);
        }
        if (p.silu)
            for (long i = 0; i < C; i++) u[i] *= sigmoid(u[i]);
        for (long i = 0; i < C; i++) u[i] = widened(narrowed(u[i]));
        for (long k = 1; k < p.K; k++) {  // the window moves on by one
            Stored* to = recent_after + ((k - 1) * p.B + s) * C;
            const Stored* from = k + 1 < p.K ? recent + (k * p.B + s) * C : token;
            memcpy(to, from, C * sizeof(Stored));
        }
        if (frequency) rotate(u + inner, 2 * p.G, p.N, position[s], frequency);
        share(run, p.threads, p.H, [&](long h) {
            const F *b = u + inner + h / (p.H / p.G) * p.N, *c = b + p.G * p.N;
            const long at = (s * p.H + h) * p.N * p.P;
            head(p, u + h * p.P, b, c, widened(token[C + h]) + decay_bias[h], memory + at, memory_after + at,
                 skip ? skip[h] : 0, inputs + s * all + h * p.P, gate ? gate + h * p.P : nullptr,
                 u + C + h * p.P, y + s * inner + h * p.P);
        });
    }
    free(u);
}
