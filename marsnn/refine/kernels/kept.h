// Which values of an activation stay, as `Sparsifier` chooses them.
#pragma once
#include "product.h"

enum Choice { ALL, NONZERO, THRESHOLD, TOPK };

INLINE Lane size_bits(F x) {  // of |x|: they order as the numbers do, NaN above all
    Lane bits;
    memcpy(&bits, &x, sizeof(F));
    return bits & ~((Lane)1 << (8 * sizeof(F) - 1));
}
static long at_least(const F* x, long n, Lane level) {
    Lane found = 0;
    for (long i = 0; i < n; i++) found += size_bits(x[i]) >= level;
    return found;
}

// indices and values of those that stay, in order; how many
static long kept(const F* x, long n, long choice, long number, F level, int32_t* index, F* value) {
    long found = 0;
    auto take = [&](long i, bool stays) {
        index[found] = (int32_t)i;
        value[found] = x[i];
        found += stays;
    };
    if (choice == TOPK && number < n) {
        // the size of the last that stays, by halving; of those equal to it the first ones stay
        Lane low = 0, high = ~((Lane)1 << (8 * sizeof(F) - 1));  // above every NaN
        while (high - low > 1) {
            const Lane middle = low + (high - low) / 2;
            (at_least(x, n, middle) >= number ? low : high) = middle;
        }
        long equal = number - at_least(x, n, low + 1);
        for (long i = 0; i < n; i++) {
            const Lane size = size_bits(x[i]);
            const bool tied = size == low && equal > 0;
            equal -= tied;
            take(i, size > low || tied);
        }
    } else if (choice == THRESHOLD) {
        for (long i = 0; i < n; i++) take(i, std::abs(x[i]) >= level);
    } else {
        for (long i = 0; i < n; i++) take(i, choice != NONZERO || x[i] != 0);
    }
    return found;
}
