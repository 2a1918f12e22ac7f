/* Section 1 of the page: shifts, rounding, clipping, the accumulator; and the integer functions of LayerNorm and softmax.
 *
 * The page proves that no sum or product leaves 63 bits in a program that was exported. A program.bin that somebody else made has no
 * such proof: `times` and `plus` stop it, and so does a finished sum that its accumulator cannot hold. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum rounding { HALF_UP, HALF_EVEN, HALF_AWAY, FLOOR };
enum overflow { ERROR, WRAP, SATURATE };

static struct { int64_t rounding, accumulator_bits, overflow; } datapath;

static void fail(int code, const char *where, const char *message)
{
    fprintf(stderr, "error: %s: %s\n", where, message);
    exit(code);
}

static void expect(int is_true)
{
    if (!is_true)
        fail(3, "program.bin", "breaks a constraint of the page: not what eamsim exports; export it again");
}

static int64_t plus(int64_t a, int64_t b)
{
    expect(b < 0 ? a >= INT64_MIN - b : a <= INT64_MAX - b);
    return a + b;
}

static int64_t times(int64_t a, int64_t b)
{
    const uint64_t x = a < 0 ? 0 - (uint64_t)a : (uint64_t)a, y = b < 0 ? 0 - (uint64_t)b : (uint64_t)b;
    expect(!y || x <= (uint64_t)INT64_MAX / y);
    return a * b;
}

/* x >> s, arithmetic. C leaves the shift of negative numbers to the compiler; ~x is not negative where x is. */
static int64_t shift_right(int64_t x, int64_t s) { return x < 0 ? ~(~x >> s) : x >> s; }

static int64_t power(int64_t s) { return (int64_t)1 << s; }

static int64_t round_shift(int64_t x, int64_t s)
{
    if (s == 0)
        return x;
    const int64_t floor = shift_right(x, s), remainder = x - floor * power(s), half = power(s - 1);
    switch (datapath.rounding) {
    case HALF_UP: return shift_right(plus(x, half), s);
    case HALF_EVEN: return floor + (remainder > half || (remainder == half && floor % 2 != 0));
    case HALF_AWAY: return floor + (remainder > half || (remainder == half && x > 0));
    default: return floor;
    }
}

static int64_t clip(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* The finished sum in the accumulator [D2]. */
static int64_t narrow(int64_t sum)
{
    const int64_t half = power(datapath.accumulator_bits - 1);
    switch (datapath.overflow) {
    case WRAP: return (int64_t)(((uint64_t)sum + (uint64_t)half) & (uint64_t)(2 * half - 1)) - half;
    case SATURATE: return clip(sum, -half, half - 1);
    default: expect(-half <= sum && sum < half); return sum;
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
    expect(x < power(62));
    int64_t root = 0;
    for (int64_t bit = power(30); bit > 0; bit >>= 1)
        if ((root + bit) * (root + bit) <= x)
            root += bit;
    return root;
}
