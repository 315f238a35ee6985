// Arithmetic in the dtype of the tensors, one rounding for each operation, as torch's eager operators do it.
//
//   Stored   what lies in memory: float, double, or 16 bits
//   C        a constant: double for double, else float (torch's "opmath" type)
//   Wide     LANES columns of C side by side, in vector registers of 64 bytes or what the machine has of them;
//            one column where ONE_COLUMN is defined, as for a thread of a GPU
//   S        LANES values of the dtype; its operators round to it. For float and double it is Wide
//
// The including file is compiled without contraction of a * b + c into one rounding.
#pragma once

#if defined(ONE_COLUMN)
#define INLINE inline __device__
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#define INLINE inline __attribute__((always_inline))
#endif

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

#if defined(ONE_COLUMN)
#include "one_column.h"
#else
#include "columns.h"
#endif

#if !defined(REDUCED)
typedef Wide S;
INLINE S widened(Row row) { return row; }
INLINE Row narrowed(S x) { return x; }
INLINE S rounded_to(Wide x) { return x; }
INLINE Wide value(S x) { return x; }
#else
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
// torch on a CPU rounds a Python number to the dtype before it adds it; on a GPU, and to multiply by it, it
// keeps it as it is
#if defined(NUMBERS_UNROUNDED)
INLINE Wide number(C a) { return wide(a); }
#else
INLINE Wide number(C a) { return rounded(wide(a)); }
#endif
INLINE S operator+(S a, C b) { return rounded_to(a.x + number(b)); }
INLINE S operator-(S a, C b) { return rounded_to(a.x - number(b)); }
INLINE S operator-(C a, S b) { return rounded_to(number(a) - b.x); }
INLINE S operator*(S a, C b) { return rounded_to(a.x * b); }
INLINE S operator*(C a, S b) { return rounded_to(a * b.x); }
INLINE S operator/(S a, C b) { return rounded_to(a.x / b); }
INLINE Mask operator>=(S a, S b) { return a.x >= b.x; }
INLINE S select(Mask m, S a, S b) { return S{select(m, a.x, b.x)}; }
#endif

INLINE S constant(C x) { return rounded_to(wide(x)); }
INLINE S one_where(Mask fires) { return select(fires, constant(1), constant(0)); }
