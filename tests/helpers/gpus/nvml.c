/* What dask-cuda, distributed and nbmap ask of libnvidia-ml.so.1, for the machine of machine.h. */
#include "machine.h"

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18
};

typedef struct { unsigned pid; bytes used; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { bytes total, free, used; } memory;

static int users; /* nvmlInit less nvmlShutdown */

#define WORKING do { if (users <= 0) return UNINITIALIZED; } while (0)
#define ON(g) do { WORKING; if (!(g)) return INVALID_ARGUMENT; if (is_lost(g)) return GPU_IS_LOST; } while (0)

static int tell(const char *text, char *out, unsigned size) {
    if (size <= strlen(text)) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

API int nvmlInitWithFlags(unsigned flags) {
    const char *driver = setting("FAKE_GPU_DRIVER", "");
    (void)flags;
    if (!strcmp(driver, "notloaded")) return DRIVER_NOT_LOADED;
    if (!strcmp(driver, "mismatch")) return LIB_RM_VERSION_MISMATCH;
    read_machine();
    users++;
    return SUCCESS;
}

API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API int nvmlShutdown(void) {
    WORKING;
    users--;
    return SUCCESS;
}

API const char *nvmlErrorString(int result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

API int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    WORKING;
    return tell("580.82.07", out, size);
}

API int nvmlDeviceGetCount_v2(unsigned *out) {
    WORKING;
    *out = gpu_count;
    return SUCCESS;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu **out) {
    WORKING;
    if (index >= (unsigned)gpu_count) return INVALID_ARGUMENT;
    *out = &gpus[index];
    return is_lost(*out) ? GPU_IS_LOST : SUCCESS;
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, gpu **out) {
    WORKING;
    *out = NULL;
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) *out = &gpus[i];
    for (int i = 0; i < slice_count; i++)
        if (!strcmp(all_slices[i].uuid, uuid)) *out = &all_slices[i];
    if (!*out) return NOT_FOUND;
    return is_lost(*out) ? GPU_IS_LOST : SUCCESS;
}

API int nvmlDeviceGetName(gpu *g, char *out, unsigned size) {
    ON(g);
    return tell(g->name, out, size);
}

API int nvmlDeviceGetUUID(gpu *g, char *out, unsigned size) {
    ON(g);
    return tell(g->uuid, out, size);
}

API int nvmlDeviceGetIndex(gpu *g, unsigned *out) {
    ON(g);
    *out = g->index;
    return SUCCESS;
}

API int nvmlDeviceGetMemoryInfo(gpu *g, memory *out) {
    ON(g);
    if (g->has_no_memory) return NOT_SUPPORTED;
    out->total = g->memory;
    out->used = memory_in_use(g);
    out->free = out->total - out->used;
    return SUCCESS;
}

API int nvmlDeviceGetUtilizationRates(gpu *g, utilization *out) {
    ON(g);
    if (g->whole || g->in_mig_mode) return NOT_SUPPORTED;
    long long percent = state_of("util", g->index);
    out->gpu = percent < 0 ? 0 : percent;
    out->memory = out->gpu / 2;
    return SUCCESS;
}

API int nvmlDeviceGetCpuAffinity(gpu *g, unsigned words, unsigned long *out) {
    ON(g);
    long cores = sysconf(_SC_NPROCESSORS_CONF), bits = 8 * sizeof *out;
    memset(out, 0, words * sizeof *out);
    for (long i = 0; i < cores && i < words * bits; i++) out[i / bits] |= 1UL << i % bits;
    return SUCCESS;
}

API int nvmlDeviceGetMigMode(gpu *g, unsigned *current, unsigned *pending) {
    ON(g);
    if (g->whole) return INVALID_ARGUMENT;
    if (!g->in_mig_mode && !strstr(g->name, "A100") && !strstr(g->name, "H100"))
        return NOT_SUPPORTED;
    *current = *pending = g->in_mig_mode;
    return SUCCESS;
}

API int nvmlDeviceGetMaxMigDeviceCount(gpu *g, unsigned *out) {
    ON(g);
    *out = g->in_mig_mode ? MOST_SLICES : 0;
    return SUCCESS;
}

API int nvmlDeviceGetMigDeviceHandleByIndex(gpu *g, unsigned index, gpu **out) {
    ON(g);
    if (index >= (unsigned)g->slices) return NOT_FOUND;
    *out = g->slice[index];
    return SUCCESS;
}

API int nvmlDeviceIsMigDeviceHandle(gpu *g, unsigned *out) {
    ON(g);
    *out = g->whole != NULL;
    return SUCCESS;
}

API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu *g, gpu **out) {
    ON(g);
    if (!g->whole) return INVALID_ARGUMENT;
    *out = g->whole;
    return SUCCESS;
}

API int nvmlDeviceGetComputeRunningProcesses_v3(gpu *g, unsigned *n, process *out) {
    enum { MOST = 64 };
    int pids[MOST];
    bytes used[MOST], sum;
    ON(g);
    int found = contexts(g, &sum, MOST, pids, used), room = *n;
    if (found > MOST) found = MOST;
    *n = found;
    if (found > room || (found && !out)) return INSUFFICIENT_SIZE;
    for (int i = 0; i < found; i++) {
        process one = {pids[i], used[i], ~0u, ~0u}; /* no instances */
        out[i] = one;
    }
    return SUCCESS;
}

/* distributed asks for the older one. */
API int nvmlDeviceGetComputeRunningProcesses_v2(gpu *g, unsigned *n, process *out) {
    return nvmlDeviceGetComputeRunningProcesses_v3(g, n, out);
}
