// One decoding step: up to MAX_ROWS tokens, of one text or of several, through every layer.
//
// All threads run `step` together. What is cheap, each computes for itself (the residual, norms); what is expensive
// they share out, some rows of a matrix or some keys of a text at a time, and meet at a barrier. No result depends on
// who computes it, and none on the other rows: a token's logits have the same bits alone and among others.
#include "engine.h"

#include "attention.h"
#include "elementwise.h"
#include "product.h"
#include "variant.h"

enum { ITEM_BYTES = 1 << 15 }; // weights that a thread takes at a time

// The step as one thread sees it: pointers to the vectors of every row.
typedef struct {
    engine *e;
    const model *m;
    private_memory *own;
    int thread, threads, count;
    float *residual[MAX_ROWS], *normed[MAX_ROWS], *mixed[MAX_ROWS], *heads[MAX_ROWS], *scratch[MAX_ROWS];
    float *qkv[MAX_ROWS], *inner[MAX_ROWS], *outer[MAX_ROWS], *router[MAX_ROWS];
} view;

typedef const float *const *inputs;

static void point(float **pointers, float *data, int64_t width, int count)
{
    for (int t = 0; t < count; t++)
        pointers[t] = data + t * width;
}

static void barrier(const view *v) { pool_barrier(v->e->threads); }

// How many rows of a matrix a thread takes at a time: few enough that all threads end together.
static int item_rows(const view *v, int rows, int64_t stride)
{
    const int even = (rows + 4 * v->threads - 1) / (4 * v->threads);
    const int64_t most = stride < ITEM_BYTES ? ITEM_BYTES / stride : 1;
    return most < even ? (int)most : even;
}

// Take the next rows to work on, first .. last-1 of `rows`. False if none are left.
static bool take(const view *v, int rows, int size, int *first, int *last)
{
    const int64_t start = (int64_t)pool_take(v->e->threads) * size;
    *first = start < rows ? (int)start : rows;
    *last = start + size < rows ? (int)start + size : rows;
    return *first < rows;
}

// y = m x for all rows, shared out among the threads.
static void product(const view *v, const matrix *m, float *const *x, float *const *y)
{
    int first, last;
    const int size = item_rows(v, m->rows, m->stride);
    while (take(v, m->rows, size, &first, &last))
        multiply(m, first, last, v->count, (inputs)x, y);
}

static void normalize_all(const view *v, norm n, float *const *x, float *const *y)
{
    for (int t = 0; t < v->count; t++)
        if (n.weight)
            normalize(v->m, n, x[t], y[t], v->m->hidden);
        else
            memcpy(y[t], x[t], (size_t)v->m->hidden * sizeof **y);
}

static void embed(const view *v)
{
    const model *m = v->m;
    for (int t = 0; t < v->count; t++) {
        const row *r = &v->e->rows[t];
        restore_row(&m->embedding, r->token, false, v->residual[t]);
        for (int c = 0; c < m->hidden; c++)
            v->residual[t][c] *= m->embedding_scale;
        if (m->embedded.weight)
            normalize(m, m->embedded, v->residual[t], v->residual[t], m->hidden);
        if (m->positions.rows) {
            restore_row(&m->positions, r->position, false, v->scratch[t]);
            for (int c = 0; c < m->hidden; c++)
                v->residual[t][c] += v->scratch[t][c];
        }
    }
}

// Normalize and rotate a head of row t, and store it in the cache if it is a key or a value.
static void place(const view *v, const layer *l, int number, int t, int head)
{
    const model *m = v->m;
    const row *r = &v->e->rows[t];
    const buffers *cache = &r->layers[number];
    const int dim = m->head_dim, first_key = m->heads, first_value = m->heads + m->kv_heads;
    float *x = v->qkv[t] + (int64_t)head * dim;
    norm n = head < first_key ? l->q : l->k;
    const bool normed = n.weight && !m->qk_norm_full && head < first_value;
    if (normed && m->qk_norm_per_head)
        n.weight += (head < first_key ? head : head - first_key) * dim;
    if (normed && !m->norm_after_rope)
        normalize(m, n, x, x, dim);
    if (m->qkv_limit > 0)
        limit_all(x, m->qkv_limit, dim);
    if (l->rope >= 0 && head < first_value)
        rotate(x, m->rotated[l->rope], r->cos[l->rope], r->sin[l->rope]);
    if (normed && m->norm_after_rope)
        normalize(m, n, x, x, dim);
    if (head >= first_key) {
        const int kv_head = head < first_value ? head - first_key : head - first_value;
        const int64_t at = (kv_head * cache->capacity + r->position - cache->first) * dim;
        store_cached(m->cache_format, head < first_value ? cache->keys : cache->values, at, x, dim);
    }
}

static void place_all(const view *v, const layer *l, int number)
{
    const model *m = v->m;
    const int all = m->heads + 2 * m->kv_heads;
    if (l->q.weight && m->qk_norm_full) { // over all heads of a row together
        for (int t = v->thread; t < v->count; t += v->threads) {
            float *k = v->qkv[t] + (int64_t)m->heads * m->head_dim;
            normalize(m, l->q, v->qkv[t], v->qkv[t], m->heads * m->head_dim);
            normalize(m, l->k, k, k, m->kv_heads * m->head_dim);
        }
        barrier(v);
    }
    for (int i = v->thread; i < v->count * all; i += v->threads)
        place(v, l, number, i / all, i % all);
}

// Where the share of a row, a key head and a chunk is.
static float *share_at(const view *v, int t, int kv_head, int64_t chunk)
{
    const int group = v->m->heads / v->m->kv_heads;
    const int64_t number = (t * v->m->kv_heads + kv_head) * v->e->chunks + chunk;
    return v->e->shares + number * group * (v->e->head_width + 2);
}

// What a row's scores are multiplied by.
static float score_scale(const model *m, const row *r)
{
    const float contexts = m->query_growth > 0 ? (float)(r->position / m->query_context) : 0.0f;
    return m->attention_scale * (1.0f + m->query_growth * logf(1.0f + contexts));
}

static void attend_all(const view *v, const layer *l, int number)
{
    const model *m = v->m;
    const engine *e = v->e;
    const int group = m->heads / m->kv_heads, width = (int)e->head_width;
    const int64_t items = v->count * m->kv_heads * e->chunks;
    for (int64_t item; (item = pool_take(e->threads)) < items;) {
        const int64_t chunk = item % e->chunks;
        const int kv_head = (int)(item / e->chunks % m->kv_heads), t = (int)(item / e->chunks / m->kv_heads);
        const row *r = &e->rows[t];
        const int64_t start = (oldest(l, r) / CHUNK + chunk) * CHUNK, stop = start + CHUNK;
        if (start > r->position)
            continue;
        const float scale = score_scale(m, r);
        for (int h = 0; h < group; h++) {
            const float *from = v->qkv[t] + (int64_t)(kv_head * group + h) * m->head_dim;
            for (int d = 0; d < m->head_dim; d++)
                v->own->query[h * width + d] = from[d] * scale;
        }
        attend(m, &r->layers[number], kv_head, start > oldest(l, r) ? start : oldest(l, r),
               stop <= r->position ? stop : r->position + 1, v->own->query, group, width, v->own->scores,
               share_at(v, t, kv_head, chunk));
    }
}

// Put the shares of a row's chunks together: the output of all heads.
static void combine(const view *v, const layer *l, int t)
{
    const model *m = v->m;
    const row *r = &v->e->rows[t];
    const int group = m->heads / m->kv_heads, width = (int)v->e->head_width;
    const int64_t chunks = r->position / CHUNK - oldest(l, r) / CHUNK + 1;
    for (int head = 0; head < m->heads; head++) {
        const int h = head % group;
        float most = l->sinks ? l->sinks[head] : -INFINITY, *out = v->heads[t] + (int64_t)head * m->head_dim;
        for (int64_t c = 0; c < chunks; c++)
            most = fmaxf(most, share_at(v, t, head / group, c)[h]);
        float total = l->sinks ? expf(l->sinks[head] - most) : 0.0f;
        memset(out, 0, (size_t)m->head_dim * sizeof *out);
        for (int64_t c = 0; c < chunks; c++) {
            const float *share = share_at(v, t, head / group, c), *values = share + 2 * group + h * width;
            const float factor = expf(share[h] - most);
            total += factor * share[group + h];
            for (int d = 0; d < m->head_dim; d++)
                out[d] += factor * values[d];
        }
        for (int d = 0; d < m->head_dim; d++)
            out[d] /= total;
    }
}

// Add what attention or the MLP has computed, found in `outer`, to the residual.
static void contribute(const view *v, norm n)
{
    for (int t = 0; t < v->count; t++) {
        const float *x = v->outer[t];
        if (n.weight) {
            normalize(v->m, n, x, v->scratch[t], v->m->hidden);
            x = v->scratch[t];
        }
        for (int c = 0; c < v->m->hidden; c++)
            v->residual[t][c] += v->m->residual_scale * x[c];
    }
}

// Rows first .. last-1 inside an MLP: the activation of the gate's rows, times those of `up` if it is gated. Zeros
// follow the last row, so that what other steps have left there does not reach the product with `down`.
static void widen(const model *m, const layer *l, const matrix *up, int first, int last, int count, inputs x,
                  float *const *y)
{
    const int width = m->gated ? up->rows / 2 : up->rows, end = (int)padded(width);
    float *other[MAX_ROWS]; // the rows of `up` begin at `end`
    multiply(up, first, last, count, x, y);
    for (int t = 0; t < count; t++)
        other[t] = y[t] + end - width;
    if (m->gated)
        multiply(up, width + first, width + last, count, x, other);
    for (int t = 0; t < count; t++) {
        activate(m, l->curve, y[t] + first, m->gated ? y[t] + end + first : NULL, last - first);
        if (last == width)
            memset(y[t] + width, 0, (size_t)(end - width) * sizeof(float));
    }
}

static void run_mlp(const view *v, const layer *l)
{
    const int width = v->m->gated ? l->up.rows / 2 : l->up.rows, size = item_rows(v, width, l->up.stride);
    int first, last;
    while (take(v, width, size, &first, &last))
        widen(v->m, l, &l->up, first, last, v->count, (inputs)v->mixed, v->inner);
    barrier(v);
    product(v, &l->down, v->inner, v->outer);
    barrier(v);
}

// Choose a row's experts by the router's softmax; the most probable ones, with their probabilities.
static void choose_experts(const view *v, const layer *l, int t)
{
    const int count = l->experts_count, per_token = l->experts_per_token;
    const float *logits = v->router[t];
    float *chances = v->own->chances + t * per_token, most = -INFINITY, total = 0.0f, kept = 0.0f;
    int32_t *chosen = v->own->chosen + t * per_token;
    for (int i = 0; i < count; i++)
        most = fmaxf(most, logits[i]);
    for (int i = 0; i < count; i++)
        total += expf(logits[i] - most);
    for (int k = 0; k < per_token; k++) {
        int best = -1;
        for (int i = 0; i < count; i++) {
            bool taken = false;
            for (int j = 0; j < k; j++)
                taken |= chosen[j] == i;
            if (!taken && (best < 0 || logits[i] > logits[best]))
                best = i;
        }
        chosen[k] = best;
        chances[k] = expf(logits[best] - most) / total;
        kept += chances[k];
    }
    if (v->m->norm_experts)
        for (int k = 0; k < per_token; k++)
            chances[k] /= kept;
}

// The experts that any row needs, in ascending order, in `used`. Returns their number.
static int list_experts(const view *v, const layer *l)
{
    int number = 0;
    for (int expert = 0; expert < l->experts_count; expert++) {
        bool needed = false;
        for (int i = 0; i < v->count * l->experts_per_token; i++)
            needed |= v->own->chosen[i] == expert;
        if (needed)
            v->own->used[number++] = expert;
    }
    return number;
}

// The rows that need an expert: their numbers and each one's place among all choices. Returns how many there are.
static int rows_of(const view *v, const layer *l, int expert, int *rows, int *choices)
{
    int number = 0;
    for (int i = 0; i < v->count * l->experts_per_token; i++)
        if (v->own->chosen[i] == expert) {
            rows[number] = i / l->experts_per_token;
            choices[number++] = i;
        }
    return number;
}

// How much of the output of the expert that serves every token goes to a row.
static float common_share(const view *v, const layer *l, int t)
{
    return l->router.rows == l->experts_count ? 1.0f : 1.0f / (1.0f + expf(-v->router[t][l->experts_count]));
}

// As `run_mlp`, for a mixture of experts; adds to what the expert that serves every token has left in `outer`. The
// inside of choice i's expert is vector i of `inner`.
static void run_experts(const view *v, const layer *l)
{
    const model *m = v->m;
    int rows[MAX_ROWS], choices[MAX_ROWS];
    float *inside[MAX_ROWS], *x[MAX_ROWS];
    product(v, &l->router, v->mixed, v->router);
    barrier(v);
    for (int t = 0; t < v->count; t++)
        choose_experts(v, l, t);
    const int used = list_experts(v, l), width = m->gated ? l->experts[0].rows / 2 : l->experts[0].rows;
    const int size = item_rows(v, width, l->experts[0].stride), items = (width + size - 1) / size;
    for (int item; (item = pool_take(v->e->threads)) < used * items;) {
        const int expert = v->own->used[item / items], first = item % items * size;
        const int count = rows_of(v, l, expert, rows, choices);
        for (int i = 0; i < count; i++) {
            x[i] = v->mixed[rows[i]];
            inside[i] = v->e->inner + choices[i] * v->e->inner_width;
        }
        widen(m, l, &l->experts[2 * expert], first, first + size < width ? first + size : width, count, (inputs)x,
              inside);
    }
    barrier(v);
    int first, last;
    while (take(v, m->hidden, item_rows(v, m->hidden, l->experts[1].stride), &first, &last)) {
        for (int t = 0; t < v->count; t++) {
            const float common = l->up.rows ? common_share(v, l, t) : 0.0f;
            for (int r = first; r < last; r++)
                v->outer[t][r] = l->up.rows ? common * v->outer[t][r] : 0.0f;
        }
        for (int i = 0; i < used; i++) {
            const int count = rows_of(v, l, v->own->used[i], rows, choices);
            for (int j = 0; j < count; j++)
                inside[j] = v->e->inner + choices[j] * v->e->inner_width;
            multiply(&l->experts[2 * v->own->used[i] + 1], first, last, count, (inputs)inside, v->scratch);
            for (int j = 0; j < count; j++)
                for (int r = first; r < last; r++)
                    v->outer[rows[j]][r] += v->own->chances[choices[j]] * v->scratch[j][r];
        }
    }
    barrier(v);
}

static void run_layer(const view *v, const layer *l, int number)
{
    const model *m = v->m;
    normalize_all(v, l->attn, v->residual, v->normed);
    if (m->parallel) // the MLP reads the same residual as attention
        normalize_all(v, m->shared_norm ? l->attn : l->mlp, v->residual, v->mixed);
    product(v, &l->qkv, v->normed, v->qkv);
    barrier(v);
    place_all(v, l, number);
    barrier(v);
    attend_all(v, l, number);
    barrier(v);
    for (int t = 0; t < v->count; t++)
        combine(v, l, t);
    product(v, &l->out, v->heads, v->outer);
    barrier(v);
    contribute(v, l->attn_post);
    if (!m->parallel)
        normalize_all(v, l->mlp, v->residual, v->mixed);
    if (l->up.rows)
        run_mlp(v, l);
    if (l->experts)
        run_experts(v, l);
    contribute(v, l->mlp_post);
}

// The logits of the rows that want them.
static void unembed(const view *v)
{
    const model *m = v->m;
    float *x[MAX_ROWS], *logits[MAX_ROWS];
    int count = 0, first, last;
    for (int t = 0; t < v->count; t++)
        if (v->e->rows[t].logits) {
            normalize(m, m->final, v->residual[t], v->normed[t], m->hidden);
            x[count] = v->normed[t];
            logits[count++] = v->e->rows[t].logits;
        }
    while (count && take(v, m->head.rows, item_rows(v, m->head.rows, m->head.stride), &first, &last)) {
        multiply(&m->head, first, last, count, (inputs)x, logits);
        for (int t = 0; t < count; t++) {
            for (int r = first; r < last; r++)
                logits[t][r] *= m->logit_scale;
            if (m->logit_cap > 0)
                soft_cap(logits[t] + first, m->logit_cap, last - first);
        }
    }
}

// Restore the rows of the matrix that Python asked for.
static void restore_all(const view *v)
{
    const matrix *m = v->e->restored;
    const int64_t width = (int64_t)m->cols * (v->e->narrow ? 2 : 4);
    int first, last;
    while (take(v, m->rows, item_rows(v, m->rows, width), &first, &last))
        for (int r = first; r < last; r++)
            restore_row(m, r, v->e->narrow, v->e->output + r * width);
}

// Multiply the matrix that Python asked for.
static void multiply_all(const view *v)
{
    const matrix *m = v->e->factor;
    int first, last;
    while (take(v, m->rows, item_rows(v, m->rows, m->stride), &first, &last))
        multiply(m, first, last, v->e->count, v->e->vectors, v->e->products);
}

void IN_VARIANT(step)(engine *e, int thread)
{
    view v = {.e = e, .m = &e->m, .own = &e->private[thread], .thread = thread, .threads = pool_threads(e->threads)};
    if (e->restored) {
        restore_all(&v);
        return;
    }
    if (e->factor) {
        multiply_all(&v);
        return;
    }
    v.count = e->count;
    point(v.residual, v.own->residual, e->hidden_width, v.count);
    point(v.normed, v.own->normed, e->hidden_width, v.count);
    point(v.mixed, v.own->mixed, e->hidden_width, v.count);
    point(v.scratch, v.own->scratch, e->hidden_width, v.count);
    point(v.heads, v.own->heads, e->heads_width, v.count);
    point(v.qkv, e->qkv, e->qkv_width, v.count);
    point(v.inner, e->inner, e->inner_width, v.count);
    point(v.outer, e->outer, e->hidden_width, v.count);
    point(v.router, e->router, e->router_width, v.count);
    if (e->residual) {
        for (int t = 0; t < v.count; t++)
            memcpy(v.residual[t], e->residual + (int64_t)t * e->m.hidden, (size_t)e->m.hidden * sizeof(float));
    } else {
        embed(&v);
        for (int number = 0; number < e->m.layers_count; number++)
            run_layer(&v, &e->m.layers[number], number);
    }
    unembed(&v);
}
