// Wide of scalar.h: the columns of a vector register, and how rows of them reach memory.
#pragma once

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

// e^x by the C library, where nothing shorter is exact enough.
INLINE Wide exponential_of_double(Wide x) {
    for (int i = 0; i < LANES; i++) x[i] = std::exp(x[i]);
    return x;
}

#if !defined(DTYPE_float64)
INLINE Wide power_of_two(Wide n) {  // of integers from -126 to 127
    typedef int Ints __attribute__((vector_size(64)));
    return (Wide)((__builtin_convertvector(n, Ints) + 127) << 23);
}
#endif

#if defined(REDUCED)
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
#endif
