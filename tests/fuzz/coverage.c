/* Tells libFuzzer, which comes with atheris, what code of gcc's has run. Preloaded, before gcc's libasan.
 *
 * gcc knows -fsanitize-coverage=trace-pc, which libFuzzer no longer does: here each place becomes one of its counters.
 * libasan has empty functions under libFuzzer's names; these here come first, and call libFuzzer's (FREEIM_FUZZER). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#define SLOTS 16384
typedef struct { uintptr_t pc, flags; } place;
static uint8_t counters[SLOTS];
static place places[SLOTS];

static void* find(const char* name) {
  void* fuzzer = dlopen(getenv("FREEIM_FUZZER"), RTLD_NOW);
  void* found = fuzzer ? dlsym(fuzzer, name) : NULL;
  if (!found) {
    fprintf(stderr, "there is no %s in FREEIM_FUZZER\n", name);
    abort();
  }
  return found;
}
#define FORWARD(name, types, names)          \
  void name types {                            \
    static void(*real) types;                  \
    if (!real) real = find(#name);             \
    real names;                                \
  }
#define FORWARD_CMP(bytes, type)                                              \
  FORWARD(__sanitizer_cov_trace_cmp##bytes, (type a, type b), (a, b))         \
  FORWARD(__sanitizer_cov_trace_const_cmp##bytes, (type a, type b), (a, b))

FORWARD(__sanitizer_cov_8bit_counters_init, (uint8_t * from, uint8_t* to), (from, to))
FORWARD(__sanitizer_cov_pcs_init, (const void* from, const void* to), (from, to))
FORWARD(__sanitizer_cov_trace_switch, (uint64_t value, uint64_t* cases), (value, cases))
FORWARD_CMP(1, uint8_t)
FORWARD_CMP(2, uint16_t)
FORWARD_CMP(4, uint32_t)
FORWARD_CMP(8, uint64_t)
void __sanitizer_cov_trace_cmpf(float a, float b) {}
void __sanitizer_cov_trace_cmpd(double a, double b) {}

/* Called once, when libFuzzer has been set up. */
void freeim_cover(void) {
  for (int i = 0; i < SLOTS; i++) places[i].pc = (uintptr_t)freeim_cover + i;
  __sanitizer_cov_8bit_counters_init(counters, counters + SLOTS);
  __sanitizer_cov_pcs_init(places, places + SLOTS);
}
void __sanitizer_cov_trace_pc(void) {
  uintptr_t pc = (uintptr_t)__builtin_return_address(0);
  counters[(pc >> 2 ^ pc >> 14) % SLOTS]++;
}
