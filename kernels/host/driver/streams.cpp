// Streams and events of the emulated driver. Streams do their work at once, so there is nothing to wait for.
#include <cstdlib>

extern "C" {
int cuCtxSynchronize() {
    return 0;
}
int cuStreamCreate(void** stream, unsigned) {
    *stream = malloc(1);
    return 0;
}
int cuStreamCreateWithPriority(void** stream, unsigned, int) {
    *stream = malloc(1);
    return 0;
}
int cuStreamDestroy_v2(void* stream) {
    free(stream);
    return 0;
}
int cuStreamSynchronize(void*) {
    return 0;
}
int cuStreamWaitEvent(void*, void*, unsigned) {
    return 0;
}
int cuStreamIsCapturing(void*, int* status) {
    *status = 0;
    return 0;
}
int cuEventCreate(void** event, unsigned) {
    *event = malloc(1);
    return 0;
}
int cuEventDestroy_v2(void* event) {
    free(event);
    return 0;
}
int cuEventRecord(void*, void*) {
    return 0;
}
int cuEventQuery(void*) {
    return 0;
}
int cuEventSynchronize(void*) {
    return 0;
}
}
