// atmn_step of atmn.py.   params: V, tau   state: u   numbers: surrogate, fire_at, 1 / tau
#pragma once
#include "surrogate.h"

struct Neuron {
    enum { STATES = 1, PARAMS = 2, V = 0, TAU = 1 };

    // Dividing by a power of two is multiplying by its reciprocal, to the last bit.
    static INLINE S amplified(S u, const S* p, const double* k) {
#if defined(TAU_IS_POWER_OF_TWO)
        (void)p;
        return u * (C)k[2];
#else
        (void)k;
        return u / p[TAU];
#endif
    }

    static INLINE S step(S current, S* state, const S* p, const double* k) {
        S h = current + amplified(state[0], p, k);
        S theta = (C)k[1] * p[V];
        S s = one_where(h >= theta) - one_where(-h >= theta);
        state[0] = h - s * p[V];
        return s;
    }

    static INLINE S back(S current, const S* before, const S* p, const double* k, S gs, S* g, Wide* gp) {
        S u = amplified(before[0], p, k), h = current + u, theta = (C)k[1] * p[V];
        S s = one_where(h >= theta) - one_where(-h >= theta);
        S over = (h - theta) / p[V], under = (-h - theta) / p[V];
        S gh = g[0];
        gp[V] += value(-g[0] * s);
#if !defined(DETACH_RESET)
        gs = gs + -g[0] * p[V];
#endif
        S gunder = -gs * derivative(under, k[0]), gover = gs * derivative(over, k[0]);
        S dunder = gunder / p[V], dover = gover / p[V];
        gh = gh + -dunder;
        gh = gh + dover;
        gp[V] -= value(dunder) * value(under) + value(dover) * value(over) + value(dunder + dover) * (C)k[1];
        gp[TAU] += value(-gh * (u / p[TAU]));
        g[0] = amplified(gh, p, k);
        return gh;
    }
};
