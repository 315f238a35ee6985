// T steps of a population in one pass over memory, forward and back.
//
// A column is one neuron of one sample: the tensors are [T, M], M columns each. Columns are taken in blocks
// that fit the cache; each block runs through all T steps. The backward keeps no intermediate of the forward:
// it runs the block forward once more, its states in a [T, STATES, block] scratch, and then back.
#pragma once
#include <cstdlib>
#include <new>

#include "scalar.h"

namespace {

const long SCRATCH = 256 * 1024;  // bytes of states that a block may keep, to stay in the cache
const long LARGEST = 512, SMALLEST = 64;
const int SLOTS = (int)Neuron::PARAMS + (Neuron::PARAMS == 0);  // an array has at least one element

struct Problem {
    long T, M;             // steps, columns
    long inner, features;  // column c has the settings of feature (c / inner) % features
    long stride;           // elements between steps of the currents
    long live;             // steps that receive a current: T, or 1 where it enters at t = 0 only
    bool held;             // whether one value is held at every step, whose gradient is the sum over them
    const long* sizes;     // of each parameter: 1 or features
    const double* numbers; // of the neuron, the surrogate's first
};

// The parameter of each column of a block.
inline void spread(const Stored* from, long size, const Problem& q, long start, long n, S* to) {
    if (size == 1) {
        S same = load(from);
        for (long j = 0; j < n; j++) to[j] = same;
        return;
    }
    long feature = (start / q.inner) % q.features, left = q.inner - start % q.inner;
    for (long j = 0; j < n;) {
        if (q.inner == 1) {
            long run = q.features - feature < n - j ? q.features - feature : n - j;
            for (long i = 0; i < run; i++) to[j + i] = load(from + feature + i);
            j += run, feature = 0;
        } else {
            long run = left < n - j ? left : n - j;
            S same = load(from + feature);
            for (long i = 0; i < run; i++) to[j + i] = same;
            j += run, left = q.inner, feature = feature + 1 == q.features ? 0 : feature + 1;
        }
    }
}

struct Block {
    S params[SLOTS][LARGEST];
    S state[Neuron::STATES][LARGEST];
    S grad[Neuron::STATES][LARGEST];
    C param_grads[SLOTS][LARGEST];
    C held[LARGEST];
    Stored silence[LARGEST];
};

inline void begin(Block& b, const Problem& q, const Stored* const* params, const Stored* const* state, long c, long n) {
    for (int k = 0; k < Neuron::PARAMS; k++) spread(params[k], q.sizes[k], q, c, n, b.params[k]);
    for (int k = 0; k < Neuron::STATES; k++)
        for (long j = 0; j < n; j++) b.state[k][j] = load(state[k] + c + j);
}

inline unsigned steps_of_block(Block& __restrict b, const Problem& q, const Stored* __restrict current,
                               Stored* __restrict spikes, Stored* __restrict membrane, long n) {
    unsigned bad = 0;
    for (long j = 0; j < n; j++) {
        S state[Neuron::STATES], p[SLOTS];
        for (int k = 0; k < Neuron::STATES; k++) state[k] = b.state[k][j];
        for (int k = 0; k < Neuron::PARAMS; k++) p[k] = b.params[k][j];
        S in = load(current + j);
        bad |= is_finite(in) ? 0u : 1u;
        store(spikes + j, Neuron::step(in, state, p, q.numbers));
        for (int k = 0; k < Neuron::STATES; k++) b.state[k][j] = state[k];
    }
    if (membrane)
        for (long j = 0; j < n; j++) store(membrane + j, b.state[0][j]);
    return bad;
}

}  // namespace

extern "C" int forward(long T, long M, long inner, long features, long stride, long live, int held,
                       const long* sizes, const double* numbers, int threads, const Stored* currents, const Stored* const* state,
                       const Stored* const* params, Stored* spikes, Stored* membrane, Stored* const* after) {
    const Problem q = {T, M, inner, features, stride, live, held != 0, sizes, numbers};
    unsigned bad = 0;
#pragma omp parallel num_threads(threads) reduction(| : bad)
    {
        Block* b = new Block();
#pragma omp for schedule(static)
        for (long c = 0; c < M; c += LARGEST) {
            const long n = M - c < LARGEST ? M - c : LARGEST;
            begin(*b, q, params, state, c, n);
            for (long t = 0; t < T; t++) {
                const Stored* current = t < live ? currents + t * stride + c : b->silence;
                bad |= steps_of_block(*b, q, current, spikes + t * M + c, membrane ? membrane + t * M + c : 0, n);
            }
            for (int k = 0; k < Neuron::STATES; k++)
                for (long j = 0; j < n; j++) store(after[k] + c + j, b->state[k][j]);
        }
        delete b;
    }
    return bad ? 1 : 0;
}

namespace {

inline void remember(Block& __restrict b, const Problem& q, const Stored* __restrict current, S* __restrict kept,
                     long width, long n) {
    for (long j = 0; j < n; j++) {
        S state[Neuron::STATES], p[SLOTS];
        for (int k = 0; k < Neuron::STATES; k++) kept[k * width + j] = state[k] = b.state[k][j];
        for (int k = 0; k < Neuron::PARAMS; k++) p[k] = b.params[k][j];
        Neuron::step(load(current + j), state, p, q.numbers);
        for (int k = 0; k < Neuron::STATES; k++) b.state[k][j] = state[k];
    }
}

inline void back_of_block(Block& __restrict b, const Problem& q, const Stored* __restrict current,
                          const S* __restrict kept, long width, const Stored* __restrict grad_spikes,
                          Stored* __restrict grad_currents, long n) {
    for (long j = 0; j < n; j++) {
        S before[Neuron::STATES], g[Neuron::STATES], p[SLOTS];
        C gp[SLOTS];
        for (int k = 0; k < Neuron::STATES; k++) before[k] = kept[k * width + j], g[k] = b.grad[k][j];
        for (int k = 0; k < Neuron::PARAMS; k++) p[k] = b.params[k][j], gp[k] = 0;
        S gi = Neuron::back(load(current + j), before, p, q.numbers, load(grad_spikes + j), g, gp);
        for (int k = 0; k < Neuron::STATES; k++) b.grad[k][j] = g[k];
#if defined(PARAM_GRADS)
        for (int k = 0; k < Neuron::PARAMS; k++) b.param_grads[k][j] += gp[k];
#endif
        if (q.held)
            b.held[j] += value(gi);
        else
            store(grad_currents + j, gi);
    }
}

}  // namespace

extern "C" void backward(long T, long M, long inner, long features, long stride, long live, int held,
                         const long* sizes, const double* numbers, int threads, const Stored* currents, const Stored* const* state,
                         const Stored* const* params, const Stored* grad_spikes, long grad_stride,
                         const Stored* grad_membrane, const Stored* const* grad_after, Stored* grad_currents,
                         Stored* const* grad_state, [[maybe_unused]] C* const* grad_params) {
    const Problem q = {T, M, inner, features, stride, live, held != 0, sizes, numbers};
    long width = SCRATCH / (long)(T * Neuron::STATES * sizeof(S));
    width = width > LARGEST ? LARGEST : width < SMALLEST ? SMALLEST : width / SMALLEST * SMALLEST;
#pragma omp parallel num_threads(threads)
    {
        Block* b = new Block();
        S* kept = new S[T * Neuron::STATES * width];
        Stored* unused = new Stored[width];
#pragma omp for schedule(static)
        for (long c = 0; c < M; c += width) {
            const long n = M - c < width ? M - c : width;
            begin(*b, q, params, state, c, n);
            for (long t = 0; t < T; t++)
                remember(*b, q, t < live ? currents + t * stride + c : b->silence, kept + t * Neuron::STATES * width,
                         width, n);
            for (int k = 0; k < Neuron::STATES; k++)
                for (long j = 0; j < n; j++) b->grad[k][j] = grad_after[k] ? load(grad_after[k] + c + j) : constant(0);
            for (int k = 0; k < Neuron::PARAMS; k++)
                for (long j = 0; j < n; j++) b->param_grads[k][j] = 0;
            for (long j = 0; j < n; j++) b->held[j] = 0;
            for (long t = T - 1; t >= 0; t--) {
                if (grad_membrane)
                    for (long j = 0; j < n; j++) b->grad[0][j] = b->grad[0][j] + load(grad_membrane + t * M + c + j);
                back_of_block(*b, q, t < live ? currents + t * stride + c : b->silence,
                              kept + t * Neuron::STATES * width, width,
                              grad_spikes ? grad_spikes + t * grad_stride + c : b->silence,
                              t < live && !held ? grad_currents + t * M + c : unused, n);
            }
            if (held)
                for (long j = 0; j < n; j++) store(grad_currents + c + j, sum_of(b->held[j]));
            for (int k = 0; k < Neuron::STATES; k++)
                for (long j = 0; j < n; j++) store(grad_state[k] + c + j, b->grad[k][j]);
#if defined(PARAM_GRADS)
            for (int k = 0; k < Neuron::PARAMS; k++)
                for (long j = 0; j < n; j++) grad_params[k][c + j] = b->param_grads[k][j];
#endif
        }
        delete[] unused;
        delete[] kept;
        delete b;
    }
}
