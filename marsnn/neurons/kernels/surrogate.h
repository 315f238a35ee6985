// The derivatives of marsnn/surrogate.py, operation for operation. `k` is the surrogate's one setting.
#pragma once
#include "scalar.h"

#define PI 3.141592653589793

INLINE S magnitude(S x) { return select(x >= constant(0), x, -x); }
INLINE S reciprocal(S x) { return constant(1) / x; }

// e^x to about one unit in the last place.
INLINE Wide exponential(Wide x) {
#if defined(DTYPE_float64)
    return exponential_of_double(x);
#else
    x = select(x < wide(-87.3f), wide(-87.3f), select(x > wide(88.7f), wide(88.7f), x));
    Wide n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    Wide r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    Wide p = wide(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * power_of_two(n);
#endif
}

INLINE S derivative(S x, double k) {
#if defined(SURROGATE_atan)
    S y = (C)(PI / 2 * k) * x;
    return reciprocal((C)2 * (y * y + (C)1)) * (C)k;
#elif defined(SURROGATE_sigmoid)
    S s = rounded_to((C)1 / (exponential(value(-((C)k * x))) + (C)1));
    return (C)k * s * ((C)1 - s);
#elif defined(SURROGATE_triangular)
    S tent = (C)1 - (C)k * magnitude(x);
    return (C)k * select(tent >= constant(0), tent, constant(0));
#elif defined(SURROGATE_fast_sigmoid)
    S y = (C)k * magnitude(x) + (C)1;
    return reciprocal(y * y);
#elif defined(SURROGATE_rectangular)
    return select(magnitude(x) >= constant((C)(k / 2)), constant(0), constant(1)) / (C)k;
#elif defined(SURROGATE_erf)
    S y = (C)k * x;
    return (C)(k / 1.772453850905516) * rounded_to(exponential(value(-(y * y))));
#elif defined(SURROGATE_straight_through)
    (void)x;
    return constant((C)k);
#else
#error "define SURROGATE_<name>"
#endif
}
