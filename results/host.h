/* host.h - facts about the machine a run was made on.
 * For:    run.json and `tplabench info`.  Enter: all rooms above results/.
 * Owns:   gives a JSON object (json_decref).
 * Fails:  never; a fact that cannot be read is null. */
#ifndef TPL_RESULTS_HOST_H
#define TPL_RESULTS_HOST_H

#include <jansson.h>

/* {"name", "os", "kernel", "cpu", "cpu_flags", "cores_online", "cores_usable", "memory_bytes"}; cpu_flags lists only
 * the vector extensions that kernels choose by. */
json_t *host_facts(void);

#endif
