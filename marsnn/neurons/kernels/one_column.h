// Wide of scalar.h: one column, for a thread of a GPU.
#pragma once

enum { LANES = 1 };
typedef C Wide;
typedef bool Mask;
typedef Stored Row;

INLINE Wide wide(C x) { return x; }
INLINE Wide select(Mask m, Wide a, Wide b) { return m ? a : b; }
INLINE Wide exponential_of_double(Wide x) { return exp(x); }

#if !defined(DTYPE_float64)
union Word {
    float value;
    unsigned bits;
};
INLINE float as_float(unsigned bits) {
    Word word;
    word.bits = bits;
    return word.value;
}
INLINE unsigned as_bits(float value) {
    Word word;
    word.value = value;
    return word.bits;
}
INLINE Wide power_of_two(Wide n) { return as_float((unsigned)((int)n + 127) << 23); }
#endif

#if defined(DTYPE_bfloat16)
INLINE Wide rounded(Wide x) {  // to nearest, ties to even
    const unsigned u = as_bits(x);
    if (x != x) return as_float(0x7fc00000u);  // a GPU's own NaN, 0x7fffffff, would be carried over into -0
    return as_float((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}
INLINE Wide widened_row(Row row) { return as_float((unsigned)row << 16); }
INLINE Row narrowed_row(Wide x) { return (Row)(as_bits(x) >> 16); }
#elif defined(DTYPE_float16)
#if defined(__CUDACC__)
INLINE Row narrowed_row(Wide x) {
    Row half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}
INLINE Wide widened_row(Row row) {
    Wide x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(row));
    return x;
}
#else
INLINE Row narrowed_row(Wide x) { return __builtin_bit_cast(Row, (_Float16)x); }
INLINE Wide widened_row(Row row) { return (Wide)__builtin_bit_cast(_Float16, row); }
#endif
INLINE Wide rounded(Wide x) { return widened_row(narrowed_row(x)); }
#endif
