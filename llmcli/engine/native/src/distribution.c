// Passes over the logits or probabilities of a whole vocabulary. All sums have the same order on every call.
#include "distribution.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "simd.h"
#include "variant.h"

#define SMALLEST 0x1p-149f // positive number
#define LIKELY 0x1p-16f    // for a token
enum { STRETCH = 1024 };   // numbers whose sum is kept in fp32
enum { SPAN = 8 * LANES }; // numbers that are skipped together
enum { GROUP_SHIFT = 18, GROUPS = 1 << 13 }; // of positive numbers, by their leading bits

// The largest number; NaN or any number if one is NaN.
static float largest_of(const float *x, int64_t count)
{
    vf most[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int j = 0; j < 4; j++)
            most[j] = maximum(most[j], load(x + i + j * LANES));
    most[0] = maximum(maximum(most[0], most[1]), maximum(most[2], most[3]));
    float largest = -INFINITY;
    for (int j = 0; j < LANES; j++)
        largest = most[0][j] <= largest ? largest : most[0][j];
    for (; i < count; i++)
        largest = x[i] <= largest ? largest : x[i];
    return largest;
}

// Whether any of SPAN numbers is at least `least`, or NaN.
INLINE bool any_at_least(const float *x, vf least)
{
    vi found = {0};
    for (int j = 0; j < SPAN; j += LANES)
        found |= ~(load(x + j) < least);
    int64_t parts[LANES / 2], any = 0;
    memcpy(parts, &found, sizeof found);
    for (int j = 0; j < LANES / 2; j++)
        any |= parts[j];
    return any != 0;
}

// The end of the span that begins at `start`, or of the next one that has a number of at least `least`, or `count`.
INLINE int64_t skip(const float *values, int64_t count, float least, int64_t *start)
{
    while (*start + SPAN <= count && !any_at_least(values + *start, splat(least)))
        *start += SPAN;
    return *start + SPAN < count ? *start + SPAN : count;
}

// e^(x - largest) into probs, unless that is NULL; adds to the sums of a stretch.
INLINE void exponentiate(vf x, vf largest, float *probs, vf *total, vf *weighted)
{
    const vf below = x - largest, power = exponential(below);
    *total += power;
    *weighted += power * maximum(below, splat(-128.0f)); // where the power is 0, not 0 times infinity
    if (probs)
        store(probs, power);
}

static void softmax(const float *logits, int64_t count, float *probs, sums *found)
{
    const vf largest = splat(largest_of(logits, count));
    *found = (sums){.largest = (double)largest[0]};
    for (int64_t start = 0; start < count; start += STRETCH) {
        const int64_t end = start + STRETCH < count ? start + STRETCH : count;
        vf total[2] = {0}, weighted[2] = {0};
        int64_t i = start;
        for (; i + SPAN <= end; i += SPAN) {
            if (!any_at_least(logits + i, largest - 104.0f)) { // as where a filter has cut most tokens
                if (probs)
                    memset(probs + i, 0, SPAN * sizeof *probs);
                continue;
            }
            for (int j = 0; j < SPAN; j += LANES) {
                float *to = probs ? probs + i + j : NULL;
                exponentiate(load(logits + i + j), largest, to, &total[j / LANES % 2], &weighted[j / LANES % 2]);
            }
        }
        for (; i < end; i++) { // of the last stretch
            vf last = splat(-INFINITY), power;
            last[0] = logits[i];
            exponentiate(last, largest, (float *)&power, &total[0], &weighted[0]);
            if (probs)
                probs[i] = power[0];
        }
        found->total += (double)sum(total[0] + total[1]);
        found->weighted += (double)sum(weighted[0] + weighted[1]);
    }
    const float scale = (float)(1.0 / found->total);
    for (int64_t i = 0; probs && i < count; i++)
        probs[i] *= scale;
}

// With the bits that it has in the output of softmax.
static float probability(const sums *found, float logit)
{
    const vf power = exponential(splat(logit) - splat((float)found->largest));
    return power[0] * (float)(1.0 / found->total);
}

// In double, so that no temperature rounds to 0; the largest logit becomes 0.
static void temper(const float *logits, int64_t count, double temperature, float *tempered)
{
    const double largest = (double)largest_of(logits, count), inverse = fmin(1.0 / temperature, DBL_MAX);
    for (int64_t i = 0; i < count; i++)
        tempered[i] = (float)(((double)logits[i] - largest) * inverse);
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// A number that is smaller for tokens of higher rank: those with a larger value, or an equal one and a smaller id.
static uint64_t rank_key(float value, int64_t id)
{
    const uint32_t bits = bits_of(value + 0.0f); // -0.0 equals 0.0
    return (uint64_t)(bits >> 31 ? bits : ~bits & INT32_MAX) << 32 | (uint64_t)id;
}

static int64_t id_of(uint64_t key) { return (int64_t)(key & UINT32_MAX); }

static int by_key(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

// Put the first of `size` keys where it belongs in a heap whose largest key is the first.
static void sift(uint64_t *heap, int64_t size)
{
    for (int64_t at = 0, child; (child = 2 * at + 1) < size; at = child) {
        child += child + 1 < size && heap[child + 1] > heap[child];
        if (heap[at] >= heap[child])
            return;
        const uint64_t up = heap[child];
        heap[child] = heap[at];
        heap[at] = up;
    }
}

static void leading(const float *values, int64_t count, int64_t n, uint64_t *heap)
{
    for (int64_t i = 0; i < n; i++)
        heap[i] = UINT64_MAX;
    float least = -INFINITY;
    for (int64_t i = 0; i < count;) {
        const int64_t end = skip(values, count, least, &i);
        for (; i < end; i++) {
            const uint64_t key = rank_key(values[i], i);
            if (key >= heap[0])
                continue;
            heap[0] = key;
            sift(heap, n);
            if (heap[0] != UINT64_MAX)
                least = values[id_of(heap[0])];
        }
    }
    qsort(heap, (size_t)n, sizeof *heap, by_key);
    for (int64_t i = 0; i < n; i++)
        heap[i] &= UINT32_MAX;
}

// The token of one group of `size` whose interval contains `target`; `before` is the sum of all more probable groups.
static int64_t draw_within(const float *probs, int64_t count, uint32_t group, int64_t size, double before, double target)
{
    const uint32_t least_bits = group << GROUP_SHIFT;
    float least;
    memcpy(&least, &least_bits, sizeof least);
    uint64_t *members = malloc((size_t)size * sizeof *members);
    if (!members)
        return -1;
    int64_t found = 0, drawn = -1;
    for (int64_t i = 0; i < count;) {
        const int64_t end = skip(probs, count, least, &i);
        for (; i < end; i++)
            if (probs[i] > 0 && bits_of(probs[i]) >> GROUP_SHIFT == group)
                members[found++] = rank_key(probs[i], i);
    }
    qsort(members, (size_t)size, sizeof *members, by_key);
    double end = 0;
    for (int64_t i = 0; i < size; i++) {
        drawn = id_of(members[i]);
        end += (double)probs[drawn];
        if (before + end > target)
            break;
    }
    free(members);
    return drawn;
}

// Add up the numbers of at least `least` by groups, and count them; returns the sum of all numbers.
INLINE double add_up(const float *probs, int64_t count, float least, double *groups, int32_t *sizes)
{
    typedef double vd __attribute__((vector_size(LANES * 8)));
    vd total[2] = {0};
    int64_t i = 0;
    memset(groups, 0, GROUPS * sizeof *groups);
    memset(sizes, 0, GROUPS * sizeof *sizes);
#define GROUP(p)                                                                                                       \
    do {                                                                                                               \
        if ((p) >= least) {                                                                                            \
            groups[bits_of(p) >> GROUP_SHIFT] += (double)(p);                                                          \
            sizes[bits_of(p) >> GROUP_SHIFT]++;                                                                        \
        }                                                                                                              \
    } while (0)
    for (; i + SPAN <= count; i += SPAN) {
        for (int j = 0; j < SPAN; j += LANES)
            total[j / LANES % 2] += __builtin_convertvector(load(probs + i + j), vd);
        if (any_at_least(probs + i, splat(least)))
            for (int j = 0; j < SPAN; j++)
                GROUP(probs[i + j]);
    }
    double sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += total[0][j] + total[1][j];
    for (; i < count; i++) {
        sum += (double)probs[i];
        GROUP(probs[i]);
    }
#undef GROUP
    return sum;
}

// Most numbers are tiny, so those that are not are tried first.
static int64_t draw(const float *probs, int64_t count, double u)
{
    double groups[GROUPS];
    int32_t sizes[GROUPS];
    for (int tries = 0; tries < 2; tries++) {
        double end = 0, total = add_up(probs, count, tries ? SMALLEST : LIKELY, groups, sizes);
        if (tries) { // the sum that the loop below reaches at its end
            total = 0;
            for (int g = GROUPS - 1; g >= 0; g--)
                total += groups[g];
        }
        int last = -1;
        for (int g = GROUPS - 1; g >= 0; g--) {
            if (!sizes[g])
                continue;
            const double before = end;
            end += groups[g];
            if (end > u * total)
                return draw_within(probs, count, (uint32_t)g, sizes[g], before, u * total);
            last = g;
        }
        if (tries && last >= 0) // rounding has kept all sums from passing u
            return draw_within(probs, count, (uint32_t)last, sizes[last], end - groups[last], u * total);
    }
    return -1;
}

static void keep(const float *logits, const float *values, int64_t count, int64_t last, float *kept)
{
    const float least = values[last];
    for (int64_t i = 0; i <= last; i++)
        kept[i] = values[i] >= least ? logits[i] : -INFINITY;
    for (int64_t i = last + 1; i < count; i++)
        kept[i] = values[i] > least ? logits[i] : -INFINITY;
}

static int64_t rank(const float *values, int64_t count, int64_t id)
{
    int64_t higher = 0;
    for (int64_t i = 0; i < count; i++)
        higher += values[i] > values[id];
    for (int64_t i = 0; i < id; i++)
        higher += values[i] == values[id];
    return higher;
}

const distribution_functions IN_VARIANT(distribution) = {
    softmax, probability, temper, leading, draw, keep, rank,
};
