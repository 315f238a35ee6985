// Arithmetic in the dtype of the tensors, one rounding for each operation, as torch's eager operators do it.
//
//   Stored   what lies in memory: float, double, or 16 bits
//   C        a constant: double for double, else float (torch's "opmath" type)
//   Wide     LANES columns of C side by side, in vector registers of 64 bytes or what the machine has of them
//   S        LANES values of the dtype; its operators round to it. For float and double it is Wide
//
// The including file is compiled without contraction of a * b + c into one rounding.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

#if defined(DTYPE_float64)
typedef double C;
typedef double Stored;
#else
typedef float C;
#if defined(DTYPE_float32)
typedef float Stored;
#elif defined(DTYPE_bfloat16) || defined(DTYPE_float16)
typedef unsigned short Stored;
#define REDUCED
#else
#error "define DTYPE_float32, DTYPE_float64, DTYPE_bfloat16 or DTYPE_float16"
#endif
#endif

enum { LANES = 64 / sizeof(C) };
typedef C Wide __attribute__((vector_size(64)));
typedef decltype(Wide() >= Wide()) Mask;
typedef Stored Row __attribute__((vector_size(LANES * sizeof(Stored))));

INLINE Wide wide(C x) { return x - Wide{}; }
INLINE Wide select(Mask m, Wide a, Wide b) { return m ? a : b; }

INLINE Row load_row(const Stored* p) {
    Row row;
    memcpy(&row, p, sizeof row);
    return row;
}
INLINE void store_row(Stored* p, Row row) { memcpy(p, &row, sizeof row); }

// Past the caches, for what is too large for them; p is a multiple of the row's size.
INLINE void stream_row(Stored* p, Row row) {
#if defined(__AVX512F__)
    if (sizeof row == 64) {
        __m512i whole;
        memcpy(&whole, &row, sizeof row);
        _mm512_stream_si512((__m512i*)p, whole);
        return;
    }
#endif
#if defined(__AVX__)
    __m256i part[sizeof row / 32];
    memcpy(part, &row, sizeof row);
    for (unsigned i = 0; i < sizeof row / 32; i++) _mm256_stream_si256((__m256i*)p + i, part[i]);
#elif defined(__SSE2__)
    __m128i part[sizeof row / 16];
    memcpy(part, &row, sizeof row);
    for (unsigned i = 0; i < sizeof row / 16; i++) _mm_stream_si128((__m128i*)p + i, part[i]);
#else
    store_row(p, row);
#endif
}

// Makes streamed rows visible to other threads.
INLINE void settle() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#if !defined(REDUCED)
typedef Wide S;
INLINE S widened(Row row) { return row; }
INLINE Row narrowed(S x) { return x; }
INLINE S rounded_to(Wide x) { return x; }
INLINE Wide value(S x) { return x; }
#else
typedef unsigned Bits __attribute__((vector_size(64)));

#if defined(DTYPE_bfloat16)
INLINE Wide rounded(Wide x) {  // to nearest, ties to even
    Bits u = (Bits)x;
    return (Wide)((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}
INLINE Wide widened_row(Row row) { return (Wide)(__builtin_convertvector(row, Bits) << 16); }
INLINE Row narrowed_row(Wide x) { return __builtin_convertvector((Bits)x >> 16, Row); }
#else
typedef _Float16 Half __attribute__((vector_size(32)));
#if defined(__AVX512F__)
INLINE Half halves(Wide x) { return (Half)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
INLINE Wide floats(Half x) { return (Wide)_mm512_cvtph_ps((__m256i)x); }
#else
INLINE Half halves(Wide x) { return __builtin_convertvector(x, Half); }
INLINE Wide floats(Half x) { return __builtin_convertvector(x, Wide); }
#endif
INLINE Wide rounded(Wide x) { return floats(halves(x)); }
INLINE Wide widened_row(Row row) { return floats((Half)row); }
INLINE Row narrowed_row(Wide x) { return (Row)halves(x); }
#endif

struct S {
    Wide x;
};
INLINE S rounded_to(Wide x) { return S{rounded(x)}; }
INLINE S widened(Row row) { return S{widened_row(row)}; }
INLINE Row narrowed(S a) { return narrowed_row(a.x); }
INLINE Wide value(S a) { return a.x; }
INLINE S operator+(S a, S b) { return rounded_to(a.x + b.x); }
INLINE S operator-(S a, S b) { return rounded_to(a.x - b.x); }
INLINE S operator*(S a, S b) { return rounded_to(a.x * b.x); }
INLINE S operator/(S a, S b) { return rounded_to(a.x / b.x); }
INLINE S operator-(S a) { return S{-a.x}; }
// torch rounds a Python number to the dtype before it adds it, and keeps it as it is to multiply by it
INLINE S operator+(S a, C b) { return rounded_to(a.x + rounded(wide(b))); }
INLINE S operator-(S a, C b) { return rounded_to(a.x - rounded(wide(b))); }
INLINE S operator-(C a, S b) { return rounded_to(rounded(wide(a)) - b.x); }
INLINE S operator*(S a, C b) { return rounded_to(a.x * b); }
INLINE S operator*(C a, S b) { return rounded_to(a * b.x); }
INLINE S operator/(S a, C b) { return rounded_to(a.x / b); }
INLINE Mask operator>=(S a, S b) { return a.x >= b.x; }
INLINE S select(Mask m, S a, S b) { return S{select(m, a.x, b.x)}; }
#endif

INLINE S constant(C x) { return rounded_to(wide(x)); }
INLINE S one_where(Mask fires) { return select(fires, constant(1), constant(0)); }
