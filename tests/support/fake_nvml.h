/* fake_nvml.h - a library that looks like NVML and says what a test wants: two cards, of which only number 1 can be seen
 * by its bus id "00000000:1B:00.0".
 * For:    tests of device/card_watch.h and of what stands on it.  Enter: tests/.
 * Owns:   its state, which tests reach through dlsym(..., "fake_nvml"). Reasons may come from $FAKE_NVML_REASONS too.
 * Fails:  as the state says. */
#ifndef TPL_TESTS_SUPPORT_FAKE_NVML_H
#define TPL_TESTS_SUPPORT_FAKE_NVML_H

typedef struct {
    unsigned sm_mhz, memory_mhz, milliwatt, celsius;
    unsigned long long reasons;
    int begin_error, read_error; /* nonzero: what nvmlInit_v2(), and all readings, return */
    int n_open;                  /* nvmlInit_v2() less nvmlShutdown() */
    long n_glances;
} fake_nvml_state;

#endif
