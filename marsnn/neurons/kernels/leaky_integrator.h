// leaky_integrator_step of leaky_integrator.py.   params: beta   state: v, which is the output too
#pragma once
#include "surrogate.h"

struct Neuron {
    enum { STATES = 1, PARAMS = 1, BETA = 0 };

    static INLINE S step(S current, S* state, const S* p, const double*) {
        state[0] = p[BETA] * state[0] + current;
        return state[0];
    }

    static INLINE S back(S, const S* before, const S* p, const double*, S gs, S* g, Wide* gp) {
        S gv = gs + g[0];
        gp[BETA] += value(gv * before[0]);
        g[0] = gv * p[BETA];
        return gv;
    }
};
