// integer_lif_step of integer_lif.py, and TernaryLIF.   params: beta, threshold   state: v
// numbers: surrogate, fire_at   MAX_LEVEL is D; SIGNED for spikes of both signs
#pragma once
#include "surrogate.h"

struct Neuron {
    enum { STATES = 1, PARAMS = 2, BETA = 0, THRESHOLD = 1 };

    static INLINE S level(int m, const S* p, const double* k) { return (C)(m + k[1]) * p[THRESHOLD]; }

    static INLINE Wide reached(S h, const S* p, const double* k) {
        Wide total = wide(0);
        for (int m = 0; m < MAX_LEVEL; m++) total += select(h >= level(m, p, k), wide(1), wide(0));
        return total;
    }

    static INLINE void spike(S h, const S* p, const double* k, S* s, S* fired) {
        Wide above = reached(h, p, k), below = wide(0);
#if defined(SIGNED)
        below = reached(-h, p, k);
#endif
        *s = rounded_to(above - below);
        *fired = one_where(above + below > wide(0));
    }

    static INLINE S step(S current, S* state, const S* p, const double* k) {
        S h = p[BETA] * state[0] + current, s, fired;
        spike(h, p, k, &s, &fired);
#if defined(RESET_ZERO)
        state[0] = h * ((C)1 - fired);
#else
        state[0] = h - s * p[THRESHOLD];
#endif
        return s;
    }

    // The gradient of h through the levels that h may reach; gfired goes to the first of them alone.
    static INLINE S through_levels(S h, S gh, S gs, S gfired, const S* p, const double* k, Wide* gp) {
        for (int m = MAX_LEVEL - 1; m >= 0; m--) {
            S x = (h - level(m, p, k)) / p[THRESHOLD];
            S gx = (m ? gs : gs + gfired) * derivative(x, k[0]);
            S gd = gx / p[THRESHOLD];
            gh = gh + gd;
            gp[THRESHOLD] -= value(gd) * (value(x) + (C)(m + k[1]));
        }
        return gh;
    }

    static INLINE S back(S current, const S* before, const S* p, const double* k, S gs, S* g, Wide* gp) {
        S v = before[0], h = p[BETA] * v + current, s, fired, gfired = constant(0);
        spike(h, p, k, &s, &fired);
#if defined(RESET_ZERO)
        S gh = g[0] * ((C)1 - fired);
#if !defined(DETACH_RESET)
        gfired = -(g[0] * h);
#endif
#else
        S gh = g[0];
        gp[THRESHOLD] += value(-g[0] * s);
#if !defined(DETACH_RESET)
        gs = gs + -g[0] * p[THRESHOLD];
#endif
#endif
#if defined(SIGNED)
        gh = gh + -through_levels(-h, constant(0), -gs, gfired, p, k, gp);
#endif
        gh = through_levels(h, gh, gs, gfired, p, k, gp);
        gp[BETA] += value(gh * v);
        g[0] = gh * p[BETA];
        return gh;
    }
};
