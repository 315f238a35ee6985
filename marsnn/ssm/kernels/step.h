// One token through the convolution, the update of the memory and the gate of an `SSDCore`.
//
//     u      = bias + sum_k weight[k] (token, then recent, newest first), through SiLU if asked for
//     S'     = decay S + b x^T            x, b, c the parts of u; decay = sigmoid(-(a + decay bias))
//     y      = (S'^T c + skip x) silu(z + gate bias)
//
// Layout: inputs [B, z | u | a], recent [K - 1, B, C] newest last, memory [B, H, N, P]. Weights in F.
#pragma once
#include <cmath>
#include <cstdlib>
#include "gemm.h"

struct Problem {
    long B, H, G, P, N, K;
    long silu, scaled;  // SiLU behind the convolution; what enters is scaled by 1 - decay
};

INLINE F sigmoid(F x) { return 1 / (1 + std::exp(-x)); }

// gate, skip may be null
extern "C" void forward(const Problem* q, const Stored* inputs, const F* weight, const F* bias,
                        const F* decay_bias, const F* gate, const F* skip, const Stored* recent,
                        const F* memory, Stored* y, Stored* recent_after, F* memory_after) {
    const Problem p = *q;
    const long inner = p.H * p.P, C = inner + 2 * p.G * p.N, z = gate ? inner : 0, all = z + C + p.H;
    const long Pw = padded(p.P);
    F* u = (F*)malloc((C + Pw) * sizeof(F));
    F* out = u + C;
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
        for (long h = 0; h < p.H; h++) {
            const F a = widened(token[C + h]) + decay_bias[h], decay = sigmoid(-a);
            const F entering = p.scaled ? sigmoid(a) : 1;
            const F *x = u + h * p.P, *b = u + inner + h / (p.H / p.G) * p.N, *c = b + p.G * p.N;
            const F* S = memory + (s * p.H + h) * p.N * p.P;
            F* T = memory_after + (s * p.H + h) * p.N * p.P;
            for (long i = 0; i < p.P; i++) out[i] = 0;
            for (long n = 0; n < p.N; n++) {
                const F key = entering * b[n], query = c[n];
                for (long i = 0; i < p.P; i++) {
                    const F value = decay * S[n * p.P + i] + key * x[i];
                    T[n * p.P + i] = value;
                    out[i] += query * value;
                }
            }
            Stored* to = y + s * inner + h * p.P;
            for (long i = 0; i < p.P; i++) {
                F value = out[i] + (skip ? skip[h] * x[i] : 0);
                if (gate) {
                    const F turned = widened(inputs[s * all + h * p.P + i]) + gate[h * p.P + i];
                    value *= turned * sigmoid(turned);
                }
                to[i] = narrowed(value);
            }
        }
    }
    free(u);
}
