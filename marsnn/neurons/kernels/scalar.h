// Arithmetic in the dtype of the tensors, one rounding for each operation, as torch's eager operators do it.
//
//   Stored   what lies in memory: float, double, or 16 bits
//   S        a value; its operators round to the dtype. float and double are themselves
//   C        a constant or a sum over time: double for double, else float (torch's "opmath" type)
//
// The including file is compiled without contraction of a * b + c into one rounding.
#pragma once

#if defined(__CUDACC__)
#define INLINE __device__ __forceinline__
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#define INLINE inline __attribute__((always_inline))
#endif

typedef unsigned int bits32;
typedef unsigned short bits16;

INLINE bits32 bits_of(float x) {
    bits32 u;
    memcpy(&u, &x, 4);
    return u;
}
INLINE float float_of(bits32 u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

#if defined(DTYPE_float64)
typedef double Stored, S, C;
INLINE S load(const Stored* p) { return *p; }
INLINE void store(Stored* p, S x) { *p = x; }
INLINE S sum_of(C x) { return x; }
INLINE C value(S x) { return x; }
#elif defined(DTYPE_float32)
typedef float Stored, S, C;
INLINE S load(const Stored* p) { return *p; }
INLINE void store(Stored* p, S x) { *p = x; }
INLINE S sum_of(C x) { return x; }
INLINE C value(S x) { return x; }
#else
typedef float C;
typedef bits16 Stored;

#if defined(DTYPE_bfloat16)
INLINE float rounded(float x) {  // to nearest, ties to even; NaN is not expected here
    bits32 u = bits_of(x);
    return float_of((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}
INLINE float widened(bits16 h) { return float_of((bits32)h << 16); }
INLINE bits16 narrowed(float x) { return (bits16)(bits_of(x) >> 16); }
#elif defined(DTYPE_float16)
typedef _Float16 half;
INLINE float rounded(float x) { return (float)(half)x; }
INLINE float widened(bits16 h) {
    half x;
    memcpy(&x, &h, 2);
    return (float)x;
}
INLINE bits16 narrowed(float x) {
    half h = (half)x;
    bits16 u;
    memcpy(&u, &h, 2);
    return u;
}
#else
#error "define DTYPE_float32, DTYPE_float64, DTYPE_bfloat16 or DTYPE_float16"
#endif

struct S {
    float x;
};
INLINE S exactly(float x) {
    S s;
    s.x = x;
    return s;
}
INLINE S sum_of(C x) { return exactly(rounded(x)); }
INLINE C value(S a) { return a.x; }
INLINE S operator+(S a, S b) { return sum_of(a.x + b.x); }
INLINE S operator-(S a, S b) { return sum_of(a.x - b.x); }
INLINE S operator*(S a, S b) { return sum_of(a.x * b.x); }
INLINE S operator/(S a, S b) { return sum_of(a.x / b.x); }
INLINE S operator-(S a) { return exactly(-a.x); }
// torch rounds a Python number to the dtype before it adds it, and keeps it as it is to multiply by it
INLINE S operator+(S a, C b) { return sum_of(a.x + rounded(b)); }
INLINE S operator-(S a, C b) { return sum_of(a.x - rounded(b)); }
INLINE S operator-(C a, S b) { return sum_of(rounded(a) - b.x); }
INLINE S operator*(S a, C b) { return sum_of(a.x * b); }
INLINE S operator*(C a, S b) { return sum_of(a * b.x); }
INLINE S operator/(S a, C b) { return sum_of(a.x / b); }
INLINE bool operator>=(S a, S b) { return a.x >= b.x; }
INLINE S load(const Stored* p) { return exactly(widened(*p)); }
INLINE void store(Stored* p, S s) { *p = narrowed(s.x); }
#endif

INLINE S constant(C x) { return sum_of(x); }
INLINE S one_where(bool fires) { return constant(fires ? (C)1 : (C)0); }
INLINE S choose(bool first, S a, S b) { return first ? a : b; }
INLINE bool is_finite(S a) {
#if defined(DTYPE_float64)
    return fabs(a) <= 1.7976931348623157e308;
#else
    return (bits_of(value(a)) & 0x7f800000u) != 0x7f800000u;
#endif
}
