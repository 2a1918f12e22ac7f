/* One image through an integer Vision Transformer: docs/spec/datapath.md of eamsim in C99. Integers only, no dependencies.
 *
 *     cc -std=c99 -O2 -o model model.c
 *     ./model program.bin image.rgb                  the class with the highest logit
 *     ./model program.bin image.rgb --taps [FILE]    and for each tap: SHA-256, shape and name; its integers go to FILE
 *
 * image.rgb is height * width * 3 bytes, row by row, RGB; `-` is standard input. program.bin holds the operations in order with
 * their tables and weights (`eamsim export` wrote it) and ends in the SHA-256 of all before. Labels such as [C4] are those of the
 * page: they bound every sum below 2^63, so int64_t computes it. Integers are hashed and written as little-endian int64 in C order.
 * Exit codes: 0 done, 2 usage, 3 a file that is missing or damaged. */

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "arithmetic.h"
#include "stream.h"

enum operation { INPUT_QUANT, GATHER, EMBED, LAYER_NORM, LINEAR, ATTENTION, POOL };
enum epilogue { REQUANT, GELU, RESIDUAL, RAW };

static struct value *values; /* the image, then the output of each operation */
static int64_t known;         /* so many of them, by now */

/* clip of the page: into the range of the output value. */
static int64_t fit(int64_t x, const struct value *out) { return clip(x, out->low, out->high); }

/* ---- Section 2: operations. Each takes its fields from program.bin in the order of its declarations ---- */

static void input_quant(const struct value *x, struct value *out)
{
    expect(x == values && out->size == x->size);                   /* [C1] [C2] */
    const int64_t *table = take_array(3 * 256, out->low, out->high); /* [C3] */
    for (int64_t i = 0; i < out->size; i++)
        out->data[i] = table[i % 3 * 256 + x->data[i]];
}

static void gather(const struct value *x, struct value *out)
{
    const int64_t granule = take_number(1, MOST), granules = out->size / granule;
    expect(out->size % granule == 0 && x->size % granule == 0);                     /* [C1] */
    expect(out->low == x->low && out->high == x->high);                             /* [C3] */
    const int64_t *indices = take_array(granules, 0, x->size / granule - 1);        /* [C2] */
    for (int64_t g = 0; g < granules; g++)
        memcpy(out->data + g * granule, x->data + indices[g] * granule, (size_t)granule * sizeof *out->data);
}

static void embed(const struct value *x, struct value *out)
{
    const int64_t prefix_size = out->size - x->size;
    expect(prefix_size >= 0 && out->shape[out->axes - 1] == x->shape[x->axes - 1]); /* [C1] [C2] */
    const int64_t *prefix = take_array(prefix_size, out->low, out->high);           /* [C3] */
    const int64_t *position = take_array(x->size, -MOST, MOST - 1);                 /* [C4] */
    memcpy(out->data, prefix, (size_t)prefix_size * sizeof *prefix);
    for (int64_t i = 0; i < x->size; i++)
        out->data[prefix_size + i] = fit(x->data[i] + position[i], out);
}

static void layer_norm(const struct value *x, struct value *out)
{
    const int64_t tokens = x->shape[0], channels = x->shape[1];
    expect(x->axes == 2 && out->size == x->size && out->shape[1] == channels); /* [C1] [C2] */
    const int64_t *gain = take_array(channels, -MOST, MOST - 1), *offset = take_array(channels, INT64_MIN, INT64_MAX); /* [C3] */
    const int64_t shift = take_number(0, 62), variance_offset = take_number(1, INT64_MAX);  /* [C4] [C6] */
    const int64_t fraction_bits = take_number(0, 25), reciprocal_bits = take_number(1, 24); /* [C5] */
    expect(fraction_bits <= reciprocal_bits + 1);
    int64_t *variance = integers(tokens), *reciprocal = integers(tokens), *normalised = integers(x->size);
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t *row = x->data + t * channels;
        int64_t s1 = 0, s2 = 0;
        for (int64_t i = 0; i < channels; i++) {
            s1 += row[i];
            s2 = plus(s2, row[i] * row[i]);
        }
        variance[t] = plus(times(channels, s2) - times(s1, s1), variance_offset);
        const int64_t d = isqrt(variance[t]), e = bit_length(d) + reciprocal_bits;
        reciprocal[t] = power(e) / d;
        for (int64_t i = 0; i < channels; i++) {
            const int64_t y = channels * row[i] - s1, at = t * channels + i;
            normalised[at] = round_shift(times(y, reciprocal[t]), e - fraction_bits);
            out->data[at] = fit(round_shift(plus(times(normalised[at], gain[i]), offset[i]), shift), out); /* [C7] */
        }
    }
    publish(out->name, ".variance", variance, 1, x->shape);
    publish(out->name, ".reciprocal", reciprocal, 1, x->shape);
    publish(out->name, ".normalised", normalised, 2, x->shape);
}

static int64_t *accumulate(const struct value *x, const struct value *out)
{
    const int64_t tokens = x->shape[0], in_channels = x->shape[1], channels = out->shape[1];
    int64_t *weight = take_array(in_channels * channels, 0, 255); /* [C4] */
    const int64_t *weight_zero = take_array(channels, 0, 255);    /* [C5] */
    const int64_t x_zero = take_number(0, x->high);               /* [C6] */
    const int64_t *bias = take_array(channels, -MOST, MOST - 1);  /* [C7] */
    const int64_t entries = take_number(0, 256);                  /* [C16] */
    const int64_t *levels = entries ? take_array(entries, -128, 127) : NULL;
    expect(!entries || entries > x->high);
    int64_t *acc = integers(out->size);
    for (int64_t i = 0; i < in_channels * channels; i++)
        weight[i] -= weight_zero[i % channels];
    for (int64_t t = 0; t < tokens; t++) {
        int64_t *sums = acc + t * channels;
        memcpy(sums, bias, (size_t)channels * sizeof *bias);
        for (int64_t k = 0; k < in_channels; k++) {
            const int64_t code = x->data[t * in_channels + k];
            const int64_t operand = levels ? levels[code] : code - x_zero;
            for (int64_t n = 0; n < channels; n++)
                sums[n] += operand * weight[k * channels + n];
        }
        for (int64_t n = 0; n < channels; n++)
            sums[n] = narrow(sums[n]); /* [C8] */
    }
    return acc;
}

static void gelu(const int64_t *v, struct value *out)
{
    const int64_t index_zero = take_number(-power(16), power(16)), index_bits = take_number(2, 12); /* [C12] */
    const int64_t *table = take_array(power(index_bits), out->low, out->high);
    int64_t *index = integers(out->size);
    for (int64_t i = 0; i < out->size; i++) {
        index[i] = clip(plus(v[i], index_zero), 0, power(index_bits) - 1);
        out->data[i] = table[index[i]];
    }
    publish(out->name, ".index", index, 2, out->shape);
}

static void linear(const struct value *x, struct value *out)
{
    const int64_t channels = out->shape[1];
    expect(x->axes == 2 && out->axes == 2 && x->low == 0 && x->shape[0] == out->shape[0]); /* [C1] [C2] */
    int64_t *acc = accumulate(x, out), *v = integers(out->size);
    publish(out->name, ".acc", acc, 2, out->shape);
    const int64_t epilogue = take_number(REQUANT, RAW);
    const int64_t *multiplier = take_array(channels, 0, power(30)), *shift = take_array(channels, 0, 62); /* [C9] */
    if (epilogue == RESIDUAL) {
        const struct value *operand = values + take_number(0, known - 1);
        const int64_t exponent_change = take_number(0, 62);
        expect(operand->size == out->size); /* [C13] */
        for (int64_t i = 0; i < out->size; i++) {
            const int64_t n = i % channels;
            expect(exponent_change <= shift[n]);
            const int64_t aligned = times(operand->data[i], power(shift[n] - exponent_change));
            out->data[i] = fit(round_shift(plus(aligned, times(acc[i], multiplier[n])), shift[n]), out); /* [C14] */
        }
        return;
    }
    for (int64_t i = 0; i < out->size; i++)
        v[i] = round_shift(times(acc[i], multiplier[i % channels]), shift[i % channels]); /* [C10] */
    if (epilogue == GELU) {
        gelu(v, out);
        return;
    }
    const int64_t *zero = epilogue == REQUANT ? take_array(channels, out->low, out->high) : integers(channels); /* [C11] [C15] */
    for (int64_t i = 0; i < out->size; i++)
        out->data[i] = fit(plus(v[i], zero[i % channels]), out);
}

/* Arrays over pairs are [maps, heads, query rows, tokens]; with one map for all windows, maps is 1; 0 where the program has none. */
struct attention {
    int64_t rows, tokens, head_dim; /* query rows, and tokens, of a window */
    int64_t heads, windows, scored;
    const struct value *q, *x;      /* q in the first columns of the one; the other has k from the column below on, then v */
    int64_t first_key;              /* in groups of head_dim */
    int64_t *scored_heads;
    int64_t q_zero, k_zero, v_zero, score_multiplier, score_shift;
    int64_t f, *exp2, exp2_bits, m, *log2, log2_scale;
    int64_t last_code, last_code_is_zero, renormalised, multiplier_even, multiplier_odd, out_shift, out_zero;
    int64_t frozen_maps, *mask, *frozen_codes, missing_bits, *row_log2; /* missing_bits: attention_bits - frozen.bits */
    int64_t bias_maps, *logit_bias;
    int64_t excluding, *excluded;
    int64_t *scores, *exponents, *log_sum, *codes, *even, *odd;
};

/* One query row of one head of one window: `number` in [windows, heads, rows], `frozen` and `bias` in their own maps. */
struct row { int64_t window, head, query, number, frozen, bias; };

/* How many maps an array has: none, one for all windows, or one for each. */
static int64_t take_maps(const struct attention *a)
{
    const int64_t maps = take_number(0, a->windows);
    expect(maps <= 1 || maps == a->windows);
    return maps;
}

static struct attention take_attention(const struct value *x, const struct value *out)
{
    struct attention a = {0};
    expect(x->axes == 2 && out->axes == 2 && x->low == 0 && x->high < power(16)); /* [C1] [C2] */
    a.heads = take_number(1, out->shape[1]), a.windows = take_number(1, out->shape[0]);
    expect(out->shape[1] % a.heads == 0 && out->shape[0] % a.windows == 0);
    a.rows = a.tokens = out->shape[0] / a.windows;
    a.head_dim = out->shape[1] / a.heads;
    a.scored = take_number(0, a.heads);                                     /* [C4] */
    a.scored_heads = take_array(a.scored, 0, a.heads - 1);
    a.q = a.x = x, a.first_key = a.scored;
    const int64_t key_tokens = take_number(0, x->shape[0]); /* 0: q is in x, a row for each token */
    if (key_tokens) { /* [C19] */
        a.q = values + take_number(0, known - 1), a.tokens = key_tokens, a.first_key = 0;
        expect(a.q->axes == 2 && a.q->low == 0 && a.q->high == x->high);
        expect(a.q->shape[0] == out->shape[0] && a.q->shape[1] == a.scored * a.head_dim);
    }
    expect(x->shape[0] == a.windows * a.tokens && x->shape[1] == (a.first_key + a.scored + a.heads) * a.head_dim); /* [C1] */
    expect(a.rows < power(16) && a.tokens < power(16) && a.windows * a.heads <= (MOST - 1) / (a.rows * a.tokens)); /* [C3] */
    a.q_zero = take_number(0, x->high), a.k_zero = take_number(0, x->high), a.v_zero = take_number(0, x->high); /* [C6] */
    a.score_multiplier = take_number(0, power(30)), a.score_shift = take_number(0, 62); /* [C15] */
    a.f = take_number(0, 16), a.exp2 = take_array(power(a.f), 0, power(24)), a.exp2_bits = take_number(1, 24); /* [C7] */
    a.m = take_number(0, 16), a.log2 = take_array(power(a.m), 0, power(a.f));  /* [C7] */
    a.log2_scale = take_number(-power(24), power(24));                         /* [C8] */
    a.last_code = power(take_number(2, 6)) - 1, a.last_code_is_zero = take_number(0, 1); /* [C9] */
    a.renormalised = take_number(0, 1);                                        /* [C5] */
    a.multiplier_even = take_number(0, power(30)), a.multiplier_odd = take_number(0, power(30)); /* [C17] */
    a.out_shift = take_number(0, 62), a.out_zero = take_number(0, out->high);  /* [C17] [C18] */
    const int64_t rows = a.heads * a.rows, pairs = rows * a.tokens;
    if ((a.frozen_maps = take_maps(&a))) { /* [C10] */
        a.mask = take_array(a.frozen_maps * pairs, 0, 1);
        a.frozen_codes = take_array(a.frozen_maps * pairs, 0, a.last_code), a.missing_bits = take_number(0, 5);
        for (int64_t i = 0; i < a.frozen_maps * pairs; i++)
            expect(a.frozen_codes[i] << a.missing_bits <= a.last_code);
        a.row_log2 = take_array(a.frozen_maps * rows, 0, power(24));
    }
    if ((a.bias_maps = take_maps(&a))) /* [C12] */
        a.logit_bias = take_array(a.bias_maps * pairs, -MOST, MOST - 1);
    if ((a.excluding = take_number(0, 1))) /* [C13] */
        a.excluded = take_array(a.windows * a.rows * a.tokens, 0, 1);
    a.scores = integers(a.windows * pairs), a.exponents = integers(a.windows * pairs), a.codes = integers(a.windows * pairs);
    a.log_sum = integers(a.windows * rows);
    a.even = integers(out->size), a.odd = integers(out->size);
    return a;
}

static int is_excluded(const struct attention *a, const struct row *row, int64_t j)
{
    return a->excluding && a->excluded[(row->window * a->rows + row->query) * a->tokens + j];
}

static int is_frozen(const struct attention *a, const struct row *row, int64_t j)
{
    return a->frozen_maps && a->mask[row->frozen * a->tokens + j];
}

static int is_computed(const struct attention *a, const struct row *row, int64_t j)
{
    return !is_excluded(a, row, j) && !(a->renormalised && is_frozen(a, row, j));
}

/* The columns of the window's key and value `token`: k of the scored heads and v of all heads are groups of head_dim. */
static const int64_t *columns(const struct attention *a, const struct row *row, int64_t token, int64_t group)
{
    return a->x->data + (row->window * a->tokens + token) * a->x->shape[1] + (a->first_key + group) * a->head_dim;
}

static void scores_row(const struct attention *a, const struct row *row)
{
    int64_t position = 0;
    while (position < a->scored && a->scored_heads[position] != row->head)
        position++;
    for (int64_t j = 0; j < a->tokens; j++) {
        if (!is_computed(a, row, j))
            continue;
        expect(position < a->scored); /* a head without scores is wholly frozen [C11] */
        const int64_t *q = a->q->data + (row->window * a->rows + row->query) * a->q->shape[1] + position * a->head_dim;
        const int64_t *k = columns(a, row, j, position);
        int64_t sum = a->bias_maps ? a->logit_bias[row->bias * a->tokens + j] : 0;
        for (int64_t d = 0; d < a->head_dim; d++)
            sum += (q[d] - a->q_zero) * (k[d] - a->k_zero);
        a->scores[row->number * a->tokens + j] = narrow(sum); /* [C14] */
    }
}

/* With f fractional bits. */
static int64_t log2_of(const struct attention *a, int64_t n)
{
    const int64_t p = bit_length(n) - 1;
    return p * power(a->f) + a->log2[(times(n, power(a->m)) >> p) - power(a->m)];
}

static void exponents_row(const struct attention *a, const struct row *row)
{
    const int64_t *scores = a->scores + row->number * a->tokens;
    int64_t *exponents = a->exponents + row->number * a->tokens, greatest = INT64_MIN, sum = 0;
    for (int64_t j = 0; j < a->tokens; j++)
        if (is_computed(a, row, j) && scores[j] > greatest)
            greatest = scores[j];
    for (int64_t j = 0; j < a->tokens; j++) {
        if (!is_computed(a, row, j))
            continue;
        exponents[j] = round_shift(times(greatest - scores[j], a->score_multiplier), a->score_shift);
        expect(exponents[j] < power(30)); /* [C15] */
        const int64_t whole = exponents[j] >> a->f;
        sum += whole > 62 ? 0 : a->exp2[exponents[j] % power(a->f)] >> whole;
    }
    if (sum) /* exp2[0] is positive: the sum is 0 only where no pair is computed */
        a->log_sum[row->number] = log2_of(a, sum) - a->exp2_bits * power(a->f);
}

static void codes_row(const struct attention *a, const struct row *row)
{
    const int64_t first = row->number * a->tokens;
    const int64_t kept = a->frozen_maps && a->renormalised ? a->row_log2[row->frozen] : 0;
    for (int64_t j = 0; j < a->tokens; j++) {
        const int64_t log2_weight = a->exponents[first + j] + a->log_sum[row->number] + kept + a->log2_scale;
        a->codes[first + j] = is_excluded(a, row, j) ? a->last_code
                              : is_frozen(a, row, j) ? a->frozen_codes[row->frozen * a->tokens + j] << a->missing_bits
                                                     : clip(round_shift(2 * log2_weight, a->f), 0, a->last_code);
    }
}

static void context_row(const struct attention *a, const struct row *row, struct value *out)
{
    const int64_t *codes = a->codes + row->number * a->tokens;
    int64_t *even = a->even + row->number * a->head_dim, *odd = a->odd + row->number * a->head_dim;
    int64_t *context = out->data + (row->window * a->rows + row->query) * out->shape[1] + row->head * a->head_dim;
    for (int64_t j = 0; j < a->tokens; j++) {
        if (is_excluded(a, row, j) || (a->last_code_is_zero && codes[j] == a->last_code))
            continue;
        const int64_t *v = columns(a, row, j, a->scored + row->head);
        int64_t *sums = codes[j] % 2 ? odd : even;
        for (int64_t d = 0; d < a->head_dim; d++)
            sums[d] = plus(sums[d], power(a->last_code / 2 - codes[j] / 2) * (v[d] - a->v_zero));
    }
    for (int64_t d = 0; d < a->head_dim; d++) {
        even[d] = narrow(even[d]), odd[d] = narrow(odd[d]); /* [C16] */
        const int64_t scaled = plus(times(even[d], a->multiplier_even), times(odd[d], a->multiplier_odd)); /* [C17] */
        context[d] = fit(plus(round_shift(scaled, a->out_shift), a->out_zero), out);
    }
}

static void attention(const struct value *x, struct value *out)
{
    const struct attention a = take_attention(x, out);
    const int64_t maps[] = {a.windows, a.heads, a.rows, a.tokens}, sums[] = {a.windows, a.heads, a.rows, a.head_dim};
    for (int64_t number = 0; number < a.windows * a.heads * a.rows; number++) {
        const int64_t rows = a.heads * a.rows; /* of one window */
        struct row row = {number / rows, number / a.rows % a.heads, number % a.rows, number, 0, 0};
        row.frozen = a.frozen_maps == 1 ? number % rows : number;
        row.bias = a.bias_maps == 1 ? number % rows : number;
        scores_row(&a, &row);
        exponents_row(&a, &row);
        codes_row(&a, &row);
        context_row(&a, &row, out);
    }
    publish(out->name, ".scores", a.scores, 4, maps);
    publish(out->name, ".exponents", a.exponents, 4, maps);
    publish(out->name, ".log_sum", a.log_sum, 3, maps);
    publish(out->name, ".codes", a.codes, 4, maps);
    publish(out->name, ".even", a.even, 4, sums);
    publish(out->name, ".odd", a.odd, 4, sums);
}

static void pool(const struct value *x, struct value *out)
{
    expect(x->axes == 2 && out->size == x->shape[1]);                             /* [C1] [C2] */
    const int64_t multiplier = take_number(0, power(30)), shift = take_number(0, 62); /* [C3] */
    const int64_t zero = take_number(0, out->high);                               /* [C4] */
    for (int64_t c = 0; c < out->size; c++) {
        int64_t sum = 0;
        for (int64_t t = 0; t < x->shape[0]; t++)
            sum += x->data[t * out->size + c];
        out->data[c] = fit(plus(round_shift(times(multiplier, sum), shift), zero), out);
    }
}

static void execute(struct value *out)
{
    const int64_t kind = take_number(INPUT_QUANT, POOL);
    const struct value *x = values + take_number(0, known - 1); /* [P5] */
    *out = take_value();
    switch (kind) {
    case INPUT_QUANT: input_quant(x, out); break;
    case GATHER: gather(x, out); break;
    case EMBED: embed(x, out); break;
    case LAYER_NORM: layer_norm(x, out); break;
    case LINEAR: linear(x, out); break;
    case ATTENTION: attention(x, out); break;
    case POOL: pool(x, out); break;
    default: fail(3, "program.bin", "an operation that this model.c does not know");
    }
    publish(out->name, "", out->data, out->axes, out->shape);
    while (scratch.count)
        free(scratch.blocks[--scratch.count]);
}

/* ---- Files ---- */

static void open_program(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct sha256 sha = sha256_start();
    uint8_t digest[DIGEST_BYTES];
    if (!file || fseek(file, 0, SEEK_END) || (stream.size = ftell(file)) < DIGEST_BYTES || fseek(file, 0, SEEK_SET))
        fail(3, path, "expected the program.bin that was exported with this model.c");
    stream.bytes = zeros(stream.size, 1);
    if (fread(stream.bytes, 1, (size_t)stream.size, file) != (size_t)stream.size || fclose(file))
        fail(3, path, "cannot be read");
    stream.size -= DIGEST_BYTES;
    sha256_add(&sha, stream.bytes, stream.size);
    sha256_finish(&sha, digest);
    if (memcmp(digest, stream.bytes + stream.size, DIGEST_BYTES))
        fail(3, path, "damaged: its SHA-256 is not the one at its end; export it again");
    if (take_number(INT64_MIN, INT64_MAX) != FORMAT)
        fail(3, path, "of another format than this model.c; export both again");
}

static void read_image(const char *path, struct value *image)
{
    FILE *file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    if (!file)
        fail(3, path, "no such file");
    for (int64_t i = 0; i <= image->size; i++) {
        const int byte = getc(file);
        if ((byte == EOF) != (i == image->size))
            fail(3, path, "expected height * width * 3 bytes");
        if (byte != EOF)
            image->data[i] = byte;
    }
    if (file != stdin)
        fclose(file);
}

int main(int count, char **arguments)
{
    if (count < 3 || count > 5 || (count > 3 && strcmp(arguments[3], "--taps")))
        fail(2, "usage", "model program.bin image.rgb [--taps [FILE]]");
    taps.wanted = count > 3;
    taps.file = count > 4 ? fopen(arguments[4], "wb") : NULL;
    if (count > 4 && !taps.file)
        fail(3, arguments[4], "cannot be written");
    open_program(arguments[1]);
    datapath.rounding = take_number(HALF_UP, FLOOR);      /* [D1] */
    datapath.accumulator_bits = take_number(8, 48);       /* [D4] */
    datapath.overflow = take_number(ERROR, SATURATE);     /* [D2] */
    const int64_t operations = take_number(1, stream.size); /* [P1] */
    values = zeros(operations + 1, sizeof *values);
    values[0] = take_value();
    expect(values->axes == 3 && values->shape[2] == 3 && values->low == 0 && values->high == 255); /* [P2] */
    read_image(arguments[2], values);
    for (known = 1; known <= operations; known++)
        execute(values + known);
    const struct value *logits = values + operations;
    int64_t best = 0;
    for (int64_t i = 1; i < logits->size; i++)
        best = logits->data[i] > logits->data[best] ? i : best; /* ties go to the lower class */
    printf("class %" PRId64 " logit %" PRId64 "\n", best, logits->data[best]);
    if (fflush(stdout) || (taps.file && fclose(taps.file)))
        fail(3, "output", "cannot be written");
    return 0;
}
