/* program.bin and memory in, taps out.
 *
 * Nothing in program.bin is trusted: its SHA-256 says that it is whole, not who made it. Each number and element is checked against
 * its range as it is taken, so that no index, shift or size is one that the page forbids. Needs arithmetic.h.
 *
 * A number is 8 bytes, little endian. An array is two numbers, bits per element and is_signed, then the elements without gaps. */

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sha256.h"

enum { FORMAT = 3 };

static const int64_t MOST = (int64_t)1 << 31; /* elements of a value, and 32 bits of a number [P3] */

struct value {
    char *name;
    int64_t axes, *shape, size, low, high;
    int64_t *data;
};

static struct { uint8_t *bytes; int64_t size, position; } stream; /* program.bin */
static struct { void *blocks[64]; int count; } scratch;           /* freed after each operation */
static struct { int wanted; FILE *file; } taps;

static void *zeros(int64_t count, size_t size)
{
    void *block = calloc((size_t)(count ? count : 1), size);
    if (!block)
        fail(3, "memory", "not enough for this program");
    return block;
}

static int64_t *integers(int64_t count)
{
    if (scratch.count == (int)(sizeof scratch.blocks / sizeof *scratch.blocks))
        fail(3, "program.bin", "an operation with too many arrays");
    return scratch.blocks[scratch.count++] = zeros(count, sizeof(int64_t));
}

static const uint8_t *take_bytes(int64_t count)
{
    if (count < 0 || count > stream.size - stream.position)
        fail(3, "program.bin", "ends early; export it again");
    stream.position += count;
    return stream.bytes + stream.position - count;
}

/* `bits` bits from bit `first` on, as a two's complement number where is_signed; bits divides 8 or is a multiple of it. */
static int64_t decode(const uint8_t *bytes, int64_t first, int64_t bits, int64_t is_signed)
{
    uint64_t number = 0;
    for (int64_t bit = 0; bit < bits; bit++)
        number |= (uint64_t)(bytes[(first + bit) / 8] >> (first + bit) % 8 & 1) << bit;
    const uint64_t greatest = ((uint64_t)1 << (bits - 1)) - 1; /* when signed */
    return !is_signed || number <= greatest ? (int64_t)number : (int64_t)(number & greatest) - (int64_t)greatest - 1;
}

static int64_t take_number(int64_t low, int64_t high)
{
    const int64_t number = decode(take_bytes(8), 0, 64, 1);
    expect(low <= number && number <= high);
    return number;
}

static int64_t *take_array(int64_t count, int64_t low, int64_t high)
{
    const int64_t bits = take_number(1, 64), is_signed = take_number(0, 1);
    expect(0 <= count && count < INT64_MAX / 64 && (bits % 8 == 0 || 8 % bits == 0));
    const uint8_t *bytes = take_bytes((count * bits + 7) / 8);
    int64_t *array = integers(count);
    for (int64_t i = 0; i < count; i++) {
        array[i] = decode(bytes, i * bits, bits, is_signed);
        expect(low <= array[i] && array[i] <= high);
    }
    return array;
}

static struct value take_value(void)
{
    struct value value = {0};
    const int64_t length = take_number(1, MOST);
    const uint8_t *name = take_bytes(length);
    value.name = zeros(length + 1, 1);
    memcpy(value.name, name, (size_t)length);
    value.axes = take_number(2, 3);
    value.shape = zeros(value.axes, sizeof *value.shape);
    value.size = 1;
    for (int64_t axis = 0; axis < value.axes; axis++)
        value.size *= value.shape[axis] = take_number(1, MOST / value.size); /* [P3] */
    value.low = take_number(-MOST, 0);
    value.high = take_number(0, MOST - 1);
    value.data = zeros(value.size, sizeof(int64_t));
    return value;
}

static void publish(const char *name, const char *suffix, const int64_t *data, int64_t axes, const int64_t *shape)
{
    struct sha256 sha = sha256_start();
    uint8_t digest[DIGEST_BYTES];
    int64_t count = 1;
    if (!taps.wanted)
        return;
    for (int64_t axis = 0; axis < axes; axis++)
        count *= shape[axis];
    uint8_t *bytes = (uint8_t *)integers(count);
    for (int64_t i = 0; i < 8 * count; i++)
        bytes[i] = (uint8_t)((uint64_t)data[i / 8] >> 8 * (i % 8));
    if (taps.file && fwrite(bytes, 8, (size_t)count, taps.file) != (size_t)count)
        fail(3, "taps", "cannot be written");
    sha256_add(&sha, bytes, 8 * count);
    sha256_finish(&sha, digest);
    for (int i = 0; i < DIGEST_BYTES; i++)
        printf("%02x", digest[i]);
    for (int64_t axis = 0; axis < axes; axis++)
        printf("%c%" PRId64, axis ? 'x' : ' ', shape[axis]);
    printf(" %s%s\n", name, suffix);
}
