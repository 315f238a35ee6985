// out = y * silu(z + bias), forward and back. Layout: y and out [L, B, D], z [L, B, D] at strides, bias [D].
#pragma once
#include "activation.h"

struct Problem {
    long L, B, D;
    int threads;
};

extern "C" void forward(const Problem* q, const Stored* y, const Stored* z, long zl, long zb, const F* bias,
                        Stored* out) {
    const Problem p = *q;
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (long row = 0; row < p.L * p.B; row++) {
        const Stored *own = y + row * p.D, *from = z + row / p.B * zl + row % p.B * zb;
        for (long j = 0; j < p.D; j += LANES) {
            const long n = p.D - j < LANES ? p.D - j : LANES;
            const V u = some(from + j, n) + some(bias + j, n);
            keep(out + row * p.D + j, some(own + j, n) * u * sigmoid(u), n);
        }
    }
}

// gbias [threads, D] are sums of each thread
extern "C" void backward(const Problem* q, const Stored* y, const Stored* z, long zl, long zb, const F* bias,
                         const Stored* g, Stored* gy, Stored* gz, F* gbias) {
    const Problem p = *q;
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (long thread = 0; thread < p.threads; thread++) {
        const long rows = p.L * p.B;
        F* sums = gbias + thread * p.D;
        for (long row = thread * rows / p.threads; row < (thread + 1) * rows / p.threads; row++) {
            const Stored *from = z + row / p.B * zl + row % p.B * zb;
            const long at = row * p.D;
            for (long j = 0; j < p.D; j += LANES) {
                const long n = p.D - j < LANES ? p.D - j : LANES;
                const V u = some(from + j, n) + some(bias + j, n), s = sigmoid(u);
                const V grad = some(g + at + j, n);
                keep(gy + at + j, grad * u * s, n);
                const V slope = grad * some(y + at + j, n) * s * (1 + u * (1 - s));
                keep(gz + at + j, slope, n);
                keep(sums + j, some(sums + j, n) + slope, n);
            }
        }
    }
}
