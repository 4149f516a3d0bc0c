#include "processor.h"

#include <stddef.h>
#include <stdint.h>

static bool always(void) { return true; }

#ifdef __x86_64__
#include <cpuid.h>

// The parts of the processor's state that the operating system saves: bit 2 for AVX, bits 5 to 7 for AVX-512.
static bool saves(uint32_t parts)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1))
        return false;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a & parts) == parts;
}

static bool has_avx2(void)
{
    uint32_t a, b, c, d;
    if (!saves(0x6) || !__get_cpuid(1, &a, &b, &c, &d) || !(c >> 12 & 1) || !(c >> 29 & 1)) // FMA, F16C
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 5 & 1);
}

static bool has_avx512(void)
{
    uint32_t a, b, c, d;
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    return saves(0xe6) && has_avx2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & f_dq_bw_vl) == f_dq_bw_vl;
}
#endif

#define DECLARE(name)                                                                                                  \
    void step_##name(engine *e, int thread);                                                                           \
    extern const distribution_functions distribution_##name
DECLARE(portable);
#ifdef __x86_64__
DECLARE(avx2);
DECLARE(avx512);
#endif

const variant variants[] = {
#ifdef __x86_64__
    {"avx512", has_avx512, step_avx512, &distribution_avx512},
    {"avx2", has_avx2, step_avx2, &distribution_avx2},
#endif
    {"portable", always, step_portable, &distribution_portable},
};

static int chosen = -1;

int variant_number(void)
{
    if (chosen < 0)
        for (chosen = 0; !variants[chosen].runs();)
            chosen++;
    return chosen;
}

const char *choose_variant(int number)
{
    if (number < 0 || number >= (int)(sizeof variants / sizeof *variants) || !variants[number].runs())
        return NULL;
    chosen = number;
    return variants[number].name;
}
