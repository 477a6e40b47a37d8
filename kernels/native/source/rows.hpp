// What a decoder layer does to each row between its matrix products.
#pragma once

#include <cmath>

#include "vectors.hpp"

// out = w * (x / sqrt(mean(x^2) + eps)), Zhang and Sennrich, arXiv 1910.07467. The normalised row is
// rounded to the storage format before it is multiplied, as transformers' RMSNorm does.
template <class T>
static inline void rms_norm_row(const T* x, const T* w, T* out, int n, float eps) {
    v16 s{};
    float tail = 0;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v = load(x + i);
        s += v * v;
    }
    for (; i < n; i++) tail += get(x + i) * get(x + i);
    float scale = 1.0f / std::sqrt((sum(s) + tail) / (float)n + eps);
    for (i = 0; i + 16 <= n; i += 16)
        store(out + i, as_stored(load(x + i) * scale, x) * load(w + i));
    for (; i < n; i++) put(out + i, as_stored(get(x + i) * scale, x) * get(w + i));
}

template <class T>
static void rms_norm(const T* x, const T* w, T* out, int64_t rows, int n, float eps) {
#pragma omp parallel for schedule(static) if (rows * n > 16384)
    for (int64_t r = 0; r < rows; r++) rms_norm_row(x + r * n, w, out + r * n, n, eps);
}

// x += y; out = rms_norm(x)
template <class T>
static void add_rms_norm(T* x, const T* y, const T* w, T* out, int64_t rows, int n, float eps) {
#pragma omp parallel for schedule(static) if (rows * n > 16384)
    for (int64_t r = 0; r < rows; r++) {
        T* row = x + r * n;
        const T* add = y + r * n;
        int i = 0;
        for (; i + 16 <= n; i += 16) store(row + i, load(row + i) + load(add + i));
        for (; i < n; i++) put(row + i, get(row + i) + get(add + i));
        rms_norm_row(row, w, out + r * n, n, eps);
    }
}

// out = silu(gate) * up, for rows [gate | up].
template <class T>
static void silu_mul(const T* x, T* out, int64_t rows, int n) {
#pragma omp parallel for schedule(static) if (rows * n > 8192)
    for (int64_t r = 0; r < rows; r++) {
        const T *gate = x + r * 2 * n, *up = gate + n;
        T* y = out + r * n;
        int i = 0;
        for (; i + 16 <= n; i += 16) {
            v16 g = load(gate + i);
            v16 silu = g / (1.0f + exp16(-g));
            store(y + i, as_stored(silu, x) * load(up + i));
        }
        for (; i < n; i++) {
            float g = get(gate + i);
            put(y + i, as_stored(g / (1.0f + std::exp(-g)), x) * get(up + i));
        }
    }
}

// One head, in place: rotary position encoding of its first `rotary` elements, halves paired
// (Su et al., arXiv 2104.09864, in transformers' rotate_half form).
template <class T>
static inline void rotate(T* head, const T* cosine, const T* sine, int rotary) {
    int half = rotary / 2, i = 0;
    for (; i + 16 <= half; i += 16) {
        v16 a = load(head + i), b = load(head + half + i);
        store(head + i, a * load(cosine + i) - b * load(sine + i));
        store(head + half + i, b * load(cosine + half + i) + a * load(sine + half + i));
    }
    for (; i < half; i++) {
        float a = get(head + i), b = get(head + half + i);
        put(head + i, a * get(cosine + i) - b * get(sine + i));
        put(head + half + i, b * get(cosine + half + i) + a * get(sine + half + i));
    }
}

struct Heads {
    int32_t heads, kv_heads, dim, rotary;
    int64_t cells;       // of the cache
    void *keys, *values;  // [kv_heads, cells, dim]
    const void *q_norm, *k_norm;  // [dim] or null
    float eps;
};

// Rows [q | k | v]: normalise heads where the model does, rotate q and k in place, and put k and v
// into the cache.
template <class T>
static void rotate_and_store(const Heads& h, T* qkv, const T* cosine, const T* sine,
                             const int64_t* cells, int64_t rows) {
    const int total = h.heads + h.kv_heads;
    const int64_t width = (int64_t)(total + h.kv_heads) * h.dim;
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int64_t r = 0; r < rows; r++) {
        T* row = qkv + r * width;
        for (int i = 0; i < total; i++) {
            T* head = row + (int64_t)i * h.dim;
            const T* norm = (const T*)(i < h.heads ? h.q_norm : h.k_norm);
            if (norm) rms_norm_row(head, norm, head, h.dim, h.eps);
            if (h.rotary) rotate(head, cosine + r * h.rotary, sine + r * h.rotary, h.rotary);
        }
        for (int i = 0; i < h.kv_heads; i++) {
            int64_t place = ((int64_t)i * h.cells + cells[r]) * h.dim;
            std::memcpy((T*)h.keys + place, row + (int64_t)(h.heads + i) * h.dim, h.dim * sizeof(T));
            std::memcpy((T*)h.values + place, row + (int64_t)(total + i) * h.dim, h.dim * sizeof(T));
        }
    }
}
