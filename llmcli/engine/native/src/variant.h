// What is compiled once per kind of processor: VARIANT is its name, such as avx2.
#ifndef LLMCLI_VARIANT_H
#define LLMCLI_VARIANT_H

#define JOIN_EXPANDED(a, b) a##_##b
#define JOIN(a, b) JOIN_EXPANDED(a, b)
#define IN_VARIANT(name) JOIN(name, VARIANT)

#endif
