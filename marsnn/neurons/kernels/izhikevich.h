// izhikevich_step of izhikevich.py.   params: none   state: v, u
// numbers: surrogate, dt, dt a, b, c, d, peak, peak - c
#pragma once
#include "surrogate.h"

struct Neuron {
    enum { STATES = 2, PARAMS = 0 };

    static INLINE S membrane(S v, S u, S current, const double* k) {
        return v + (C)k[1] * ((C)0.04 * v * v + (C)5 * v + (C)140 - u + current);
    }

    static INLINE S step(S current, S* state, const S*, const double* k) {
        S v = state[0], u = state[1], h = membrane(v, u, current, k);
        S w = u + (C)k[2] * ((C)k[3] * v - u);
        S s = one_where((h - (C)k[6]) / (C)k[7] >= constant(0));
        state[0] = h + s * ((C)k[4] - h);
        state[1] = w + s * (C)k[5];
        return s;
    }

    static INLINE S back(S current, const S* before, const S*, const double* k, S gs, S* g, Wide*) {
        S v = before[0], u = before[1], h = membrane(v, u, current, k);
        S x = (h - (C)k[6]) / (C)k[7];
        S s = one_where(x >= constant(0));
        S gw = g[1], gh = g[0] + -(g[0] * s);
#if !defined(DETACH_RESET)
        gs = gs + g[1] * (C)k[5];
        gs = gs + g[0] * ((C)k[4] - h);
#endif
        gh = gh + gs * derivative(x, k[0]) / (C)k[7];
        S gm = gw * (C)k[2], gd = gh * (C)k[1];
        g[1] = (gw + -gm) + -gd;
        g[0] = gm * (C)k[3] + gh;
        g[0] = g[0] + gd * (C)5;
        g[0] = g[0] + gd * ((C)0.04 * v);
        g[0] = g[0] + gd * v * (C)0.04;
        return gd;
    }
};
