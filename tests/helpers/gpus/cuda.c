/* What cuda.core and the tests ask of libcuda.so.1, for the machine of machine.h. Runs no kernels.
 *
 * FAKE_CUDA_ORDER  "1,0": how CUDA numbers the GPUs unless CUDA_DEVICE_ORDER=PCI_BUS_ID. As with the
 *                  real one that is not NVML's order where the GPUs of a machine differ.
 *
 * fake_cuda_trap() leaves the process as a kernel does that reads a wrong address: every later call
 * fails until the process ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "machine.h"

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    SYSTEM_DRIVER_MISMATCH = 803
};

enum { MOST_DEVICES = MOST_GPUS * MOST_SLICES, MOST_PIECES = 4096 };

typedef struct context {
    int device;
    int users;
    bytes memory;
} context;

typedef struct piece {
    bytes address, size;
    context *owner;
} piece;

static gpu *visible[MOST_DEVICES]; /* in CUDA's order, as far as this process sees them */
static int visible_count = -1;     /* until cuInit */
static context contexts_of[MOST_DEVICES];
static __thread context *current;
static piece pieces[MOST_PIECES];
static bytes next_address = 0x7f0000000000ULL;
static int trapped;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define WORKING do { if (visible_count < 0) return NOT_INITIALIZED; if (trapped) return ILLEGAL_ADDRESS; } while (0)
#define DEVICE(d) do { WORKING; if ((d) < 0 || (d) >= visible_count) return INVALID_DEVICE; } while (0)

static gpu *numbered(int number) {
    const char *order = setting("FAKE_CUDA_ORDER", NULL), *by = setting("CUDA_DEVICE_ORDER", "");
    int index = number;
    if (order && strcmp(by, "PCI_BUS_ID")) {
        for (int i = 0; i < number && order; i++)
            if ((order = strchr(order, ','))) order++;
        if (order) index = atoi(order);
    }
    if (index < 0 || index >= gpu_count) index = number;
    return gpus[index].slices ? gpus[index].slice[0] : &gpus[index];
}

static gpu *named(const char *uuid) {
    size_t length = strlen(uuid); /* a beginning will do */
    for (int i = 0; i < gpu_count; i++)
        if (!strncmp(gpus[i].uuid, uuid, length)) return &gpus[i];
    for (int i = 0; i < slice_count; i++)
        if (!strncmp(all_slices[i].uuid, uuid, length)) return &all_slices[i];
    return NULL;
}

/* Read CUDA_VISIBLE_DEVICES as the driver does: once, and no further than the first bad entry. */
static void look(void) {
    const char *value = getenv("CUDA_VISIBLE_DEVICES");
    char *text, *rest;
    read_machine();
    visible_count = 0;
    if (!value) {
        for (int i = 0; i < gpu_count; i++) visible[visible_count++] = numbered(i);
        return;
    }
    text = strdup(value);
    for (char *part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *end;
        long number = strtol(part, &end, 10);
        gpu *g;
        if (end != part && !*end)
            g = number >= 0 && number < gpu_count ? numbered(number) : NULL;
        else
            g = named(part);
        if (!g || visible_count == MOST_DEVICES) break;
        visible[visible_count++] = g;
    }
    free(text);
}

static void path_of(const context *c, char *out, size_t size) {
    char prefix[32];
    context_prefix(visible[c->device], prefix, sizeof prefix);
    snprintf(out, size, "%s/%s%d", setting("FAKE_GPU_STATE", ""), prefix, getpid());
}

static void publish(const context *c) {
    char path[4096], draft[4096];
    const char *folder = setting("FAKE_GPU_STATE", NULL);
    if (!folder) return;
    path_of(c, path, sizeof path);
    snprintf(draft, sizeof draft, "%s/.draft.%d", folder, getpid());
    FILE *file = fopen(draft, "w");
    if (!file) return;
    fprintf(file, "%llu\n", c->memory);
    fclose(file);
    rename(draft, path);
}

API void fake_cuda_trap(void) { trapped = 1; }

API int cuInit(unsigned flags) {
    const char *driver = setting("FAKE_GPU_DRIVER", "");
    (void)flags;
    if (!strcmp(driver, "notloaded")) return NO_DEVICE;
    if (!strcmp(driver, "mismatch")) return SYSTEM_DRIVER_MISMATCH;
    pthread_mutex_lock(&lock);
    if (visible_count < 0) look();
    pthread_mutex_unlock(&lock);
    return visible_count ? SUCCESS : NO_DEVICE;
}

API int cuDriverGetVersion(int *out) {
    *out = 13000;
    return SUCCESS;
}

API int cuDeviceGetCount(int *out) {
    WORKING;
    *out = visible_count;
    return SUCCESS;
}

API int cuDeviceGet(int *out, int number) {
    DEVICE(number);
    *out = number;
    return SUCCESS;
}

API int cuDeviceGetName(char *out, int size, int d) {
    DEVICE(d);
    snprintf(out, size, "%s", visible[d]->name);
    return SUCCESS;
}

API int cuDeviceGetUuid_v2(unsigned char *out, int d) {
    DEVICE(d);
    const char *text = visible[d]->uuid + 4; /* behind "GPU-" or "MIG-" */
    for (int i = 0; i < 16 && *text; text++) {
        unsigned byte;
        if (*text == '-') continue;
        sscanf(text++, "%2x", &byte);
        out[i++] = byte;
    }
    return SUCCESS;
}

API int cuDeviceTotalMem_v2(size_t *out, int d) {
    DEVICE(d);
    *out = visible[d]->memory;
    return SUCCESS;
}

API int cuDeviceGetAttribute(int *out, int attribute, int d) {
    enum { MAJOR = 75, MINOR = 76 };
    DEVICE(d);
    *out = attribute == MAJOR ? 8 : attribute == MINOR ? 0 : 1;
    return SUCCESS;
}

API int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) {
    DEVICE(d);
    *flags = 0;
    *active = contexts_of[d].users > 0;
    return SUCCESS;
}

API int cuDevicePrimaryCtxRetain(context **out, int d) {
    DEVICE(d);
    if (is_lost(visible[d])) return DEVICE_UNAVAILABLE;
    *out = &contexts_of[d];
    (*out)->device = d;
    (*out)->users++;
    publish(*out);
    return SUCCESS;
}

API int cuDevicePrimaryCtxRelease_v2(int d) {
    char path[4096];
    DEVICE(d);
    context *c = &contexts_of[d];
    if (c->users > 0 && --c->users == 0) {
        c->memory = 0;
        path_of(c, path, sizeof path);
        unlink(path);
    }
    return SUCCESS;
}

API int cuCtxSetCurrent(context *c) {
    WORKING;
    current = c;
    return SUCCESS;
}

API int cuCtxGetCurrent(context **out) {
    WORKING;
    *out = current;
    return SUCCESS;
}

API int cuCtxGetDevice_v2(int *out, context *c) {
    WORKING;
    if (!c) c = current;
    if (!c) return INVALID_CONTEXT;
    *out = c->device;
    return SUCCESS;
}

API int cuCtxGetDevice(int *out) { return cuCtxGetDevice_v2(out, NULL); }

API int cuCtxSynchronize(void) {
    WORKING;
    if (!current) return INVALID_CONTEXT;
    return is_lost(visible[current->device]) ? DEVICE_UNAVAILABLE : SUCCESS;
}

API int cuMemGetInfo_v2(size_t *available, size_t *total) {
    WORKING;
    if (!current) return INVALID_CONTEXT;
    gpu *g = visible[current->device];
    *total = g->memory;
    *available = g->memory - memory_in_use(g);
    return SUCCESS;
}

API int cuMemAlloc_v2(bytes *out, size_t size) {
    WORKING;
    if (!current) return INVALID_CONTEXT;
    if (!size) return INVALID_VALUE;
    gpu *g = visible[current->device];
    if (is_lost(g)) return DEVICE_UNAVAILABLE;
    int result = OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST_PIECES && size <= g->memory - memory_in_use(g); i++) {
        if (pieces[i].address) continue;
        pieces[i] = (piece){next_address, size, current};
        *out = next_address;
        next_address += (size + 511) & ~511ULL;
        current->memory += size;
        publish(current);
        result = SUCCESS;
        break;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

API int cuMemFree_v2(bytes address) {
    WORKING;
    int result = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; address && i < MOST_PIECES; i++) {
        if (pieces[i].address != address) continue;
        pieces[i].owner->memory -= pieces[i].size;
        pieces[i].address = 0;
        publish(pieces[i].owner);
        result = SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

API int cuGetErrorName(int code, const char **out) {
    switch (code) {
    case SUCCESS: *out = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *out = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *out = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NOT_INITIALIZED: *out = "CUDA_ERROR_NOT_INITIALIZED"; break;
    case DEVICE_UNAVAILABLE: *out = "CUDA_ERROR_DEVICE_UNAVAILABLE"; break;
    case NO_DEVICE: *out = "CUDA_ERROR_NO_DEVICE"; break;
    case INVALID_DEVICE: *out = "CUDA_ERROR_INVALID_DEVICE"; break;
    case INVALID_CONTEXT: *out = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case NOT_FOUND: *out = "CUDA_ERROR_NOT_FOUND"; break;
    case ILLEGAL_ADDRESS: *out = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case SYSTEM_DRIVER_MISMATCH: *out = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; break;
    default: *out = "CUDA_ERROR_UNKNOWN";
    }
    return SUCCESS;
}

API int cuGetErrorString(int code, const char **out) {
    if (code != OUT_OF_MEMORY) return cuGetErrorName(code, out);
    *out = "out of memory";
    return SUCCESS;
}

/* cuda.bindings asks for every function by name and the version that it was made for, and does without
 * those that are not there. */
API int cuGetProcAddress_v2(const char *name, void **out, int version, unsigned long long flags,
                            int *status) {
    char newer[160];
    Dl_info here;
    /* Of these the newer one has other parameters, and came with CUDA 13. */
    int as_named = version < 13000 && !strcmp(name, "cuCtxGetDevice");
    (void)flags;
    *out = NULL;
    if (dladdr((void *)&cuGetProcAddress_v2, &here)) {
        void *self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
        snprintf(newer, sizeof newer, "%s_v2", name);
        if (!as_named) *out = dlsym(self, newer);
        if (!*out) *out = dlsym(self, name);
        dlclose(self);
    }
    if (status) *status = *out ? 0 : 1;
    return *out ? SUCCESS : NOT_FOUND;
}

API int cuGetProcAddress(const char *name, void **out, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, out, version, flags, NULL);
}
