// The integer simulator's inner loops. Numbers are whole and lie in doubles, below 2^53 in magnitude, so every
// sum and product here is exact; `whole` rounds toward zero. Spikes are int8.
//
// Columns (neurons) go in blocks of 64: matrices [rows, columns] have `columns` padded to whole blocks, weights
// lie as int16 [blocks, senders, 64], and spikes alone, [rows, neurons], have no padding.

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr long BLOCK = 64;
constexpr int32_t LIMIT = 8388607;  // 2^23 - 1
constexpr long UNFLUSHED = 258;    // 258 * 127 fits 16 bits
constexpr long CHUNK = 16;         // tokens that meet one block of weights, while it is in the cache

typedef int16_t Half __attribute__((vector_size(BLOCK)));  // of a block

template <typename Real>
inline Real whole(Real x) {
  return static_cast<Real>(static_cast<int32_t>(x));
}

// Two selections, one after the other: each compares whatever the other does, so loops over them become vectors.
template <typename Real>
inline Real clipped(Real x) {
  constexpr Real limit = LIMIT;
  const Real below = x > limit ? limit : x;
  return below < -limit ? -limit : below;
}

constexpr uint64_t LOWEST = 0x0101010101010101ull;  // bit of each of eight bytes

struct Events {  // of one row of spikes
  std::vector<int32_t> up, down, larger;
  long ups = 0, downs = 0, others = 0;

  void read(const int8_t* spikes, long senders) {
    if (static_cast<long>(up.size()) < senders)
      for (auto* list : {&up, &down, &larger}) list->resize(senders);
    ups = downs = others = 0;
    unsigned char beyond = 0;
    for (long m = 0; m < senders; ++m) beyond |= static_cast<unsigned char>(spikes[m] + 1) > 2;
    long m = 0;
    if (!beyond)
      for (; m + 64 <= senders; m += 64) {
        uint64_t rises = 0, falls = 0;
        for (int word = 0; word < 8; ++word) {
          uint64_t eight;
          std::memcpy(&eight, spikes + m + 8 * word, 8);
          const uint64_t minus = eight >> 7 & LOWEST;
          rises |= bits(eight & LOWEST & ~minus) << 8 * word;
          falls |= bits(minus) << 8 * word;
        }
        for (; rises; rises &= rises - 1) up[ups++] = m + __builtin_ctzll(rises);
        for (; falls; falls &= falls - 1) down[downs++] = m + __builtin_ctzll(falls);
      }
    for (; m < senders; ++m) {
      if (spikes[m] == 1) up[ups++] = m;
      else if (spikes[m] == -1) down[downs++] = m;
      else if (spikes[m]) larger[others++] = m;
    }
  }

  // The lowest bits of eight bytes, side by side; on a little-endian machine the first byte's comes first.
  static uint64_t bits(uint64_t bytes) { return bytes * 0x0102040810204080ull >> 56; }
};

inline void flush(const Half& first, const Half& second, int32_t* sums) {
  int16_t flat[BLOCK];
  std::memcpy(flat, &first, BLOCK);
  std::memcpy(flat + BLOCK / 2, &second, BLOCK);
  for (long n = 0; n < BLOCK; ++n) sums[n] += flat[n];
}

template <bool MINUS>
inline void add(const int32_t* list, long length, const int16_t* weights, int32_t* sums) {
  for (long begin = 0; begin < length; begin += UNFLUSHED) {
    const long end = std::min(length, begin + UNFLUSHED);
    Half first{}, second{};
    for (long e = begin; e < end; ++e) {
      Half left, right;
      std::memcpy(&left, weights + list[e] * BLOCK, BLOCK);
      std::memcpy(&right, weights + list[e] * BLOCK + BLOCK / 2, BLOCK);
      if (MINUS) first -= left, second -= right;
      else first += left, second += right;
    }
    flush(first, second, sums);
  }
}

// sums[64] = what the events of a row bring to one block
inline void gather(const Events& events, const int8_t* spikes, const int16_t* weights, int32_t* sums) {
  std::memset(sums, 0, BLOCK * sizeof(int32_t));
  add<false>(events.up.data(), events.ups, weights, sums);
  add<true>(events.down.data(), events.downs, weights, sums);
  for (long e = 0; e < events.others; e += 2) {  // 2 * 127 * 127 fits 16 bits
    Half first{}, second{};
    for (long each = e; each < std::min(e + 2, events.others); ++each) {
      const long m = events.larger[each];
      Half left, right;
      std::memcpy(&left, weights + m * BLOCK, BLOCK);
      std::memcpy(&right, weights + m * BLOCK + BLOCK / 2, BLOCK);
      const int16_t level = spikes[m];
      first += left * level, second += right * level;
    }
    flush(first, second, sums);
  }
}

}  // namespace

extern "C" {

// spikes [W, T, M] through weights: to a token's sums, total [W, columns] += acc, where
//     acc = (doubling + 1) acc + a[t] factor[t],  clipped;
// or, with `each`, to currents, total [W, T, columns] += a[t] factor[t]; with `fresh` nothing was there before.
// Returns how many were clipped.
long arrive(const int8_t* spikes, const int16_t* weights, double* total, const double* factor, long W, long T,
            long M, long columns, int doubling, int each, int fresh) {
  long count = 0;
  std::vector<Events> rows;
  for (long begin = 0; begin < W; begin += CHUNK) {
    const long tokens = std::min(CHUNK, W - begin);
    if (static_cast<long>(rows.size()) < tokens * T) rows.resize(tokens * T);
    const int8_t* own = spikes + begin * T * M;
    for (long row = 0; row < tokens * T; ++row) rows[row].read(own + row * M, M);
    int32_t sums[BLOCK];
    double acc[BLOCK], over[BLOCK] = {};
    for (long block = 0; block < columns; block += BLOCK) {
      const int16_t* part = weights + block * M;
      for (long w = 0; w < tokens; ++w) {
        if (!each) std::memset(acc, 0, sizeof acc);
        for (long t = 0; t < T; ++t) {
          const long row = w * T + t;
          gather(rows[row], own + row * M, part, sums);
          if (each) {
            double* out = total + (begin * T + row) * columns + block;
            for (long n = 0; n < BLOCK; ++n) out[n] = (fresh ? 0.0 : out[n]) + sums[n] * factor[t];
          } else {
            for (long n = 0; n < BLOCK; ++n) {
              const double x = (doubling ? 2 * acc[n] : acc[n]) + sums[n] * factor[t];
              acc[n] = clipped(x);
              over[n] += acc[n] != x ? 1.0 : 0.0;
            }
          }
        }
        if (!each) {
          double* out = total + (begin + w) * columns + block;
          for (long n = 0; n < BLOCK; ++n) out[n] = (fresh ? 0.0 : out[n]) + acc[n];
        }
      }
    }
    for (double each_over : over) count += static_cast<long>(each_over);
  }
  return count;
}

}  // extern "C"

namespace {

template <typename Real>
long atmn(const double* sums, const double* numbers, double decay_of, int8_t* spikes, long W, long T, long N,
          long columns) {
  long count = 0;
  const Real decay = static_cast<Real>(decay_of);
  for (long w = 0; w < W; ++w) {
    Real h[BLOCK], fire[BLOCK], amplitude[BLOCK], over[BLOCK] = {};
    int8_t sent[BLOCK];
    for (long block = 0; block < columns; block += BLOCK) {
      const double *in = sums + w * columns + block, *of = numbers + block;
      for (long n = 0; n < BLOCK; ++n) {
        const double x = in[n] + of[n], kept = clipped(x);
        over[n] += kept != x ? 1 : 0;
        h[n] = static_cast<Real>(kept);
        fire[n] = static_cast<Real>(of[columns + n]), amplitude[n] = static_cast<Real>(of[2 * columns + n]);
      }
      for (long t = 0; t < T; ++t) {
        for (long n = 0; n < BLOCK; ++n) {
          const Real x = clipped(h[n]);
          over[n] += x != h[n] ? 1 : 0;
          const Real s = (x >= fire[n] ? Real(1) : Real(0)) - (-x >= fire[n] ? Real(1) : Real(0));
          sent[n] = static_cast<int8_t>(s);
          h[n] = whole((x - s * amplitude[n]) * decay);
        }
        std::memcpy(spikes + (w * T + t) * N + block, sent, std::min(BLOCK, N - block));
      }
    }
    for (Real each : over) count += static_cast<long>(each);
  }
  return count;
}

}  // namespace

extern "C" {

// spikes [W, T, N] of sums [W, columns] without their bias; numbers [3, columns]: bias, fire, amplitude. A leak
// by a power of two is exact in floats, too: 24 bits stay 24 bits.
long atmn(const double* sums, const double* numbers, double decay, int8_t* spikes, long W, long T, long N,
          long columns) {
  const auto chosen = decay == 0.5 || decay == 1 || decay == 2 ? atmn<float> : atmn<double>;
  return chosen(sums, numbers, decay, spikes, W, T, N, columns);
}
}

namespace {

// One step of 64 neurons: `in` without their bias, `of` as below; `over` counts what was clipped.
template <bool CURRENT, bool ADAPTS>
inline __attribute__((always_inline)) void lif_step(const double* in, const double* of, long columns, double* v,
                                                    double* i, double* adapted, double* over, int8_t* sent, int most,
                                                    double sign, int zero) {
  const double *bias = of, *fire = bias + columns, *amplitude = fire + columns, *decay = amplitude + columns,
               *current_decay = decay + columns, *adaptation = current_decay + columns,
               *adaptation_decay = adaptation + columns;
  double h[BLOCK], s[BLOCK];
  for (long n = 0; n < BLOCK; ++n) {
    const double driven = (CURRENT ? whole(i[n] * current_decay[n]) : 0.0) + in[n] + bias[n];
    const double kept = clipped(driven);
    const double x = whole(v[n] * decay[n]) + kept;
    const double y = clipped(x);
    over[n] += (kept != driven ? 1.0 : 0.0) + (y != x ? 1.0 : 0.0);
    i[n] = kept, h[n] = y, s[n] = 0;
  }
  for (int k = 0; k < most; ++k)
    for (long n = 0; n < BLOCK; ++n) {
      const double level = fire[n] + (ADAPTS ? adapted[n] : 0.0) + k * amplitude[n];
      s[n] += (h[n] >= level ? 1.0 : 0.0) - (-h[n] >= level ? sign : 0.0);
    }
  for (long n = 0; n < BLOCK; ++n) {
    sent[n] = static_cast<int8_t>(s[n]);
    v[n] = zero ? (s[n] == 0 ? h[n] : 0.0) : h[n] - s[n] * amplitude[n];
    if (ADAPTS) {
      const double size = s[n] < 0 ? -s[n] : s[n];
      const double x = whole(adapted[n] * adaptation_decay[n]) + size * adaptation[n];
      adapted[n] = clipped(x);
      over[n] += adapted[n] != x ? 1.0 : 0.0;
    }
  }
}

struct Lif {
  const double *currents, *numbers;
  int8_t* spikes;
  long runs, length, N, columns;
  int most;
  double sign;
  int zero;
  const int16_t* weights;  // by which spikes come back, or none
  double factor;

  const double* in(long run, long t) const { return currents + (run * length + t) * columns; }
  int8_t* out(long run, long t) const { return spikes + (run * length + t) * N; }
};

template <bool CURRENT, bool ADAPTS>
long lif(const Lif& p) {  // block by block, each through all steps
  long count = 0;
  for (long run = 0; run < p.runs; ++run)
    for (long block = 0; block < p.columns; block += BLOCK) {
      double v[BLOCK] = {}, i[BLOCK] = {}, adapted[BLOCK] = {}, over[BLOCK] = {};
      int8_t sent[BLOCK];
      for (long t = 0; t < p.length; ++t) {
        lif_step<CURRENT, ADAPTS>(p.in(run, t) + block, p.numbers + block, p.columns, v, i, adapted, over, sent,
                                  p.most, p.sign, p.zero);
        std::memcpy(p.out(run, t) + block, sent, std::min(BLOCK, p.N - block));
      }
      for (double each : over) count += static_cast<long>(each);
    }
  return count;
}

template <bool CURRENT, bool ADAPTS>
long lif_returning(const Lif& p) {  // step by step, as all spikes of one come back at the next
  long count = 0;
  Events events;
  std::vector<double> v(p.columns), i(p.columns), adapted(p.columns), over(p.columns);
  for (long run = 0; run < p.runs; ++run) {
    for (auto* state : {&v, &i, &adapted}) std::fill(state->begin(), state->end(), 0.0);
    for (long t = 0; t < p.length; ++t) {
      if (t) events.read(p.out(run, t - 1), p.N);
      for (long block = 0; block < p.columns; block += BLOCK) {
        double driven[BLOCK];
        std::memcpy(driven, p.in(run, t) + block, sizeof driven);
        if (t) {
          int32_t sums[BLOCK];
          gather(events, p.out(run, t - 1), p.weights + block * p.N, sums);
          for (long n = 0; n < BLOCK; ++n) driven[n] += sums[n] * p.factor;
        }
        int8_t sent[BLOCK];
        lif_step<CURRENT, ADAPTS>(driven, p.numbers + block, p.columns, &v[block], &i[block], &adapted[block],
                                  &over[block], sent, p.most, p.sign, p.zero);
        std::memcpy(p.out(run, t) + block, sent, std::min(BLOCK, p.N - block));
      }
    }
  }
  for (double each : over) count += static_cast<long>(each);
  return count;
}

}  // namespace

extern "C" {

// spikes [runs, length, N] of currents [runs, length, columns] without their bias; numbers [7, columns]: bias, fire,
// amplitude, and decay, current_decay, adaptation, adaptation_decay, the decays as fractions. Spikes come back by
// `weights` [blocks, N, 64] times `factor`, if there are any.
long lif(const double* currents, const double* numbers, int8_t* spikes, long runs, long length, long N,
         long columns, int most, int sign, int zero, int current, int adapts, const int16_t* weights,
         double factor) {
  const Lif p{currents, numbers, spikes, runs, length, N, columns, most, static_cast<double>(sign), zero, weights,
              factor};
  if (weights) {
    const auto chosen = current ? (adapts ? lif_returning<true, true> : lif_returning<true, false>)
                                : (adapts ? lif_returning<false, true> : lif_returning<false, false>);
    return chosen(p);
  }
  const auto chosen = current ? (adapts ? lif<true, true> : lif<true, false>)
                              : (adapts ? lif<false, true> : lif<false, false>);
  return chosen(p);
}
}
