#include "tests/support/fake_nvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fake_nvml_state fake_nvml = {.sm_mhz = 1980, .memory_mhz = 2619, .milliwatt = 350500, .celsius = 41};

/* Prototypes, as this library has no header of NVML's. */
int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlSystemGetDriverVersion(char *text, unsigned size);
int nvmlDeviceGetCount_v2(unsigned *n);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **d);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **d);
int nvmlDeviceGetName(void *d, char *text, unsigned size);
int nvmlDeviceGetClockInfo(void *d, int clock, unsigned *mhz);
int nvmlDeviceGetMaxClockInfo(void *d, int clock, unsigned *mhz);
int nvmlDeviceGetPowerUsage(void *d, unsigned *milliwatt);
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *milliwatt);
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *celsius);
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *reasons);
int nvmlDeviceGetEccMode(void *d, unsigned *now, unsigned *after_reboot);
int nvmlDeviceGetTotalEccErrors(void *d, int type, int counter, unsigned long long *n);

static int give(unsigned *out, unsigned value)
{
    if (!fake_nvml.read_error)
        *out = value;
    return fake_nvml.read_error;
}

int nvmlInit_v2(void)
{
    if (fake_nvml.begin_error)
        return fake_nvml.begin_error;
    fake_nvml.n_open++;
    return 0;
}

int nvmlShutdown(void)
{
    fake_nvml.n_open--;
    return 0;
}

int nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    snprintf(text, size, "580.1");
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *n)
{
    *n = 2;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **d)
{
    *d = &fake_nvml;
    return index < 2 ? 0 : 2;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **d)
{
    *d = &fake_nvml;
    return strcmp(bus_id, "00000000:1B:00.0") == 0 ? 0 : 6;
}

int nvmlDeviceGetName(void *d, char *text, unsigned size)
{
    snprintf(text, size, "Fake H100");
    return 0;
}

int nvmlDeviceGetClockInfo(void *d, int clock, unsigned *mhz)
{
    return give(mhz, clock == 1 ? fake_nvml.sm_mhz : fake_nvml.memory_mhz);
}

int nvmlDeviceGetMaxClockInfo(void *d, int clock, unsigned *mhz)
{
    return give(mhz, clock == 1 ? 1980 : 2619);
}

int nvmlDeviceGetPowerUsage(void *d, unsigned *milliwatt)
{
    return give(milliwatt, fake_nvml.milliwatt);
}

int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *milliwatt)
{
    return give(milliwatt, 700000);
}

int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *celsius)
{
    return give(celsius, fake_nvml.celsius);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *reasons)
{
    const char *more = getenv("FAKE_NVML_REASONS");
    fake_nvml.n_glances++;
    *reasons = fake_nvml.reasons | (more ? strtoull(more, NULL, 0) : 0);
    return fake_nvml.read_error;
}

int nvmlDeviceGetEccMode(void *d, unsigned *now, unsigned *after_reboot)
{
    *after_reboot = 1;
    return give(now, 1);
}

int nvmlDeviceGetTotalEccErrors(void *d, int type, int counter, unsigned long long *n)
{
    *n = type == 0 ? 3 : 0;
    return fake_nvml.read_error;
}
