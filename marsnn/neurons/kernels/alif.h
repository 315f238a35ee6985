// alif_step of alif.py.   params: beta, rho, adaptation, threshold   state: v, a
#pragma once
#include "surrogate.h"

struct Neuron {
    enum { STATES = 2, PARAMS = 4, BETA = 0, RHO = 1, ADAPTATION = 2, THRESHOLD = 3 };

    static INLINE S step(S current, S* state, const S* p, const double*) {
        S h = p[BETA] * state[0] + current;
        S level = p[THRESHOLD] + p[ADAPTATION] * state[1];
        Mask fires = h >= level;
        S s = one_where(fires);
#if defined(RESET_ZERO)
        state[0] = select(fires, h * constant(0), h);
#else
        state[0] = select(fires, h - p[THRESHOLD], h);
#endif
        state[1] = p[RHO] * state[1] + s;
        return s;
    }

    static INLINE S back(S current, const S* before, const S* p, const double* k, S gs, S* g, Wide* gp) {
        S v = before[0], a = before[1];
        S h = p[BETA] * v + current;
        S level = p[THRESHOLD] + p[ADAPTATION] * a;
        S s = one_where(h >= level);
        gs = gs + g[1];
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
        S gx = gs * derivative(h - level, k[0]);
        gh = gh + gx;
        gp[THRESHOLD] += value(-gx);
        gp[ADAPTATION] += value(-gx * a);
        gp[RHO] += value(g[1] * a);
        gp[BETA] += value(gh * v);
        g[0] = gh * p[BETA];
        g[1] = g[1] * p[RHO] + -gx * p[ADAPTATION];
        return gh;
    }
};
