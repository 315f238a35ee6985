// The scan of a discrete Mamba-2 layer, chunk by chunk with everything in the cache, forward and back.
//
//     S[t] = decay[t] S[t-1] + b[t] x[t]^T          S: N x P, one for each head
//     y[t] = S[t]^T c[t] + skip x[t]
//
// Within a chunk of Q tokens, with D[i, j] = decay[j+1] ... decay[i] for j <= i (products, never quotients
// or differences, so a decay may be 0 or 1):
//
//     y    = ((c b^T) * D) x + (in * c) S           in[i]  = decay[0] ... decay[i]
//     S'   = total S + (out * b)^T x                out[j] = decay[j+1] ... decay[Q-1]
//
// Layout: x and y [L, B, H, P], decay [L, B, H], b and c [L, B, G, N], states [B, H, N, P]. A unit of work is
// a sample and a run of heads, `parts` runs a sample; it walks through all chunks. Heads of a group share b
// and c, so c b^T is made once for the heads of a group that are in a run.
#pragma once
#include <cstdlib>
#include <new>
#include "gemm.h"

constexpr long Q = 64;

struct Problem {
    long L, B, H, G, P, N;
    long parts;
    int threads;
};

struct Rows {  // a tensor [L, B, *] whose last axes are contiguous
    const Stored* data;
    long token, sample;  // strides
    const Stored* at(long l, long b) const { return data + l * token + b * sample; }
};

class Scratch {  // matrices of one thread
    F* data;
    long used = 0, size;

  public:
    explicit Scratch(long values) : size(values) {
        void* made = nullptr;
        if (posix_memalign(&made, 64, values * sizeof(F))) throw std::bad_alloc();
        data = (F*)made;
        memset(data, 0, values * sizeof(F));
    }
    Scratch(const Scratch&) = delete;
    ~Scratch() { free(data); }
    F* matrix(long rows, long width) {
        F* taken = data + used;
        used += rows * width;
        return used <= size ? taken : nullptr;
    }
};

// what a chunk of one head decays by
struct Decays {
    F in[Q], out[Q], total;
    void set(const F* decay, long stride, long rows, F* pairs) {
        F product = 1;
        for (long i = 0; i < rows; i++) in[i] = product *= decay[i * stride];
        total = product;
        product = 1;
        for (long i = rows - 1; i >= 0; i--) {
            out[i] = product;
            product *= decay[i * stride];
        }
        for (long i = 0; i < rows; i++) {  // D, its upper half zero
            F* row = pairs + i * Q;
            for (long j = 0; j < Q; j += LANES)
                store(row + j, i ? decay[i * stride] * load(row - Q + j) : V{});
            row[i] = 1;
        }
    }
};

static void multiplied(const F* a, const F* b, long rows, F* to) {  // [rows, Q] elementwise
    for (long i = 0; i < rows * Q; i += LANES) store(to + i, load(a + i) * load(b + i));
}

// ---- forward ---------------------------------------------------------------------------------------------

static void forward_unit(const Problem& p, long sample, long h0, long h1, Rows x, const F* decay, Rows b,
                         Rows c, const F* skip, const F* state, Stored* y, F* after, F* kept) {
    const long Pw = padded(p.P), Nw = padded(p.N), heads = h1 - h0, size = p.N * p.P;
    Scratch scratch(2 * Q * Pw + 4 * Q * Nw + Nw * Q + 3 * Q * Q + heads * p.N * Pw);
    F *xs = scratch.matrix(Q, Pw), *ys = scratch.matrix(Q, Pw);
    F *bs = scratch.matrix(Q, Nw), *cs = scratch.matrix(Q, Nw);
    F *b_out = scratch.matrix(Q, Nw), *c_in = scratch.matrix(Q, Nw), *bt = scratch.matrix(Nw, Q);
    F *pairs = scratch.matrix(Q, Q), *met = scratch.matrix(Q, Q), *mixed = scratch.matrix(Q, Q);
    F* states = scratch.matrix(heads * p.N, Pw);
    Decays d;
    for (long h = h0; h < h1 && state; h++)
        for (long n = 0; n < p.N; n++)
            memcpy(states + ((h - h0) * p.N + n) * Pw, state + (sample * p.H + h) * size + n * p.P,
                   p.P * sizeof(F));
    for (long l = 0; l < p.L; l += Q) {
        const long rows = p.L - l < Q ? p.L - l : Q;
        long group = -1;
        for (long h = h0; h < h1; h++) {
            F* S = states + (h - h0) * p.N * Pw;
            if (kept) {
                F* to = kept + ((l / Q * p.B + sample) * p.H + h) * size;
                for (long n = 0; n < p.N; n++) memcpy(to + n * p.P, S + n * Pw, p.P * sizeof(F));
            }
            if (h / (p.H / p.G) != group) {
                group = h / (p.H / p.G);
                gather(b.at(l, sample) + group * p.N, b.token, rows, p.N, bs, Nw);
                gather(c.at(l, sample) + group * p.N, c.token, rows, p.N, cs, Nw);
                transpose(bs, Nw, rows, p.N, bt, Q);
                product<false>(LOWER_C, rows, Q, p.N, cs, Nw, 1, bt, Q, met, Q);
            }
            gather(x.at(l, sample) + h * p.P, x.token, rows, p.P, xs, Pw);
            d.set(decay + (l * p.B + sample) * p.H + h, p.B * p.H, rows, pairs);
            multiplied(met, pairs, rows, mixed);
            scaled(cs, d.in, rows, Nw, c_in);
            scaled(bs, d.out, rows, Nw, b_out);
            product<false>(LOWER_A, rows, Pw, rows, mixed, Q, 1, xs, Pw, ys, Pw);
            product<true>(FULL, rows, Pw, p.N, c_in, Nw, 1, S, Pw, ys, Pw);
            if (skip)
                for (long i = 0; i < rows * Pw; i += LANES)
                    store(ys + i, load(ys + i) + skip[h] * load(xs + i));
            scatter(ys, Pw, rows, p.P, y + ((l * p.B + sample) * p.H + h) * p.P, p.B * p.H * p.P);
            for (long i = 0; i < p.N * Pw; i += LANES) store(S + i, d.total * load(S + i));
            product<true>(FULL, p.N, Pw, rows, b_out, 1, Nw, xs, Pw, S, Pw);
        }
    }
    for (long h = h0; h < h1; h++)
        for (long n = 0; n < p.N; n++)
            memcpy(after + (sample * p.H + h) * size + n * p.P, states + ((h - h0) * p.N + n) * Pw,
                   p.P * sizeof(F));
}

// ---- backward --------------------------------------------------------------------------------------------

struct Gradients {
    Stored* x;   // [L, B, H, P]
    F* decay;    // [L, B, H], of the logarithm of the decay
    F* b;        // [parts, L, B, G, N]
    F* c;        // [parts, L, B, G, N]
    F* skip;     // [B, H]
    F* state;    // [B, H, N, P]
};

static void backward_unit(const Problem& p, long sample, long part, long h0, long h1, Rows x, const F* decay,
                          Rows b, Rows c, const F* skip, const F* kept, Rows gy, const F* gafter,
                          Gradients g) {
    const long Pw = padded(p.P), Nw = padded(p.N), heads = h1 - h0, size = p.N * p.P;
    Scratch scratch(4 * Q * Pw + 8 * Q * Nw + Nw * Q + 2 * p.P * Nw + p.P * Q + 6 * Q * Q +
                    (heads + 1) * p.N * Pw + 2 * Q);
    F *xs = scratch.matrix(Q, Pw), *gys = scratch.matrix(Q, Pw), *gxs = scratch.matrix(Q, Pw);
    F* by_row = scratch.matrix(Q, Pw);
    F *bs = scratch.matrix(Q, Nw), *cs = scratch.matrix(Q, Nw), *bt = scratch.matrix(Nw, Q);
    F *b_out = scratch.matrix(Q, Nw), *c_in = scratch.matrix(Q, Nw);
    F *gb = scratch.matrix(Q, Nw), *gc = scratch.matrix(Q, Nw);
    F *b_off = scratch.matrix(Q, Nw), *c_off = scratch.matrix(Q, Nw);
    F *St = scratch.matrix(p.P, Nw), *gSt = scratch.matrix(p.P, Nw), *xt = scratch.matrix(p.P, Q);
    F *pairs = scratch.matrix(Q, Q), *met = scratch.matrix(Q, Q), *mixed = scratch.matrix(Q, Q);
    F *gmixed = scratch.matrix(Q, Q), *gmet = scratch.matrix(Q, Q), *below = scratch.matrix(Q, Q);
    F *gstates = scratch.matrix(heads * p.N, Pw), *S = scratch.matrix(p.N, Pw);
    F *e = scratch.matrix(1, Q), *f = scratch.matrix(1, Q);
    Decays d;
    for (long h = h0; h < h1; h++) {
        g.skip[sample * p.H + h] = 0;
        for (long n = 0; n < p.N && gafter; n++)
            memcpy(gstates + ((h - h0) * p.N + n) * Pw, gafter + (sample * p.H + h) * size + n * p.P,
                   p.P * sizeof(F));
    }
    const long ratio = p.H / p.G;
    for (long l = (p.L - 1) / Q * Q; l >= 0; l -= Q) {
        const long rows = p.L - l < Q ? p.L - l : Q;
        for (long h = h0; h < h1; h++) {
            F* gS = gstates + (h - h0) * p.N * Pw;
            const long group = h / ratio;
            if (h == h0 || h % ratio == 0) {
                gather(b.at(l, sample) + group * p.N, b.token, rows, p.N, bs, Nw);
                gather(c.at(l, sample) + group * p.N, c.token, rows, p.N, cs, Nw);
                transpose(bs, Nw, rows, p.N, bt, Q);
                product<false>(LOWER_C, rows, Q, p.N, cs, Nw, 1, bt, Q, met, Q);
                memset(gb, 0, Q * Nw * sizeof(F));
                memset(gc, 0, Q * Nw * sizeof(F));
                memset(gmet, 0, Q * Q * sizeof(F));
            }
            gather(x.at(l, sample) + h * p.P, x.token, rows, p.P, xs, Pw);
            gather(gy.at(l, sample) + h * p.P, gy.token, rows, p.P, gys, Pw);
            const F* from = kept + ((l / Q * p.B + sample) * p.H + h) * size;
            for (long n = 0; n < p.N; n++) memcpy(S + n * Pw, from + n * p.P, p.P * sizeof(F));
            d.set(decay + (l * p.B + sample) * p.H + h, p.B * p.H, rows, pairs);
            multiplied(met, pairs, rows, mixed);
            scaled(cs, d.in, rows, Nw, c_in);
            scaled(bs, d.out, rows, Nw, b_out);

            // through the state that came in, and the one that went out
            transpose(S, Pw, p.N, p.P, St, Nw);
            transpose(gS, Pw, p.N, p.P, gSt, Nw);
            scaled(gys, d.in, rows, Pw, by_row);
            product<false>(FULL, rows, Nw, p.P, by_row, Pw, 1, St, Nw, c_off, Nw);
            scaled(xs, d.out, rows, Pw, by_row);
            product<false>(FULL, rows, Nw, p.P, by_row, Pw, 1, gSt, Nw, b_off, Nw);
            product<false>(FULL, rows, Pw, p.N, b_out, Nw, 1, gS, Pw, gxs, Pw);
            for (long i = 0; i < rows; i++) {
                e[i] = inner(cs + i * Nw, c_off + i * Nw, Nw);
                f[i] = inner(bs + i * Nw, b_off + i * Nw, Nw);
            }
            F through = d.total * inner(S, gS, p.N * Pw);
            for (long i = 0; i < rows * Nw; i += LANES) {
                store(gc + i, load(gc + i) + load(c_off + i));
                store(gb + i, load(gb + i) + load(b_off + i));
            }

            // within the chunk
            transpose(xs, Pw, rows, p.P, xt, Q);
            product<false>(LOWER_C, rows, Q, p.P, gys, Pw, 1, xt, Q, gmixed, Q);
            product<true>(UPPER_A, rows, Pw, rows, mixed, 1, Q, gys, Pw, gxs, Pw);
            multiplied(gmixed, mixed, rows, below);  // its upper half is zero, for D's is
            for (long i = 0; i < rows * Q; i += LANES)
                store(gmet + i, load(gmet + i) + load(gmixed + i) * load(pairs + i));

            // decay k is in every pair j < k <= i, in in[i] for i >= k, in out[j] for j < k, and in the total
            F* gdecay = g.decay + (l * p.B + sample) * p.H + h;
            F* column = by_row;  // of the sums over i >= k
            F after_k = 0, before_k = 0;
            memset(column, 0, Q * sizeof(F));
            for (long j = 0; j < rows; j++) {  // f[k] becomes the sum over j < k
                const F own = f[j];
                f[j] = before_k;
                before_k += own;
            }
            for (long k = rows - 1; k >= 0; k--) {
                after_k += e[k];
                V pair = {};
                for (long j = 0; j < k; j += LANES) {
                    const V both = first(load(column + j) + load(below + k * Q + j), k - j);
                    store(column + j, both);  // what is cut off is not asked for again
                    pair += both;
                }
                gdecay[k * p.B * p.H] = sum(pair) + after_k + f[k] + through;
            }

            if (skip) {
                for (long i = 0; i < rows * Pw; i += LANES)
                    store(gxs + i, load(gxs + i) + skip[h] * load(gys + i));
                g.skip[sample * p.H + h] += inner(xs, gys, rows * Pw);
            }
            scatter(gxs, Pw, rows, p.P, g.x + ((l * p.B + sample) * p.H + h) * p.P, p.B * p.H * p.P);
            for (long i = 0; i < p.N * Pw; i += LANES) store(gS + i, d.total * load(gS + i));
            product<true>(FULL, p.N, Pw, rows, c_in, 1, Nw, gys, Pw, gS, Pw);

            if (h == h1 - 1 || (h + 1) % ratio == 0) {
                product<true>(LOWER_A, rows, Nw, rows, gmet, Q, 1, bs, Nw, gc, Nw);
                product<true>(UPPER_A, rows, Nw, rows, gmet, 1, Q, cs, Nw, gb, Nw);
                for (long i = 0; i < rows; i++) {
                    long to = (((part * p.L + l + i) * p.B + sample) * p.G + group) * p.N;
                    memcpy(g.b + to, gb + i * Nw, p.N * sizeof(F));
                    memcpy(g.c + to, gc + i * Nw, p.N * sizeof(F));
                }
            }
        }
    }
    for (long h = h0; h < h1; h++)
        for (long n = 0; n < p.N; n++)
            memcpy(g.state + (sample * p.H + h) * size + n * p.P, gstates + ((h - h0) * p.N + n) * Pw,
                   p.P * sizeof(F));
}

// ---- what is called --------------------------------------------------------------------------------------

// pointers may be null: skip, state, kept
extern "C" void forward(const Problem* p, const Stored* x, long xl, long xb, const F* decay, const Stored* b,
                        long bl, long bb, const Stored* c, long cl, long cb, const F* skip, const F* state,
                        Stored* y, F* after, F* kept) {
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (long unit = 0; unit < p->B * p->parts; unit++) {
        const long part = unit % p->parts;
        forward_unit(*p, unit / p->parts, part * p->H / p->parts, (part + 1) * p->H / p->parts, {x, xl, xb},
                     decay, {b, bl, bb}, {c, cl, cb}, skip, state, y, after, kept);
    }
}

// pointers may be null: skip, gafter
extern "C" void backward(const Problem* p, const Stored* x, long xl, long xb, const F* decay, const Stored* b,
                         long bl, long bb, const Stored* c, long cl, long cb, const F* skip, const F* kept,
                         const Stored* gy, long gl, long gb, const F* gafter, Stored* gx, F* gdecay, F* gbs,
                         F* gcs, F* gskip, F* gstate) {
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (long unit = 0; unit < p->B * p->parts; unit++) {
        const long part = unit % p->parts;
        backward_unit(*p, unit / p->parts, part, part * p->H / p->parts, (part + 1) * p->H / p->parts,
                      {x, xl, xb}, decay, {b, bl, bb}, {c, cl, cb}, skip, kept, {gy, gl, gb}, gafter,
                      {gx, gdecay, gbs, gcs, gskip, gstate});
    }
}
