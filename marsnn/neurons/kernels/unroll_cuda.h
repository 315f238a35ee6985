// T steps of a population, forward and back, a thread for each column. unroll.h has the same for a CPU.
//
// The backward keeps no intermediate of the forward. It runs the steps again in segments, last to first, the
// states of one segment in the thread's own memory; where there are several, a first pass leaves the state at
// the start of each in a scratch.
#pragma once
#include "scalar.h"

const int SLOTS = (int)Neuron::PARAMS + (Neuron::PARAMS == 0);  // an array has at least one element
const int FIELDS = (int)Neuron::STATES;
#if !defined(LEARNED)
#define LEARNED 0  // bit k: parameter k wants its gradient
#endif

typedef long long Long;

// Eight bytes each, in the order in which marsnn/neurons/cuda.py packs them.
struct Task {
    Long T, M;             // steps, columns
    Long inner, features;  // column c has the settings of feature (c / inner) % features
    Long stride;           // elements between steps of the currents
    Long live;             // steps that receive a current: T, or 1 where it enters at t = 0 only
    Long held;             // whether one value is held at every step, whose gradient is the sum over them
    Long grad_stride;      // elements between steps of grad_spikes
    Long sizes[4];         // of each parameter: 1 or features
    double numbers[8];     // the surrogate's setting, then the neuron's
    const Stored* currents;
    const Stored* state[2];  // each null at rest, where it is 0
    const Stored* params[4];
    Stored *spikes, *membrane;  // results; the membrane may be null
    Stored* after[2];
    int* failed;  // set where a state ends NaN or infinite
    const Stored *grad_spikes, *grad_membrane;  // of the results; null for zero
    const Stored* grad_after[2];
    Stored* grad_currents;  // of the inputs
    Stored* grad_state[2];  // each null where the state was at rest
    C* grad_params[4];      // of those that are learned
    Stored* starts;         // [segments, FIELDS, M], where there are several
};

INLINE S load(const Stored* from, Long at) { return widened(from[at]); }
INLINE void store(Stored* to, Long at, S x) { to[at] = narrowed(x); }

struct Column {
    S params[SLOTS];
    S state[FIELDS];

    INLINE Column(const Task& q, Long c) {
        const Long feature = (c / q.inner) % q.features;
        for (int k = 0; k < Neuron::PARAMS; k++) params[k] = load(q.params[k], q.sizes[k] == 1 ? 0 : feature);
        for (int k = 0; k < FIELDS; k++) state[k] = q.state[k] ? load(q.state[k], c) : constant(0);
    }

    INLINE S current(const Task& q, Long c, Long t) const {
        return t < q.live ? load(q.currents, t * q.stride + c) : constant(0);
    }
};

extern "C" __global__ void forward(const Task q) {
    const Long c = (Long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= q.M) return;
    Column own(q, c);
    for (Long t = 0; t < q.T; t++) {
        S spike = Neuron::step(own.current(q, c, t), own.state, own.params, q.numbers);
        store(q.spikes, t * q.M + c, spike);
        if (q.membrane) store(q.membrane, t * q.M + c, own.state[0]);
    }
    Wide zero = wide(0);
    for (int k = 0; k < FIELDS; k++) {
        Wide v = value(own.state[k]);
        zero += v - v;
        store(q.after[k], c, own.state[k]);
    }
    if (!(zero == 0)) *q.failed = 1;
}

extern "C" __global__ void backward(const Task q) {
    const Long c = (Long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= q.M) return;
    Column own(q, c);
    const Long segments = (q.T + SEGMENT - 1) / SEGMENT;
    for (Long t = 0; t < (segments - 1) * SEGMENT; t++) {
        if (t % SEGMENT == 0)
            for (int k = 0; k < FIELDS; k++) store(q.starts, (t / SEGMENT * FIELDS + k) * q.M + c, own.state[k]);
        Neuron::step(own.current(q, c, t), own.state, own.params, q.numbers);
    }
    S grad[FIELDS];
    for (int k = 0; k < FIELDS; k++) grad[k] = q.grad_after[k] ? load(q.grad_after[k], c) : constant(0);
    Wide held = wide(0), grad_params[SLOTS] = {};
    for (Long segment = segments - 1; segment >= 0; segment--) {
        const Long start = segment * SEGMENT, end = start + SEGMENT < q.T ? start + SEGMENT : q.T;
        S before[SEGMENT][FIELDS];
        if (segment < segments - 1)
            for (int k = 0; k < FIELDS; k++) own.state[k] = load(q.starts, (segment * FIELDS + k) * q.M + c);
        for (Long t = start; t < end; t++) {
            for (int k = 0; k < FIELDS; k++) before[t - start][k] = own.state[k];
            Neuron::step(own.current(q, c, t), own.state, own.params, q.numbers);
        }
        for (Long t = end - 1; t >= start; t--) {
            Wide of_params[SLOTS] = {};
            if (q.grad_membrane) grad[0] = grad[0] + load(q.grad_membrane, t * q.M + c);
            S spike = q.grad_spikes ? load(q.grad_spikes, t * q.grad_stride + c) : constant(0);
            S in = Neuron::back(own.current(q, c, t), before[t - start], own.params, q.numbers, spike, grad, of_params);
            for (int k = 0; k < Neuron::PARAMS; k++)
                if (LEARNED >> k & 1) grad_params[k] += of_params[k];
            if (q.held)
                held += value(in);
            else if (t < q.live)
                store(q.grad_currents, t * q.M + c, in);
        }
    }
    if (q.held) store(q.grad_currents, c, rounded_to(held));
    for (int k = 0; k < FIELDS; k++)
        if (q.grad_state[k]) store(q.grad_state[k], c, grad[k]);
    for (int k = 0; k < Neuron::PARAMS; k++)
        if (LEARNED >> k & 1) q.grad_params[k][c] = grad_params[k];
}
