/* Section 1 of the page: shifts, rounding, clipping, the accumulator; and the integer functions of LayerNorm and softmax. */

#include <stdint.h>

enum rounding { HALF_UP, HALF_EVEN, HALF_AWAY, FLOOR };
enum overflow { ERROR, WRAP, SATURATE };

static struct { int64_t rounding, accumulator_bits, overflow; } datapath;

/* x >> s, arithmetic. C leaves the shift of negative numbers to the compiler; ~x is not negative where x is. */
static int64_t shift_right(int64_t x, int64_t s) { return x < 0 ? ~(~x >> s) : x >> s; }

static int64_t power(int64_t s) { return (int64_t)1 << s; }

static int64_t round_shift(int64_t x, int64_t s)
{
    if (s == 0)
        return x;
    const int64_t floor = shift_right(x, s), remainder = x - floor * power(s), half = power(s - 1);
    switch (datapath.rounding) {
    case HALF_UP: return shift_right(x + half, s);
    case HALF_EVEN: return floor + (remainder > half || (remainder == half && floor % 2 != 0));
    case HALF_AWAY: return floor + (remainder > half || (remainder == half && x > 0));
    default: return floor;
    }
}

static int64_t clip(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* The finished sum in the accumulator. [D2]: under `error` the exporter has proved that it fits. */
static int64_t narrow(int64_t sum)
{
    const int64_t half = power(datapath.accumulator_bits - 1);
    switch (datapath.overflow) {
    case WRAP: return (int64_t)((uint64_t)(sum + half) & (uint64_t)(2 * half - 1)) - half;
    case SATURATE: return clip(sum, -half, half - 1);
    default: return sum;
    }
}

static int64_t bit_length(int64_t x)
{
    int64_t bits = 0;
    for (; x > 0; x >>= 1)
        bits++;
    return bits;
}

/* floor(sqrt(x)), bit by bit; x below 2^62. */
static int64_t isqrt(int64_t x)
{
    int64_t root = 0;
    for (int64_t bit = power(30); bit > 0; bit >>= 1)
        if ((root + bit) * (root + bit) <= x)
            root += bit;
    return root;
}
