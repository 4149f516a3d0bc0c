// What Python calls: make an engine of a model, run steps, free it; and the functions that choose tokens.
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#include "processor.h"
#include "threads.h"

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { OK = 0, NO_MEMORY = 1, BAD_ROWS = 2 };

// With AddressSanitizer, memory that must not be touched follows every array.
#ifdef __has_feature // Clang
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
enum { GAP = 256 };
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
enum { GAP = 0 };
#endif

// Set the pointers into `memory` one after the other, or only count bytes if it is NULL. Returns the bytes needed.
static int64_t lay_out(engine *e, uint8_t *memory)
{
    const model *m = &e->m;
    int64_t used = 0, most_experts = 0, per_token = 0;
    for (int i = 0; i < m->layers_count; i++) {
        most_experts = m->layers[i].experts_count > most_experts ? m->layers[i].experts_count : most_experts;
        per_token = m->layers[i].experts_per_token > per_token ? m->layers[i].experts_per_token : per_token;
    }
    const int64_t group = m->heads / m->kv_heads, insides = per_token > 1 ? per_token : 1;
    e->hidden_width = padded(m->hidden);
    e->heads_width = padded((int64_t)m->heads * m->head_dim);
    e->qkv_width = padded((int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim);
    e->inner_width = padded(m->inner) * (m->gated ? 2 : 1);
    e->head_width = padded(m->head_dim);
    e->router_width = padded(most_experts + 1);
#define PLACE(pointer, count)                                                                                          \
    do {                                                                                                               \
        (pointer) = memory ? (void *)(memory + used) : NULL;                                                           \
        used += padded(count) * (int64_t)sizeof *(pointer) + GAP;                                                      \
        if (memory)                                                                                                    \
            ASAN_POISON_MEMORY_REGION(memory + used - GAP, GAP);                                                       \
    } while (0)
    PLACE(e->qkv, MAX_ROWS * e->qkv_width);
    PLACE(e->inner, MAX_ROWS * insides * e->inner_width);
    PLACE(e->outer, MAX_ROWS * e->hidden_width);
    PLACE(e->router, MAX_ROWS * e->router_width);
    for (int i = 0; i < pool_threads(e->threads); i++) {
        private_memory unused, *own = memory ? &e->private[i] : &unused;
        PLACE(own->residual, MAX_ROWS * e->hidden_width);
        PLACE(own->normed, MAX_ROWS * e->hidden_width);
        PLACE(own->mixed, MAX_ROWS * e->hidden_width);
        PLACE(own->scratch, MAX_ROWS * e->hidden_width);
        PLACE(own->heads, MAX_ROWS * e->heads_width);
        PLACE(own->query, group * e->head_width);
        PLACE(own->scores, group * CHUNK);
        PLACE(own->chances, MAX_ROWS * per_token);
        PLACE(own->chosen, MAX_ROWS * per_token);
        PLACE(own->used, most_experts);
    }
#undef PLACE
    return used;
}

EXPORT void engine_destroy(engine *e)
{
    if (!e)
        return;
    if (e->threads)
        pool_destroy(e->threads);
    aligned_free(e->memory);
    aligned_free(e->shares);
    free(e->private);
    free(e);
}

// NULL if memory or threads run out. The model's arrays must stay where they are.
EXPORT engine *engine_create(const model *m, int threads)
{
    engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->m = *m;
    e->threads = pool_create(threads);
    e->private = calloc((size_t)threads, sizeof *e->private);
    if (e->threads && e->private) {
        const int64_t size = lay_out(e, NULL);
        e->memory = aligned_memory((size_t)size);
        if (e->memory) {
            memset(e->memory, 0, (size_t)size);
            lay_out(e, e->memory);
            return e;
        }
    }
    engine_destroy(e);
    return NULL;
}

// Make room for the shares of the longest row. False if memory runs out.
static bool make_room(engine *e)
{
    int64_t longest = 0;
    for (int t = 0; t < e->count; t++)
        longest = e->rows[t].position > longest ? e->rows[t].position : longest;
    e->chunks = longest / CHUNK + 1;
    const int64_t needed = MAX_ROWS * e->m.heads * e->chunks * (e->head_width + 2);
    if (needed <= e->shares_size)
        return true;
    aligned_free(e->shares);
    e->shares_size = needed + needed / 2;
    e->shares = aligned_memory((size_t)e->shares_size * sizeof *e->shares);
    if (!e->shares)
        e->shares_size = 0;
    return e->shares != NULL;
}

static void step_on(void *argument, int thread)
{
    engine *e = argument;
    variants[variant_number()].step(e, thread);
}

// Whether the model knows a row's token and position, and its buffers hold every position that it sees.
static bool fits(const model *m, const row *r)
{
    if (r->token < 0 || r->token >= m->embedding.rows || r->position < 0 ||
        (m->positions.rows && r->position >= m->positions.rows))
        return false;
    for (int i = 0; i < m->layers_count; i++) {
        const buffers *held = &r->layers[i];
        if (held->first > oldest(&m->layers[i], r) || r->position - held->first >= held->capacity)
            return false;
    }
    return true;
}

// Run one step. The rows' keys and values are stored in their caches, and logits where a row wants them.
EXPORT int engine_step(engine *e, const row *rows, int count)
{
    if (count < 1 || count > MAX_ROWS)
        return BAD_ROWS;
    for (int t = 0; t < count; t++)
        if (!fits(&e->m, &rows[t]))
            return BAD_ROWS;
    e->rows = rows;
    e->count = count;
    e->residual = NULL;
    if (!make_room(e))
        return NO_MEMORY;
    pool_run(e->threads, step_on, e);
    return OK;
}

// Compute only the logits, of residuals [count, hidden] after the last layer.
EXPORT int engine_unembed(engine *e, const float *residual, const row *rows, int count)
{
    if (count < 1 || count > MAX_ROWS)
        return BAD_ROWS;
    e->rows = rows;
    e->count = count;
    e->residual = residual;
    pool_run(e->threads, step_on, e);
    return OK;
}

// Restore all weights of a matrix, in fp32 or bf16, into output [rows, cols].
EXPORT void engine_restore(engine *e, const matrix *m, int narrow, void *output)
{
    e->restored = m;
    e->narrow = narrow;
    e->output = output;
    pool_run(e->threads, step_on, e);
    e->restored = NULL;
}

// products[t] = m times vectors[t], plus the bias: [count, rows] from [count, width]. Columns beyond those of m are zero.
EXPORT int engine_multiply(engine *e, const matrix *m, const float *vectors, int64_t width, int count, float *products)
{
    if (count < 1 || count > MAX_ROWS || width < padded(m->cols))
        return BAD_ROWS;
    for (int t = 0; t < count; t++) {
        e->vectors[t] = vectors + t * width;
        e->products[t] = products + (int64_t)t * m->rows;
    }
    e->factor = m;
    e->count = count;
    pool_run(e->threads, step_on, e);
    e->factor = NULL;
    return OK;
}

EXPORT const distribution_functions *engine_distribution(void) { return variants[variant_number()].distribution; }

// Identifies the sources that this library was compiled from.
EXPORT uint32_t engine_sources(void) { return SOURCES; }

EXPORT const char *engine_variant(void) { return variants[variant_number()].name; }

// For tests: use a variant by its number instead of the best one. Returns its name, or NULL if it cannot run here.
EXPORT const char *engine_choose(int number) { return choose_variant(number); }
