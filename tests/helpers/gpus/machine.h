/* The GPUs of a pretended machine, as nvml.c and cuda.c show them.
 *
 * FAKE_GPUS        NAME:MIB[:OPTION]... with "," between GPUs; unset or "" for none. Options:
 *                    mig=1g.5gb*2/3g.20gb   in MIG mode, with these slices
 *                    nomem                  shares the host's memory, and tells no figures (GB10)
 * FAKE_GPU_STATE   folder that the processes of one machine share:
 *                    ctx.GPU.PID, ctx.GPU-SLICE.PID   a CUDA context; holds its bytes
 *                    util.GPU       percent
 *                    used.GPU       bytes that somebody else uses
 *                    lost.GPU       it fell off the bus
 * FAKE_GPU_HOST    four hex digits that the UUIDs of this machine have
 * FAKE_GPU_DRIVER  "notloaded" or "mismatch"; anything else works
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

enum { MOST_GPUS = 16, MOST_SLICES = 7 };

typedef unsigned long long bytes;

typedef struct gpu {
    int index; /* of a slice, within its GPU */
    char name[96];
    char uuid[48];
    bytes memory;
    int has_no_memory;
    int in_mig_mode;
    struct gpu *whole; /* of a slice, the GPU that it is a part of */
    int slices;
    struct gpu *slice[MOST_SLICES];
} gpu;

static gpu gpus[MOST_GPUS], all_slices[MOST_GPUS * MOST_SLICES];
static int gpu_count, slice_count;
static pthread_once_t read_once = PTHREAD_ONCE_INIT;

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static void name_it(gpu *g, const char *kind, int number, int slice) {
    snprintf(g->uuid, sizeof g->uuid, "%s-fa4e0000-%.4s-4000-8000-%06d%06d", kind,
             setting("FAKE_GPU_HOST", "0000"), slice, number);
}

static void add_slices(gpu *whole, const char *profile, int n) {
    const char *size = strchr(profile, '.');
    for (; n > 0 && whole->slices < MOST_SLICES; n--) {
        gpu *slice = &all_slices[slice_count++];
        slice->index = whole->slices;
        slice->whole = whole;
        slice->memory = size ? (bytes)(atof(size + 1) * 0.95 * 1024) << 20 : 0;
        snprintf(slice->name, sizeof slice->name, "%.60s MIG %.20s", whole->name, profile);
        name_it(slice, "MIG", whole->index, whole->slices);
        whole->slice[whole->slices++] = slice;
    }
}

static void read_option(gpu *g, char *option) {
    char *rest;
    if (!strcmp(option, "nomem")) g->has_no_memory = 1;
    if (strncmp(option, "mig=", 4)) return;
    g->in_mig_mode = 1;
    for (char *part = strtok_r(option + 4, "/", &rest); part; part = strtok_r(NULL, "/", &rest)) {
        char *times = strchr(part, '*');
        if (times) *times++ = 0;
        add_slices(g, part, times ? atoi(times) : 1);
    }
}

static void read_gpus(void) {
    char *text = strdup(setting("FAKE_GPUS", "")), *rest, *more;
    for (char *part = strtok_r(text, ",", &rest); part && gpu_count < MOST_GPUS;
         part = strtok_r(NULL, ",", &rest)) {
        gpu *g = &gpus[gpu_count];
        char *name = strtok_r(part, ":", &more), *memory = strtok_r(NULL, ":", &more);
        if (!name || !memory) continue;
        g->index = gpu_count++;
        g->memory = strtoull(memory, NULL, 10) << 20;
        snprintf(g->name, sizeof g->name, "%s", name);
        name_it(g, "GPU", g->index, 0);
        for (char *option; (option = strtok_r(NULL, ":", &more));) read_option(g, option);
    }
    free(text);
}

static void read_machine(void) { pthread_once(&read_once, read_gpus); }

/* A number in a file of the machine's state, or -1 where there is no such file. */
static long long state_of(const char *what, int index) {
    char path[4096];
    long long value = 0;
    const char *folder = setting("FAKE_GPU_STATE", NULL);
    if (!folder) return -1;
    snprintf(path, sizeof path, "%s/%s.%d", folder, what, index);
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    if (fscanf(file, "%lld", &value) != 1) value = 0;
    fclose(file);
    return value;
}

static int is_lost(const gpu *g) {
    return state_of("lost", g->whole ? g->whole->index : g->index) >= 0;
}

/* What the files of contexts on a GPU, or on a slice of it, begin with. */
static int context_prefix(const gpu *g, char *out, size_t size) {
    if (g->whole) return snprintf(out, size, "ctx.%d-%d.", g->whole->index, g->index);
    return snprintf(out, size, "ctx.%d.", g->index);
}

/* Add up the bytes of a GPU's contexts, and note the first `most` processes that have one. */
static int contexts(const gpu *g, bytes *sum, int most, int *pids, bytes *used) {
    char prefix[32], path[4096];
    int n = 0, length = context_prefix(g, prefix, sizeof prefix);
    const char *folder = setting("FAKE_GPU_STATE", NULL);
    DIR *files = folder ? opendir(folder) : NULL;
    struct dirent *entry;
    *sum = 0;
    while (files && (entry = readdir(files))) {
        if (strncmp(entry->d_name, prefix, length)) continue;
        int pid = atoi(entry->d_name + length);
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (kill(pid, 0) && errno == ESRCH) { /* a driver frees what dead processes had */
            unlink(path);
            continue;
        }
        bytes its = 0;
        FILE *file = fopen(path, "r");
        if (file && fscanf(file, "%llu", &its) != 1) its = 0;
        if (file) fclose(file);
        *sum += its;
        if (n < most) pids[n] = pid, used[n] = its;
        n++;
    }
    if (files) closedir(files);
    return n;
}

static bytes memory_in_use(const gpu *g) {
    bytes all, one;
    contexts(g, &all, 0, NULL, NULL);
    for (int i = 0; i < g->slices; i++) {
        contexts(g->slice[i], &one, 0, NULL, NULL);
        all += one;
    }
    long long others = g->whole ? 0 : state_of("used", g->index);
    if (others > 0) all += others;
    return all > g->memory ? g->memory : all;
}
