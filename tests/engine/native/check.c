// Checks the compiled engine on random models: against the formulas, and against itself, bit for bit, however tokens
// are divided into steps, whatever other texts share a step, and for any number of threads. Also checks what chooses
// tokens, on random logits.
//
// Usage: check FIRST_SEED MODELS VARIANTS, where VARIANTS is how many of the engine's variants to check, the best first.
// Prints each fault; the exit status is 1 if there are any.
#include "check_distribution.h"
#include "reference.h"

engine *engine_create(const model *m, int threads);
void engine_destroy(engine *e);
int engine_step(engine *e, const row *rows, int count);
int engine_unembed(engine *e, const float *residual, const row *rows, int count);
void engine_restore(engine *e, const matrix *m, int narrow, void *output);
int engine_multiply(engine *e, const matrix *m, const float *vectors, int64_t width, int count, float *products);
const char *engine_choose(int number);

enum { TEXTS = 3, THREADS = 3, OK = 0, BAD_ROWS = 2 };

typedef struct {
    int start, length, fed; // positions before `start` hold NaN
    int *tokens;
    buffers *caches;
    double *expected; // the logits after each token, [length, vocabulary], by the formulas
    float *logits, *alone;
} text;

static uint64_t seed;
static const char *variant_name;
static int faults, fragile;

static void fault(const char *what, double size)
{
    printf("model %d, %s: %s (%g)\n", (int)seed, variant_name, what, size);
    faults++;
}

// The largest difference, relative to the largest number; infinity if one is NaN.
static double difference(const float *ours, const double *theirs, int count)
{
    double most = 0, largest = 1e-30;
    for (int i = 0; i < count; i++) {
        const double each = fabs(ours[i] - theirs[i]);
        most = each <= most ? most : each == each ? each : INFINITY;
        largest = fmax(largest, fabs(theirs[i]));
    }
    return most / largest;
}

static bool same_bits(const float *a, const float *b, int count)
{
    for (int i = 0; i < count; i++)
        if (memcmp(a + i, b + i, sizeof *a) && !(isnan(a[i]) && isnan(b[i])))
            return false;
    return true;
}

// Empty buffers with room for positions first .. first+capacity-1.
static buffers new_buffers(const model *m, int64_t capacity, int64_t first)
{
    const size_t size = (size_t)(m->kv_heads * capacity * m->head_dim) * (m->cache_format == F32 ? 4 : 2);
    return (buffers){make(size), make(size), capacity, first};
}

static void begin(const setup *s, text *x)
{
    const size_t size = (size_t)(x->length * s->m.head.rows) * sizeof(float);
    x->fed = 0;
    x->logits = make(size);
    x->caches = make((size_t)s->m.layers_count * sizeof *x->caches);
    for (int i = 0; i < s->m.layers_count; i++)
        x->caches[i] = new_buffers(&s->m, x->start + x->length, 0);
}

// Drop the positions that windowed layers need no more.
static void shrink(const setup *s, text *x)
{
    const int at = x->start + x->fed, row = s->m.head_dim * (s->m.cache_format == F32 ? 4 : 2);
    for (int i = 0; i < s->m.layers_count; i++) {
        buffers *old = &x->caches[i];
        const int64_t first = at - s->m.layers[i].window + 1, end = old->first + old->capacity;
        if (!s->m.layers[i].window || first <= old->first)
            continue;
        const buffers new = new_buffers(&s->m, end - first, first);
        for (int64_t h = 0, from, to; h < s->m.kv_heads; h++) {
            from = (h * old->capacity + first - old->first) * row, to = h * new.capacity * row;
            memcpy(new.keys + to, old->keys + from, (size_t)((at - first) * row));
            memcpy(new.values + to, old->values + from, (size_t)((at - first) * row));
        }
        *old = new;
    }
}

static row next_row(const setup *s, text *x, bool wanted)
{
    const int at = x->start + x->fed;
    row r = {x->caches, {0}, {0}, wanted ? x->logits + x->fed * s->m.head.rows : NULL, x->tokens[x->fed], at};
    for (int rope = 0; rope < 2; rope++) {
        r.cos[rope] = s->cos[rope] + at * s->m.rotated[rope];
        r.sin[rope] = s->sin[rope] + at * s->m.rotated[rope];
    }
    x->fed++;
    return r;
}

// Feed `count` texts, each up to `most` tokens a step. Some logits are not asked for, unless tokens come one by one.
static void feed(const setup *s, engine *e, text *texts, int count, int most)
{
    for (int i = 0; i < count; i++)
        begin(s, &texts[i]);
    for (bool more = true; more;) {
        row rows[MAX_ROWS];
        int used = 0;
        more = false;
        for (int i = 0, first = below(count); i < count; i++) {
            text *x = &texts[(first + i) % count];
            if (most > 1 && chance(20))
                shrink(s, x);
            for (int n = 1 + below(most); n && used < MAX_ROWS && x->fed < x->length; n--)
                rows[used++] = next_row(s, x, most == 1 || chance(80));
            more |= x->fed < x->length;
        }
        if (used && engine_step(e, rows, used) != OK)
            fault("a step is refused", used);
    }
}

// The logits that were asked for must be those of the text alone.
static void compare_with_alone(const setup *s, const text *x, const char *what)
{
    const int V = s->m.head.rows;
    const uint32_t not_written = 0xffffffff;
    for (int t = 0; t < x->length; t++) {
        const float *logits = x->logits + t * V;
        if (memcmp(logits, &not_written, 4) && !same_bits(logits, x->alone + t * V, V)) {
            fault(what, t);
            return;
        }
    }
}

static void check_texts(setup *s, text *texts, engine *const *engines)
{
    const double tolerances[] = {[F32] = 2e-5, [BF16] = 1e-2, [F16] = 2e-3};
    for (int i = 0; i < TEXTS; i++) {
        feed(s, engines[0], &texts[i], 1, 1);
        texts[i].alone = texts[i].logits;
        const double wrong = difference(texts[i].alone, texts[i].expected, texts[i].length * s->m.head.rows);
        if (!texts[i].start && !s->fragile && !(wrong <= tolerances[s->m.cache_format]))
            fault("logits are not those of the formulas", wrong);
    }
    for (int threads = 1; threads <= THREADS; threads++) {
        if (seed % THREADS == (unsigned)threads - 1) {
            feed(s, engines[threads - 1], texts, 1, MAX_ROWS);
            compare_with_alone(s, &texts[0], "bits depend on chunks or threads");
        }
        feed(s, engines[threads - 1], texts, TEXTS, MAX_ROWS / 2);
        for (int i = 0; i < TEXTS; i++)
            compare_with_alone(s, &texts[i], "bits depend on the other texts of a step");
    }
}

static void check_unembed(const setup *s, engine *const *engines)
{
    const int V = s->m.head.rows, count = 1 + below(MAX_ROWS), size = count * s->m.hidden;
    const float *residual = random_floats(size, -2, 2);
    double *x = vectors(count, s->m.hidden);
    for (int i = 0; i < size; i++)
        x[i] = residual[i];
    const double *expected = unembed(&s->m, x, count);
    for (int threads = 1; threads <= THREADS; threads++) {
        float *logits = make((size_t)(count * V) * sizeof *logits);
        row rows[MAX_ROWS] = {0};
        for (int t = 0; t < count; t++)
            rows[t].logits = logits + t * V;
        engine_unembed(engines[threads - 1], residual, rows, count);
        const double wrong = difference(logits, expected, count * V);
        if (!(wrong <= 2e-5))
            fault("engine_unembed", wrong);
    }
}

// Restored weights must be exact: a code times its scale fits into a float.
static void check_restore(engine *e)
{
    for (int format = F32; format < KINDS; format++) {
        const bool all = format == F16 || format == BF16; // every number of the format
        const int rows = all ? 1 << 10 : 1 + below(20), few = 1 + below(150);
        const int cols = all ? 64 : fits_columns(format, few) ? few : 256 * PICK(1, 2);
        matrix m = random_matrix(rows, cols, format, false);
        m.cols = cols;
        for (int i = 0; all && i < 1 << 16; i++)
            memcpy((uint8_t *)m.data + i / 64 * m.stride + i % 64 * 2, (uint8_t[]){i & 255, i >> 8}, 2);
        float *wide = make((size_t)(rows * cols) * sizeof *wide);
        uint8_t *narrow = make((size_t)(rows * cols) * 2);
        engine_restore(e, &m, false, wide);
        engine_restore(e, &m, true, narrow);
        for (int i = 0; i < rows * cols; i++) {
            const double x = weight(&m, i / cols, i % cols), rounded = round_to(x, 7, -133);
            if (wide[i] != x && !(isnan(wide[i]) && isnan(x)))
                fault("a weight is restored wrongly, in format", format);
            if (bfloat(two_bytes(narrow + 2 * i)) != rounded && !isnan(x))
                fault("a weight is rounded to bfloat16 wrongly, in format", format);
        }
    }
}

// A product is the same for any number of vectors and threads, in every format.
static void check_multiply(engine *const *engines)
{
    for (int format = F32; format < KINDS; format++) {
        const int rows = 1 + below(60), few = 1 + below(150), count = 1 + below(MAX_ROWS);
        const int cols = fits_columns(format, few) ? few : 256 * PICK(1, 2);
        const int64_t width = padded(cols);
        const matrix m = random_rows(rows, cols, format, chance(50));
        float *x = make((size_t)(count * width) * sizeof *x), *alone = make((size_t)rows * sizeof *alone);
        memset(x, 0, (size_t)(count * width) * sizeof *x);
        for (int t = 0; t < count; t++)
            memcpy(x + t * width, random_floats(cols, -2, 2), (size_t)cols * sizeof *x);
        for (int threads = 1; threads <= THREADS; threads++) {
            float *y = make((size_t)(count * rows) * sizeof *y);
            engine_multiply(engines[threads - 1], &m, x, width, count, y);
            for (int t = 0; t < count; t++) {
                engine_multiply(engines[0], &m, x + t * width, width, 1, alone);
                if (memcmp(alone, y + t * rows, (size_t)rows * sizeof *y))
                    fault("a product depends on the others, in format", format);
            }
            for (int i = 0; i < count * rows; i++) {
                double expected = 0, size = 0;
                for (int c = 0; c < cols; c++) {
                    const double term = weight(&m, i % rows, c) * x[i / rows * width + c];
                    expected += term, size += fabs(term);
                }
                const matrix *part = &m;
                int r = i % rows;
                for (; r >= part->stored; r -= part->stored, part = part->rest)
                    ;
                expected += part->bias ? part->bias[r] : 0;
                if (!(fabs(y[i] - expected) <= 2e-5 * (size + 1)))
                    fault("engine_multiply", fabs(y[i] - expected));
            }
        }
        if (engine_multiply(engines[0], &m, x, width - 1, 1, alone) != BAD_ROWS ||
            engine_multiply(engines[0], &m, x, width, MAX_ROWS + 1, alone) != BAD_ROWS)
            fault("engine_multiply accepts what it must refuse", 0);
    }
}

static void check_refusals(const setup *s, engine *e, text *x)
{
    row rows[MAX_ROWS + 1];
    begin(s, x);
    for (int t = 0; t <= MAX_ROWS; t++)
        rows[t] = next_row(s, (x->fed = 0, x), true);
    bool refused = engine_step(e, rows, 0) == BAD_ROWS && engine_step(e, rows, MAX_ROWS + 1) == BAD_ROWS &&
                   engine_unembed(e, NULL, rows, 0) == BAD_ROWS && engine_unembed(e, NULL, rows, MAX_ROWS + 1) == BAD_ROWS;
#define REFUSED(change)                                                                                                \
    do {                                                                                                               \
        row changed[2] = {rows[0], rows[0]};                                                                           \
        changed[1].change;                                                                                             \
        refused = refused && engine_step(e, changed, 2) == BAD_ROWS;                                                   \
    } while (0)
    REFUSED(token = -1);
    REFUSED(token = s->m.embedding.rows);
    REFUSED(position = -1);
    REFUSED(position = x->start + x->length); // beyond the buffers
    x->caches[s->m.layers_count - 1].first = 1;
    REFUSED(position = 0);
    if (!refused)
        fault("rows that do not fit are not refused", 0);
}

static void check_model(int variants)
{
    const bool is_long = seed % 16 == 0;
    text texts[TEXTS];
    setup s = random_setup(is_long ? LONG + 60 : 60);
    for (int i = 0; i < TEXTS; i++) {
        const bool last = i == TEXTS - 1; // whose logits become NaN
        text x = {.start = last ? 3 : 0, .length = !i && is_long ? LONG + below(50) : 1 + below(40)};
        x.tokens = make((size_t)x.length * sizeof *x.tokens);
        for (int t = 0; t < x.length; t++)
            x.tokens[t] = below(s.m.embedding.rows);
        x.expected = reference(&s, x.tokens, x.length);
        texts[i] = x;
    }
    fragile += s.fragile;
    const int before = faults;
    for (int number = 0; number < variants; number++) {
        variant_name = engine_choose(number);
        if (!variant_name)
            continue;
        check_distribution();
        engine *engines[THREADS];
        for (int i = 0; i < THREADS; i++)
            engines[i] = engine_create(&s.m, i + 1);
        check_texts(&s, texts, engines);
        check_unembed(&s, engines);
        check_multiply(engines);
        if (seed % 8 == 0)
            check_restore(engines[number % THREADS]);
        check_refusals(&s, engines[0], &texts[0]);
        for (int i = 0; i < THREADS; i++)
            engine_destroy(engines[i]);
    }
    if (faults > before)
        describe(&s.m);
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    const uint64_t first = (uint64_t)atoll(arguments[1]), models = (uint64_t)atoll(arguments[2]);
    for (seed = first; seed < first + models; seed++) {
        state = seed;
        check_model(atoi(arguments[3]));
        release();
    }
    printf("%d models (%d with a close choice of experts), %d faults\n", (int)models, fragile, faults);
    return faults != 0;
}
