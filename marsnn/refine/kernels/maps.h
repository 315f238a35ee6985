// Several maps of one activation, which may be normalised first: y = W norm(x) + b, side by side.
#pragma once
#include "product.h"

struct Map {
    const Stored *weight, *bias;    // [rows, K], and [rows] or null
    long rows, width, repeats, at;  // blocks of `width` outputs are written so many times, from `at` on
};
struct Maps {
    const Stored* norm;  // [K] or null
    double eps;
    long K, outputs, count;
    Map map[5];
};

template <long R>
static void mapped(const Maps& p, const Stored* x, const Stored* residual, Stored* out, long threads,
                   Run run) {
    const long step = padded(p.K);
    F* n = (F*)malloc(R * step * sizeof(F));
    normalised<R>(x, p.norm, p.eps, p.K, n, step);
    long rows = 0;
    for (long m = 0; m < p.count; m++) rows += p.map[m].rows;
    in_pieces(run, threads, rows, p.K * sizeof(Stored), 1, [&](long from, long to) {
        const Map* map = p.map;
        long before = 0;
        for (long row = from; row < to; row++) {
            while (row - before >= map->rows) before += map++->rows;
            const long i = row - before;
            F y[R];
            dots<R>(map->weight + i * p.K, n, step, p.K, y);
            const long first = map->at + i / map->width * map->repeats * map->width + i % map->width;
            for (long r = 0; r < R; r++) {
                F value = y[r] + (map->bias ? widened(map->bias[i]) : 0);
                if (residual) value = rounded(value) + widened(residual[r * p.outputs + i]);
                for (long j = 0; j < map->repeats; j++)
                    out[r * p.outputs + first + j * map->width] = narrowed(value);
            }
        }
    });
    free(n);
}

// x [R, K] to out [R, outputs]; the residual [R, outputs], which may be null, is for one map without repeats
extern "C" void maps(const Maps* p, const Stored* x, const Stored* residual, Stored* out, long R,
                     long threads, Run run) {
    switch (R) {
        case 1: return mapped<1>(*p, x, residual, out, threads, run);
        case 2: return mapped<2>(*p, x, residual, out, threads, run);
        case 3: return mapped<3>(*p, x, residual, out, threads, run);
        default: return mapped<MOST>(*p, x, residual, out, threads, run);
    }
}
