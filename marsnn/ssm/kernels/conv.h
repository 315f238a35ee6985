// A causal convolution over tokens, each channel by itself, forward and back.
//
//     u[l] = bias + sum_k weight[k] x[l - k]        k = 0 .. K - 1, and k <= seen[l]
//     y    = u, or silu(u) = u sigmoid(u)
//
// Tokens before the first are `before`, the newest last. Layout: [L, B, D]; weight [K, D]; before [K - 1, B, D];
// seen [L, B] is how many tokens back a token may look, or null for no limit.
#pragma once
#include "activation.h"

constexpr int MOST = 16;  // taps

struct Problem {
    long L, B, D, K, silu;
    int threads;
};

struct Rows {
    const Stored* data;
    long token, sample;
    const Stored* at(long l, long b) const { return data + l * token + b * sample; }
};

static const Stored* earlier(const Problem& p, Rows x, const Stored* before, long l, long b) {
    return l >= 0 ? x.at(l, b) : before ? before + ((p.K - 1 + l) * p.B + b) * p.D : nullptr;
}

struct Taps {  // what one token sees
    const Stored* x[MOST];
    const F* weight[MOST];
    int used = 0;

    void look(const Problem& p, Rows rows, const Stored* before, const int32_t* seen, const F* weights, long l,
              long b) {
        used = 0;
        for (long k = 0; k < p.K && !(seen && k > seen[l * p.B + b]); k++) {
            const Stored* from = earlier(p, rows, before, l - k, b);
            if (!from) break;
            x[used] = from;
            weight[used++] = weights + k * p.D;
        }
    }
    INLINE V sum(const F* bias, long d, long n) const {
        V total = bias ? some(bias + d, n) : V{};
        if (used == 4) {
            for (int k = 0; k < 4; k++) total += some(weight[k] + d, n) * some(x[k] + d, n);
            return total;
        }
        for (int k = 0; k < used; k++) total += some(weight[k] + d, n) * some(x[k] + d, n);
        return total;
    }
};

// to[l] = made(u[l], l, b, d, n), for the n channels from d on
template <class Made>
static void each_token(const Problem& p, Rows rows, const F* weight, const F* bias, const Stored* before,
                       const int32_t* seen, Stored* to, Made made) {
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (long l = 0; l < p.L; l++)
        for (long b = 0; b < p.B; b++) {
            Taps taps;
            taps.look(p, rows, before, seen, weight, l, b);
            Stored* row = to + (l * p.B + b) * p.D;
            for (long d = 0; d < p.D; d += LANES) {
                const long n = p.D - d < LANES ? p.D - d : LANES;
                keep(row + d, made(taps.sum(bias, d, n), l, b, d, n), n);
            }
        }
}

extern "C" void forward(const Problem* q, const Stored* x, long xl, long xb, const F* weight, const F* bias,
                        const Stored* before, const int32_t* seen, Stored* y) {
    const bool silu = q->silu;
    each_token(*q, {x, xl, xb}, weight, bias, before, seen, y,
               [=](V u, long, long, long, long) { return silu ? u * sigmoid(u) : u; });
}

// gu[l] = gy[l] * silu'(u[l]), u made again
extern "C" void before_silu(const Problem* q, const Stored* x, long xl, long xb, const F* weight, const F* bias,
                            const Stored* before, const int32_t* seen, const Stored* gy, long gl, long gb,
                            Stored* gu) {
    const Rows grads = {gy, gl, gb};
    each_token(*q, {x, xl, xb}, weight, bias, before, seen, gu, [=](V u, long l, long b, long d, long n) {
        const V s = sigmoid(u);
        return some(grads.at(l, b) + d, n) * s * (1 + u * (1 - s));
    });
}

// gweight [threads, K, D] and gbias [threads, D] are sums of each thread; gbefore may be null
extern "C" void backward(const Problem* q, const Stored* x, long xl, long xb, const F* weight,
                         const Stored* before, const int32_t* seen, const Stored* gy, long gl, long gb,
                         Stored* gx, F* gweight, F* gbias, F* gbefore) {
    const Problem p = *q;
    const Rows rows = {x, xl, xb}, grads = {gy, gl, gb};
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (long thread = 0; thread < p.threads; thread++) {
        F *gw = gweight + thread * p.K * p.D, *gs = gbias + thread * p.D;
        for (long l = thread * p.L / p.threads; l < (thread + 1) * p.L / p.threads; l++)
            for (long b = 0; b < p.B; b++) {
                const Stored* g = grads.at(l, b);
                for (long d = 0; d < p.D; d++) gs[d] += widened(g[d]);
                for (long k = 0; k < p.K && !(seen && k > seen[l * p.B + b]); k++) {
                    const Stored* from = earlier(p, rows, before, l - k, b);
                    if (!from) break;
                    F* to = gw + k * p.D;
                    for (long d = 0; d < p.D; d++) to[d] += widened(g[d]) * widened(from[d]);
                }
                const Stored* later[MOST];
                const F* weights[MOST];
                int used = 0;
                for (long k = 0; k < p.K && l + k < p.L; k++)
                    if (!(seen && k > seen[(l + k) * p.B + b])) {
                        later[used] = grads.at(l + k, b);
                        weights[used++] = weight + k * p.D;
                    }
                Stored* to = gx + (l * p.B + b) * p.D;
                if (used == 4) {
                    const Stored *g0 = later[0], *g1 = later[1], *g2 = later[2], *g3 = later[3];
                    const F *w0 = weights[0], *w1 = weights[1], *w2 = weights[2], *w3 = weights[3];
                    for (long d = 0; d < p.D; d++)
                        to[d] = narrowed(w0[d] * widened(g0[d]) + w1[d] * widened(g1[d]) +
                                         w2[d] * widened(g2[d]) + w3[d] * widened(g3[d]));
                } else {
                    for (long d = 0; d < p.D; d++) {
                        F total = 0;
                        for (int k = 0; k < used; k++) total += weights[k][d] * widened(later[k][d]);
                        to[d] = narrowed(total);
                    }
                }
            }
    }
    if (!gbefore) return;
    for (long j = 0; j < p.K - 1; j++)  // token j - (K - 1)
        for (long b = 0; b < p.B; b++) {
            F* to = gbefore + (j * p.B + b) * p.D;
            for (long d = 0; d < p.D; d++) to[d] = 0;
            for (long l = 0; l <= j && l < p.L; l++) {
                const long k = l + (p.K - 1) - j;
                if (k >= p.K || (seen && k > seen[l * p.B + b])) continue;
                const Stored* g = grads.at(l, b);
                for (long d = 0; d < p.D; d++) to[d] += weight[k * p.D + d] * widened(g[d]);
            }
        }
}
