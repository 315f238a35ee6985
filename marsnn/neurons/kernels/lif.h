// lif_step of lif.py, and of plif.py.   params: beta, threshold   state: v
#pragma once
#include "surrogate.h"

struct Neuron {
    enum { STATES = 1, PARAMS = 2, BETA = 0, THRESHOLD = 1 };

    static INLINE S step(S current, S* state, const S* p, const double*) {
        S h = p[BETA] * state[0] + current;
        Mask fires = h >= p[THRESHOLD];
#if defined(RESET_ZERO)
        state[0] = select(fires, h * constant(0), h);
#else
        state[0] = select(fires, h - p[THRESHOLD], h);
#endif
        return one_where(fires);
    }

    // In: gradients of the spike and of the state after. Out: of the state before (in g) and of the current.
    static INLINE S back(S current, const S* before, const S* p, const double* k, S gs, S* g, Wide* gp) {
        S v = before[0], theta = p[THRESHOLD];
        S h = p[BETA] * v + current;
        S s = one_where(h >= theta);
#if defined(RESET_ZERO)
        S gh = g[0] * ((C)1 - s);
#if !defined(DETACH_RESET)
        gs = gs + -(g[0] * h);
#endif
#else
        S gh = g[0];
        gp[THRESHOLD] += value(-g[0] * s);
#if !defined(DETACH_RESET)
        gs = gs + -g[0] * theta;
#endif
#endif
        S gx = gs * derivative(h - theta, k[0]);
        gh = gh + gx;
        gp[THRESHOLD] += value(-gx);
        gp[BETA] += value(gh * v);
        g[0] = gh * p[BETA];
        return gh;
    }
};
