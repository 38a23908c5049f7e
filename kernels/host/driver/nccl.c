/* NCCL for the emulated driver: messages are files in memory, written and read at once. Ranks are processes of one machine. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

enum { SUCCESS = 0, SYSTEM_ERROR = 2, REMOTE_ERROR = 6, LONGEST_WAIT = 60 /* seconds */ };

struct id {
    char name[128];
};

struct communicator {
    struct id id;
    int rank, size;
    unsigned *sent, *received; /* messages so far, by peer */
};

struct message {
    struct communicator *communicator;
    void *data, *stream;
    size_t bytes;
    int peer, sends;
};

/* The emulated driver's: the next operation of a stream, which reads or writes these bytes. */
void emulated_driver_operation(void *stream, const char *what, void *at, size_t bytes, int writes);

static __thread struct message group[4096];
static __thread int messages, depth;

static void path(char *text, size_t room, const struct communicator *c, int from, int to, unsigned number) {
    snprintf(text, room, "%s/%d-%d-%u", c->id.name, from, to, number);
}

static int put(const struct message *m) {
    char name[200], part[210];
    struct communicator *c = m->communicator;
    path(name, sizeof name, c, c->rank, m->peer, c->sent[m->peer]++);
    snprintf(part, sizeof part, "%s.part", name);
    FILE *file = fopen(part, "wb");
    if (!file) return SYSTEM_ERROR;
    const int whole = fwrite(m->data, 1, m->bytes, file) == m->bytes;
    return !fclose(file) && whole && !rename(part, name) ? SUCCESS : SYSTEM_ERROR;
}

static int get(const struct message *m) {
    char name[200];
    struct communicator *c = m->communicator;
    struct stat state;
    path(name, sizeof name, c, m->peer, c->rank, c->received[m->peer]++);
    for (long waited = 0; stat(name, &state); waited += 200) {
        if (waited > LONGEST_WAIT * 1000000L) return REMOTE_ERROR;
        usleep(200);
    }
    if ((size_t)state.st_size != m->bytes) {
        fprintf(stderr, "emulated NCCL: rank %d wants %zu bytes of rank %d, which sent %lld\n", c->rank, m->bytes, m->peer,
                (long long)state.st_size);
        return REMOTE_ERROR;
    }
    FILE *file = fopen(name, "rb");
    const int whole = file && fread(m->data, 1, m->bytes, file) == m->bytes;
    if (file) fclose(file);
    unlink(name);
    return whole ? SUCCESS : SYSTEM_ERROR;
}

int ncclGetVersion(int *version) {
    const char *wish = getenv("EMULATED_NCCL");
    *version = wish ? atoi(wish) : 22304;
    return SUCCESS;
}
int ncclGetUniqueId(struct id *id) {
    memset(id, 0, sizeof *id);
    strcpy(id->name, "/dev/shm/emulated-nccl-XXXXXX");
    return mkdtemp(id->name) ? SUCCESS : SYSTEM_ERROR;
}
const char *ncclGetErrorString(int code) {
    return code == REMOTE_ERROR ? "remote process exited or there was a network error" : "unhandled system error";
}
const char *ncclGetLastError(void *communicator) {
    (void)communicator;
    return "";
}
int ncclCommInitRankConfig(struct communicator **out, int size, struct id id, int rank, void *config) {
    (void)config;
    struct communicator *c = calloc(1, sizeof *c);
    c->id = id, c->rank = rank, c->size = size;
    c->sent = calloc((size_t)size, sizeof(unsigned)), c->received = calloc((size_t)size, sizeof(unsigned));
    *out = c;
    return SUCCESS;
}
int ncclCommGetAsyncError(struct communicator *c, int *code) {
    (void)c;
    *code = SUCCESS;
    return SUCCESS;
}
int ncclCommFinalize(struct communicator *c) {
    (void)c;
    return SUCCESS;
}
int ncclCommDestroy(struct communicator *c) {
    rmdir(c->id.name); /* the last rank's works */
    free(c->sent), free(c->received), free(c);
    return SUCCESS;
}
int ncclCommAbort(struct communicator *c) {
    return ncclCommDestroy(c);
}
int ncclGroupStart(void) {
    ++depth;
    return SUCCESS;
}
/* EMULATED_QUEUES: the GPU has one queue for all streams, in which an exchange stays until its peers have come. */
static pthread_mutex_t queue = PTHREAD_MUTEX_INITIALIZER;

int ncclGroupEnd(void) {
    if (--depth) return SUCCESS;
    int code = SUCCESS;
    const int queues = getenv("EMULATED_QUEUES") != NULL;
    if (queues) pthread_mutex_lock(&queue);
    for (int i = 0; i < messages; ++i) {
        const struct message *m = &group[i];
        emulated_driver_operation(m->stream, m->sends ? "a send of NCCL" : "a receive of NCCL", m->data, m->bytes, !m->sends);
    }
    for (int i = 0; i < messages && !code; ++i) {
        if (group[i].sends) code = put(&group[i]);
    }
    for (int i = 0; i < messages && !code; ++i) {
        if (!group[i].sends) code = get(&group[i]);
    }
    if (queues) pthread_mutex_unlock(&queue);
    messages = 0;
    return code;
}
static int add(struct communicator *c, void *data, size_t bytes, int peer, int sends, void *stream) {
    group[messages++] = (struct message){c, data, stream, bytes, peer, sends};
    if (depth) return SUCCESS;
    ++depth;
    return ncclGroupEnd();
}
int ncclSend(const void *data, size_t bytes, int type, int peer, struct communicator *c, void *stream) {
    (void)type; /* all is bytes */
    return add(c, (void *)data, bytes, peer, 1, stream);
}
int ncclRecv(void *data, size_t bytes, int type, int peer, struct communicator *c, void *stream) {
    (void)type;
    return add(c, data, bytes, peer, 0, stream);
}
int ncclBroadcast(const void *from, void *to, size_t bytes, int type, int root, struct communicator *c, void *stream) {
    if (c->rank != root) return ncclRecv(to, bytes, type, root, c, stream);
    int code = ncclGroupStart();
    for (int peer = 0; peer < c->size; ++peer) {
        if (peer != root) code |= ncclSend(from, bytes, type, peer, c, stream);
    }
    return code | ncclGroupEnd();
}
