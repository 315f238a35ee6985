// T steps of a population in one pass over memory, forward and back.
//
// A column is one neuron of one sample: the tensors are [T, M], M columns each. A group of columns stays in
// registers while it runs through all T steps, so that each current is read once and each spike written once.
// The backward keeps no intermediate of the forward: it runs the group forward once more, its states in a
// scratch of T steps, and then back.
#pragma once
#include <memory>
#include <vector>

#include "scalar.h"

namespace {

// Vectors side by side. Longer rows suit the memory, but the backward's scratch has to stay near.
const int WIDE = 32, NARROW = 8;
template <int V> constexpr long columns() { return V * LANES; }
const long TOO_LARGE_TO_CACHE = 4 << 20;  // bytes of a result that nothing will find in a cache again
const int SLOTS = (int)Neuron::PARAMS + (Neuron::PARAMS == 0);  // an array has at least one element
const int FIELDS = (int)Neuron::STATES;
const long KEPT = (FIELDS + 2) * NARROW;  // of a step in the backward: states before, current, gradient of the spikes

#if !defined(LEARNED)
#define LEARNED 0  // bit k: parameter k wants its gradient
#endif
constexpr bool learned(int k) { return LEARNED >> k & 1; }

struct Problem {
    long T, M;             // steps, columns
    long inner, features;  // column c has the settings of feature (c / inner) % features
    long stride;           // elements between steps of the currents
    long live;             // steps that receive a current: T, or 1 where it enters at t = 0 only
    bool held;             // whether one value is held at every step, whose gradient is the sum over them
    const long* sizes;     // of each parameter: 1 or features
    const double* numbers; // the surrogate's setting, then the neuron's

    bool streams(const void* result) const {
        return T * M * (long)sizeof(Stored) >= TOO_LARGE_TO_CACHE && M % LANES == 0 && (uintptr_t)result % 64 == 0;
    }
};

struct Tensors {
    const Stored* currents;
    const Stored* const* state;  // each null at rest, where it is 0
    const Stored* const* params;
};

struct Results {
    Stored *spikes, *membrane;  // membrane may be null
    Stored* const* after;
    bool stream;
};

struct Gradients {
    const Stored *spikes, *membrane;  // of the results; null for zero
    long stride;                      // elements between steps of `spikes`
    const Stored* const* after;       // each may be null
    Stored* currents;                 // of the inputs
    Stored* const* state;             // each null where the state was at rest
    C* const* params;  // of those that are learned
    bool stream;
};

INLINE S load(const Stored* from, int g) { return widened(load_row(from + g * LANES)); }

INLINE void store(Stored* to, int g, S x, bool stream = false) {
    if (stream)
        stream_row(to + g * LANES, narrowed(x));
    else
        store_row(to + g * LANES, narrowed(x));
}

// Rows of a few steps ahead, at the end those of the next group: only some of so many strided rows are noticed
// by the processor's own prefetching.
template <int V> INLINE void fetch_ahead(const Stored* rows, long stride, long t, long T) {
    const long next = t + 64 / V;
    const Stored* row = next < T ? rows + next * stride : rows + (next - T) % T * stride + columns<V>();
    for (long j = 0; j < columns<V>(); j += 64 / (long)sizeof(Stored)) __builtin_prefetch(row + j);
}

// A parameter of the columns from c on: one for all, or one for each feature.
template <int V> inline void spread(const Stored* from, long size, const Problem& q, long c, S* to) {
    Stored row[columns<V>()];
    if (size == 1) {
        for (int i = 0; i < LANES; i++) row[i] = from[0];
        for (int g = 0; g < V; g++) to[g] = load(row, 0);
        return;
    }
    long feature = (c / q.inner) % q.features, place = c % q.inner;
    for (long j = 0; j < columns<V>(); j++) {
        row[j] = from[feature];
        if (++place == q.inner) place = 0, feature = feature + 1 == q.features ? 0 : feature + 1;
    }
    for (int g = 0; g < V; g++) to[g] = load(row, g);
}

template <int V> struct Group {
    S params[SLOTS][V];
    S state[FIELDS][V];

    // `c` says whose settings these columns have, `at` where they lie in the tensors.
    INLINE Group(const Problem& q, const Tensors& x, long c, long at) {
        for (int k = 0; k < Neuron::PARAMS; k++) spread<V>(x.params[k], q.sizes[k], q, c, params[k]);
        for (int k = 0; k < FIELDS; k++)
            for (int g = 0; g < V; g++) state[k][g] = x.state[k] ? load(x.state[k] + at, g) : constant(0);
    }

    INLINE S step(int g, S current, const double* numbers) {
        S own[FIELDS], p[SLOTS];
        for (int k = 0; k < FIELDS; k++) own[k] = state[k][g];
        for (int k = 0; k < Neuron::PARAMS; k++) p[k] = params[k][g];
        S s = Neuron::step(current, own, p, numbers);
        for (int k = 0; k < FIELDS; k++) state[k][g] = own[k];
        return s;
    }
};

// Returns whether all columns are finite in the end: NaN and infinity never leave a state again.
template <int V> bool group_forward(const Problem& q, const Tensors& x, const Results& y, long c, long at) {
    Group<V> group(q, x, c, at);
    for (long t = 0; t < q.T; t++) {
        const bool driven = t < q.live;
        const Stored* current = x.currents + (driven ? t : 0) * q.stride + at;
        if (driven) fetch_ahead<V>(x.currents + at, q.stride, t, q.live);
#pragma GCC unroll 8
        for (int g = 0; g < V; g++) {
            S s = group.step(g, driven ? load(current, g) : constant(0), q.numbers);
            store(y.spikes + t * q.M + at, g, s, y.stream);
        }
        if (y.membrane)
            for (int g = 0; g < V; g++) store(y.membrane + t * q.M + at, g, group.state[0][g], y.stream);
    }
    Wide zero = wide(0);
    for (int k = 0; k < FIELDS; k++)
        for (int g = 0; g < V; g++) {
            Wide v = value(group.state[k][g]);
            zero += v - v;
            store(y.after[k] + at, g, group.state[k][g]);
        }
    if (y.stream) settle();
    bool finite = true;
    for (int i = 0; i < LANES; i++) finite &= zero[i] == 0;
    return finite;
}

// `kept` holds T steps of a group; `n` of its columns are there.
void group_backward(const Problem& q, const Tensors& x, const Gradients& d, long c, long at, long n, S* kept) {
    Group<NARROW> group(q, x, c, at);
    for (long t = 0; t < q.T; t++) {
        const bool driven = t < q.live;
        const Stored* current = x.currents + (driven ? t : 0) * q.stride + at;
        if (driven) fetch_ahead<NARROW>(x.currents + at, q.stride, t, q.live);
        if (d.spikes) fetch_ahead<NARROW>(d.spikes + at, d.stride, t, q.T);
#pragma GCC unroll 8
        for (int g = 0; g < NARROW; g++) {
            S in = driven ? load(current, g) : constant(0);
            for (int k = 0; k < FIELDS; k++) kept[t * KEPT + k * NARROW + g] = group.state[k][g];
            kept[t * KEPT + FIELDS * NARROW + g] = in;
            kept[t * KEPT + (FIELDS + 1) * NARROW + g] = d.spikes ? load(d.spikes + t * d.stride + at, g) : constant(0);
            group.step(g, in, q.numbers);
        }
    }
    S grad[FIELDS][NARROW];
    Wide held[NARROW];
    for (int g = 0; g < NARROW; g++) {
        held[g] = wide(0);
        for (int k = 0; k < FIELDS; k++) grad[k][g] = d.after[k] ? load(d.after[k] + at, g) : constant(0);
    }
    Wide grad_params[SLOTS][NARROW] = {};
    for (long t = q.T - 1; t >= 0; t--) {
        const bool each = t < q.live && !q.held;
#pragma GCC unroll 8
        for (int g = 0; g < NARROW; g++) {
            S before[FIELDS], own[FIELDS], p[SLOTS];
            Wide gp[SLOTS] = {};
            for (int k = 0; k < FIELDS; k++) before[k] = kept[t * KEPT + k * NARROW + g], own[k] = grad[k][g];
            for (int k = 0; k < Neuron::PARAMS; k++) p[k] = group.params[k][g];
            if (d.membrane) own[0] = own[0] + load(d.membrane + t * q.M + at, g);
            S spike = kept[t * KEPT + (FIELDS + 1) * NARROW + g];
            S in = Neuron::back(kept[t * KEPT + FIELDS * NARROW + g], before, p, q.numbers, spike, own, gp);
            for (int k = 0; k < FIELDS; k++) grad[k][g] = own[k];
            for (int k = 0; k < Neuron::PARAMS; k++)
                if (learned(k)) grad_params[k][g] += gp[k];
            if (q.held) held[g] += value(in);
            if (each) store(d.currents + t * q.M + at, g, in, d.stream);
        }
    }
    for (int g = 0; g < NARROW; g++) {
        if (q.held) store(d.currents + at, g, rounded_to(held[g]));
        for (int k = 0; k < FIELDS; k++)
            if (d.state[k]) store(d.state[k] + at, g, grad[k][g]);
    }
    if (d.stream) settle();
    for (int k = 0; k < Neuron::PARAMS; k++)
        if (learned(k))
            for (long j = 0; j < n; j++) d.params[k][c + j] = grad_params[k][j / LANES][j % LANES];
}

// The last columns, fewer than a group, as rows of a whole group beside zeros.
const long GROUP = columns<NARROW>();

struct Padded {
    long c, n;
    std::vector<std::unique_ptr<Stored[]>> owned;

    Stored* room(long rows) {
        owned.emplace_back(new Stored[rows * GROUP]());
        return owned.back().get();
    }
    Stored* in(const Stored* from, long rows, long stride) {
        if (!from) return 0;
        Stored* to = room(rows);
        for (long t = 0; t < rows; t++) memcpy(to + t * GROUP, from + t * stride + c, n * sizeof(Stored));
        return to;
    }
    void out(const Stored* from, Stored* to, long rows, long stride) const {
        for (long t = 0; t < rows; t++) memcpy(to + t * stride + c, from + t * GROUP, n * sizeof(Stored));
    }
};

struct PaddedTensors {
    const Stored* state[FIELDS];
    Problem problem;
    Tensors tensors;

    PaddedTensors(const Problem& q, const Tensors& x, Padded& pad) : problem(q) {
        const long rows = q.live == 1 || q.stride == 0 ? 1 : q.T;
        problem.M = GROUP;
        problem.stride = rows == 1 ? 0 : GROUP;
        for (int k = 0; k < FIELDS; k++) state[k] = pad.in(x.state[k], 1, 0);
        tensors = {pad.in(x.currents, rows, q.stride), state, x.params};
    }
};

bool forward_rest(const Problem& q, const Tensors& x, const Results& y, long c) {
    Padded pad{c, q.M - c, {}};
    PaddedTensors in(q, x, pad);
    Stored* after[FIELDS];
    for (int k = 0; k < FIELDS; k++) after[k] = pad.room(1);
    const Results out = {pad.room(q.T), y.membrane ? pad.room(q.T) : 0, after, false};
    const bool finite = group_forward<NARROW>(in.problem, in.tensors, out, c, 0);
    pad.out(out.spikes, y.spikes, q.T, q.M);
    if (y.membrane) pad.out(out.membrane, y.membrane, q.T, q.M);
    for (int k = 0; k < FIELDS; k++) pad.out(after[k], y.after[k], 1, 0);
    return finite;
}

bool forward_some(const Problem& q, const Tensors& x, const Results& y, long c, long end) {
    if (end - c == columns<WIDE>()) return group_forward<WIDE>(q, x, y, c, c);
    bool finite = true;
    for (; end - c >= GROUP; c += GROUP) finite &= group_forward<NARROW>(q, x, y, c, c);
    return c < end ? forward_rest(q, x, y, c) & finite : finite;
}

void backward_rest(const Problem& q, const Tensors& x, const Gradients& d, long c, S* kept) {
    Padded pad{c, q.M - c, {}};
    PaddedTensors in(q, x, pad);
    const Stored* after[FIELDS];
    Stored* state[FIELDS];
    for (int k = 0; k < FIELDS; k++) after[k] = pad.in(d.after[k], 1, 0), state[k] = pad.room(1);
    const long rows = q.held ? 1 : q.live, spike_rows = d.stride ? q.T : 1;
    Gradients out = {pad.in(d.spikes, spike_rows, d.stride), pad.in(d.membrane, q.T, q.M), d.stride ? GROUP : 0, after,
                     pad.room(rows), state, d.params, false};
    group_backward(in.problem, in.tensors, out, c, 0, pad.n, kept);
    pad.out(out.currents, d.currents, rows, q.M);
    for (int k = 0; k < FIELDS; k++)
        if (d.state[k]) pad.out(state[k], d.state[k], 1, 0);
}

}  // namespace

extern "C" int forward(long T, long M, long inner, long features, long stride, long live, int held,
                       const long* sizes, const double* numbers, int threads, const Stored* currents,
                       const Stored* const* state, const Stored* const* params, Stored* spikes, Stored* membrane,
                       Stored* const* after) {
    const Problem q = {T, M, inner, features, stride, live, held != 0, sizes, numbers};
    const Tensors x = {currents, state, params};
    const Results y = {spikes, membrane, after, q.streams(spikes) && (!membrane || q.streams(membrane))};
    int finite = 1;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(& : finite)
    for (long c = 0; c < M; c += columns<WIDE>())
        finite &= forward_some(q, x, y, c, M - c < columns<WIDE>() ? M : c + columns<WIDE>());
    return !finite;
}

extern "C" void backward(long T, long M, long inner, long features, long stride, long live, int held,
                         const long* sizes, const double* numbers, int threads, const Stored* currents,
                         const Stored* const* state, const Stored* const* params, const Stored* grad_spikes,
                         long grad_stride, const Stored* grad_membrane, const Stored* const* grad_after,
                         Stored* grad_currents, Stored* const* grad_state, C* const* grad_params) {
    const Problem q = {T, M, inner, features, stride, live, held != 0, sizes, numbers};
    const Tensors x = {currents, state, params};
    const bool stream = live == T && !held && q.streams(grad_currents);
    const Gradients d = {grad_spikes,   grad_membrane, grad_stride, grad_after,
                         grad_currents, grad_state,    grad_params, stream};
#pragma omp parallel num_threads(threads)
    {
        std::unique_ptr<S[]> kept(new S[T * KEPT]);
#pragma omp for schedule(static)
        for (long c = 0; c < M; c += GROUP) {
            if (M - c >= GROUP)
                group_backward(q, x, d, c, c, GROUP, kept.get());
            else
                backward_rest(q, x, d, c, kept.get());
        }
    }
}
