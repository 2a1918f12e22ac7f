/* Runs the AVX-512 VNNI tiles and lookups on random and extreme operands beside plain loops; the verdict goes to Bochs' debug port. */
typedef long i64;
typedef void tile(i64 a, i64 a_stride, i64 b, i64 b_stride, i64 bias, i64 out, i64 out_stride, i64 steps, i64 safe_steps);
tile wide, narrow;
void look_up(i64 table, i64 entries, i64 source, i64 target);

enum { ROWS = 6, PANEL = 16, STEP = 4, WIDE_PANELS = 4 };
static unsigned char *const a = (unsigned char *)0x400000;
static signed char *const b = (signed char *)0x440000;
static int *const bias = (int *)0x500000, *const out = (int *)0x510000;

static void write(char c) { __asm__ volatile("outb %0, $0xe9" ::"a"(c)); }

static void print(const char *text, int number) {
    char digits[12];
    int n = 0;
    while (*text) write(*text++);
    do { digits[n++] = '0' + number % 10; } while (number /= 10);
    while (n) write(digits[--n]);
}

static unsigned draw(void) {
    static unsigned long state = 88172645463325252UL;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state >> 11;
}

static int wrong(int panels, int steps, int safe_steps, int extreme) {
    i64 depth = steps * STEP, a_stride = depth + 3, out_stride = panels * PANEL + 5;
    for (i64 i = 0; i < ROWS * a_stride; i++) a[i] = extreme ? (draw() & 1) * 255 : draw();
    for (i64 i = 0; i < panels * steps * PANEL * STEP; i++) b[i] = extreme ? (draw() & 1 ? 127 : -128) : (signed char)draw();
    for (i64 i = 0; i < panels * PANEL; i++) bias[i] = draw();
    for (i64 i = 0; i < ROWS * out_stride; i++) out[i] = -7;
    (panels == 1 ? narrow : wide)((i64)a, a_stride, (i64)b, steps * PANEL * STEP, (i64)bias, (i64)out, 4 * out_stride, steps, safe_steps);
    int count = 0;
    for (i64 i = 0; i < ROWS; i++)
        for (i64 j = 0; j < out_stride; j++) {
            unsigned acc = j < panels * PANEL ? bias[j] : -7;
            for (i64 k = 0; j < panels * PANEL && k < depth; k++)
                acc += a[i * a_stride + k] * b[((j / PANEL * steps + k / STEP) * PANEL + j % PANEL) * STEP + k % STEP];
            count += (unsigned)out[i * out_stride + j] != acc;
        }
    return count;
}

enum { CHUNK = 128 }; /* bytes of one call of look_up */

static int wrong_lookups(int entries) {
    unsigned char *const table = a, *const source = a + 256, *const target = a + 256 + CHUNK;
    int count = 0;
    for (int i = 0; i < 256; i++) table[i] = draw();
    for (int first = 0; first < 256; first += CHUNK) {
        for (int i = 0; i < CHUNK; i++) source[i] = first + i, target[i] = 7;
        look_up((i64)table, entries, (i64)source, (i64)target);
        for (int i = 0; i < CHUNK; i++) count += target[i] != (source[i] < entries ? table[source[i]] : 0);
    }
    return count;
}

__attribute__((section(".text.start"))) void start(void) {
    static const int depths[] = {1, 2, 3, 7, 48, 49, 192}, runs[] = {1, 5, 1000000};
    int tiles = 0, bad = 0;
    for (int d = 0; d < 7; d++)
        for (int r = 0; r < 3; r++)
            for (int extreme = 0; extreme < 2; extreme++, tiles += 2)
                bad += wrong(1, depths[d], runs[r], extreme) + wrong(WIDE_PANELS, depths[d], runs[r], extreme);
    print("tiles ", tiles);
    print(" wrong ", bad);
    int lookups = 0;
    bad = 0;
    for (int round = 0; round < 2; round++)
        for (int entries = 16; entries <= 256; entries += 16, lookups += 256) bad += wrong_lookups(entries);
    print(" lookups ", lookups);
    print(" wrong ", bad);
    for (const char *c = " Shutdown"; *c; c++) __asm__ volatile("outb %0, %1" ::"a"(*c), "d"((unsigned short)(*c == ' ' ? 0xe9 : 0x8900)));
}
