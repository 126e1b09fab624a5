#include "device/card_watch.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/arena.h"

/* The few of NVML's functions that are needed, as its ABI has had them since driver 450; all return 0 on success. */
typedef void *nvml_device;
enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEMORY = 2, NVML_GPU_SENSOR = 0, NVML_CORRECTED = 0, NVML_UNCORRECTED = 1, NVML_VOLATILE = 0 };

typedef struct {
    int (*nvmlInit_v2)(void);
    int (*nvmlShutdown)(void);
    int (*nvmlSystemGetDriverVersion)(char *text, unsigned size);
    int (*nvmlDeviceGetCount_v2)(unsigned *n);
    int (*nvmlDeviceGetHandleByIndex_v2)(unsigned index, nvml_device *d);
    int (*nvmlDeviceGetHandleByPciBusId_v2)(const char *bus_id, nvml_device *d);
    int (*nvmlDeviceGetName)(nvml_device d, char *text, unsigned size);
    int (*nvmlDeviceGetClockInfo)(nvml_device d, int clock, unsigned *mhz);
    int (*nvmlDeviceGetMaxClockInfo)(nvml_device d, int clock, unsigned *mhz);
    int (*nvmlDeviceGetPowerUsage)(nvml_device d, unsigned *milliwatt);
    int (*nvmlDeviceGetEnforcedPowerLimit)(nvml_device d, unsigned *milliwatt);
    int (*nvmlDeviceGetTemperature)(nvml_device d, int sensor, unsigned *celsius);
    int (*nvmlDeviceGetCurrentClocksThrottleReasons)(nvml_device d, unsigned long long *reasons);
    int (*nvmlDeviceGetEccMode)(nvml_device d, unsigned *now, unsigned *after_reboot);
    int (*nvmlDeviceGetTotalEccErrors)(nvml_device d, int type, int counter, unsigned long long *n);
} nvml;

static const char *const function_names[] = {
    "nvmlInit_v2",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlDeviceGetName",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetTotalEccErrors",
};
enum { N_FUNCTIONS = sizeof function_names / sizeof *function_names };
_Static_assert(sizeof(nvml) == N_FUNCTIONS * sizeof(void *), "a name a function, in the same order");

struct card_watch {
    void *library;
    nvml f;
    nvml_device card;
    card_about about;
};

static tpl_code open_library(card_watch *w, const char *library, tpl_err *e)
{
    const char *from_outside = getenv("TPLABENCH_NVML");
    if (!library)
        library = from_outside && *from_outside ? from_outside : "libnvidia-ml.so.1";
    w->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!w->library)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "NVML", "%.200s cannot be loaded", library);
    void **functions = (void **)(void *)&w->f;
    for (int i = 0; i < N_FUNCTIONS; i++) {
        functions[i] = dlsym(w->library, function_names[i]);
        if (!functions[i])
            return tpl_fail(e, TPL_E_UNSUPPORTED, "NVML", "%.160s has no %s", library, function_names[i]);
    }
    int rc = w->f.nvmlInit_v2();
    if (rc == 0)
        return TPL_OK;
    w->f.nvmlShutdown = NULL;
    return tpl_fail(e, TPL_E_DEVICE, "NVML", "does not begin: error %d", rc);
}

static void close_library(card_watch *w)
{
    if (w->library && w->f.nvmlShutdown)
        w->f.nvmlShutdown();
    if (w->library)
        dlclose(w->library);
}

int card_watch_count(const char *library)
{
    card_watch w = {0};
    unsigned n = 0;
    if (open_library(&w, library, NULL) != TPL_OK || w.f.nvmlDeviceGetCount_v2(&n) != 0)
        n = 0;
    close_library(&w);
    return (int)n;
}

static double or_nan(int rc, double value)
{
    return rc == 0 ? value : NAN;
}

static int64_t ecc_errors(const card_watch *w, int type)
{
    unsigned long long n = 0;
    return w->f.nvmlDeviceGetTotalEccErrors(w->card, type, NVML_VOLATILE, &n) == 0 ? (int64_t)n : -1;
}

static void read_about(card_watch *w)
{
    const nvml *f = &w->f;
    card_about *a = &w->about;
    unsigned n = 0, later = 0;
    if (f->nvmlDeviceGetName(w->card, a->name, sizeof a->name) != 0)
        a->name[0] = 0;
    if (f->nvmlSystemGetDriverVersion(a->driver, sizeof a->driver) != 0)
        a->driver[0] = 0;
    int rc = f->nvmlDeviceGetMaxClockInfo(w->card, NVML_CLOCK_SM, &n);
    a->sm_mhz_max = or_nan(rc, n);
    rc = f->nvmlDeviceGetMaxClockInfo(w->card, NVML_CLOCK_MEMORY, &n);
    a->memory_mhz_max = or_nan(rc, n);
    rc = f->nvmlDeviceGetEnforcedPowerLimit(w->card, &n);
    a->power_limit_w = or_nan(rc, n * 1e-3);
    a->ecc = f->nvmlDeviceGetEccMode(w->card, &n, &later) == 0 ? n != 0 : -1;
    a->ecc_corrected = ecc_errors(w, NVML_CORRECTED);
    a->ecc_uncorrected = ecc_errors(w, NVML_UNCORRECTED);
}

static tpl_code find_card(card_watch *w, const char *bus_id, int index, tpl_err *e)
{
    char which[48];
    int rc = bus_id ? w->f.nvmlDeviceGetHandleByPciBusId_v2(bus_id, &w->card)
                    : w->f.nvmlDeviceGetHandleByIndex_v2((unsigned)index, &w->card);
    snprintf(which, sizeof which, bus_id ? "at %.32s" : "number %.0s%d", bus_id ? bus_id : "", index);
    return rc == 0 ? TPL_OK : tpl_fail(e, TPL_E_DEVICE, "NVML", "does not know the card %s: error %d", which, rc);
}

tpl_code card_watch_open(const char *library, const char *bus_id, int index, card_watch **out, tpl_err *e)
{
    card_watch *w = tpl_calloc(1, sizeof *w);
    tpl_code rc = open_library(w, library, e);
    if (rc == TPL_OK)
        rc = find_card(w, bus_id, index, e);
    if (rc != TPL_OK) {
        card_watch_close(w);
        return rc;
    }
    read_about(w);
    *out = w;
    return TPL_OK;
}

void card_watch_close(card_watch *w)
{
    if (!w)
        return;
    close_library(w);
    free(w);
}

const card_about *card_watch_about(const card_watch *w)
{
    return &w->about;
}

card_state card_watch_glance(const card_watch *w)
{
    card_state s = {.memory_mhz = NAN, .power_w = NAN, .temperature_c = NAN};
    unsigned mhz = 0;
    unsigned long long reasons = 0;
    int rc = w->f.nvmlDeviceGetClockInfo(w->card, NVML_CLOCK_SM, &mhz);
    s.sm_mhz = or_nan(rc, mhz);
    s.knows_reasons = w->f.nvmlDeviceGetCurrentClocksThrottleReasons(w->card, &reasons) == 0;
    s.reasons = s.knows_reasons ? (uint32_t)reasons : 0;
    return s;
}

card_state card_watch_read(const card_watch *w)
{
    const nvml *f = &w->f;
    card_state s = card_watch_glance(w);
    unsigned n = 0;
    int rc = f->nvmlDeviceGetClockInfo(w->card, NVML_CLOCK_MEMORY, &n);
    s.memory_mhz = or_nan(rc, n);
    rc = f->nvmlDeviceGetPowerUsage(w->card, &n);
    s.power_w = or_nan(rc, n * 1e-3);
    rc = f->nvmlDeviceGetTemperature(w->card, NVML_GPU_SENSOR, &n);
    s.temperature_c = or_nan(rc, n);
    return s;
}

void card_reasons_text(uint32_t reasons, char *out, size_t size)
{
    static const struct {
        uint32_t bit;
        const char *text;
    } known[] = {
        {CARD_SLOW_IDLE, "idle"},
        {CARD_SLOW_SETTING, "clocks set"},
        {CARD_SLOW_POWER_CAP, "power cap"},
        {CARD_SLOW_HARDWARE, "hardware slowdown"},
        {CARD_SLOW_SYNC_BOOST, "sync boost"},
        {CARD_SLOW_THERMAL_SOFTWARE, "thermal, by the driver"},
        {CARD_SLOW_THERMAL_HARDWARE, "thermal, by the hardware"},
        {CARD_SLOW_POWER_BRAKE, "power brake"},
        {CARD_SLOW_DISPLAY, "display clocks"},
    };
    size_t used = 0;
    snprintf(out, size, "none");
    for (size_t i = 0; i < sizeof known / sizeof *known && used < size; i++)
        if (reasons & known[i].bit)
            used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", known[i].text);
}
