// The entry points that Python calls through ctypes. `type`: 0 float32, 1 bfloat16. All tensors are
// contiguous unless a stride is given; nothing is allocated for the caller, nothing throws.
#include "attention.hpp"
#include "int8.hpp"
#include "lora.hpp"
#include "rows.hpp"

#define BY_TYPE(call)     \
    if (type == 0) {      \
        using T = float;  \
        call;             \
    } else {              \
        using T = bf16;   \
        call;             \
    }

extern "C" {

void polygraft_rms_norm(int type, const void* x, const void* w, void* out, int64_t rows, int32_t n,
                        float eps) {
    BY_TYPE(rms_norm((const T*)x, (const T*)w, (T*)out, rows, n, eps))
}

void polygraft_add_rms_norm(int type, void* x, const void* y, const void* w, void* out, int64_t rows,
                            int32_t n, float eps) {
    BY_TYPE(add_rms_norm((T*)x, (const T*)y, (const T*)w, (T*)out, rows, n, eps))
}

void polygraft_silu_mul(int type, const void* x, void* out, int64_t rows, int32_t n) {
    BY_TYPE(silu_mul((const T*)x, (T*)out, rows, n))
}

void polygraft_rotate_and_store(int type, const Heads* heads, void* qkv, const void* cosine,
                                const void* sine, const int64_t* cells, int64_t rows) {
    BY_TYPE(rotate_and_store(*heads, (T*)qkv, (const T*)cosine, (const T*)sine, cells, rows))
}

void polygraft_lora(int type, const LoraSite* site, const LoraPlan* plan, const void* x, void* y) {
    BY_TYPE(lora(*site, *plan, (const T*)x, (T*)y))
}

void polygraft_int8_linear(int type, const Int8Weights* w, const void* x, void* y, int64_t rows) {
    BY_TYPE(int8_linear(*w, (const T*)x, (T*)y, rows))
}

void polygraft_attention(int type, const AttentionLayer* layer, const AttentionPlan* plan,
                         const void* q, int64_t q_stride, void* out) {
    BY_TYPE(attention(*layer, *plan, (const T*)q, q_stride, (T*)out))
}
}
