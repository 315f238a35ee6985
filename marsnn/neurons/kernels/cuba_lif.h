// cuba_lif_step of cuba_lif.py.   params: alpha, beta, threshold   state: v, i
#pragma once
#include "surrogate.h"

struct Neuron {
    enum { STATES = 2, PARAMS = 3, ALPHA = 0, BETA = 1, THRESHOLD = 2 };

    static INLINE S step(S current, S* state, const S* p, const double*) {
        S i = p[ALPHA] * state[1] + current;
        S h = p[BETA] * state[0] + i;
        Mask fires = h >= p[THRESHOLD];
#if defined(RESET_ZERO)
        state[0] = select(fires, h * constant(0), h);
#else
        state[0] = select(fires, h - p[THRESHOLD], h);
#endif
        state[1] = i;
        return one_where(fires);
    }

    static INLINE S back(S current, const S* before, const S* p, const double* k, S gs, S* g, Wide* gp) {
        S i = p[ALPHA] * before[1] + current;
        S h = p[BETA] * before[0] + i;
        S s = one_where(h >= p[THRESHOLD]);
#if defined(RESET_ZERO)
        S gh = g[0] * ((C)1 - s);
#if !defined(DETACH_RESET)
        gs = gs + -(g[0] * h);
#endif
#else
        S gh = g[0];
        gp[THRESHOLD] += value(-g[0] * s);
#if !defined(DETACH_RESET)
        gs = gs + -g[0] * p[THRESHOLD];
#endif
#endif
        S gx = gs * derivative(h - p[THRESHOLD], k[0]);
        gh = gh + gx;
        S gi = g[1] + gh;
        gp[THRESHOLD] += value(-gx);
        gp[BETA] += value(gh * before[0]);
        gp[ALPHA] += value(gi * before[1]);
        g[0] = gh * p[BETA];
        g[1] = gi * p[ALPHA];
        return gi;
    }
};
