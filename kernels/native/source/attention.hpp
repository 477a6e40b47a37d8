// Causal attention over the paged cache for decodes and prefill chunks alike. One pass over the keys
// with a running maximum (Milakov and Gimelshein, arXiv 1805.02867), everything in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.hpp"

constexpr int KEY_TILE = 64;
constexpr int WIDE = 8;  // query rows from which keys are transposed instead of dotted one by one

struct AttentionTile {
    int32_t sequence, row, count, length;  // row + i sees `length + i` keys
};

struct AttentionPlan {
    int32_t num_tiles, table_width, block_size;
    const AttentionTile* tiles;
    const int32_t* tables;  // [sequences, table_width] block numbers
};

struct AttentionLayer {
    int32_t heads, kv_heads, dim, value_dim;
    int64_t cells;
    const void *keys, *values;  // [kv_heads, cells, dim], [kv_heads, cells, value_dim]
    float scaling;
    int32_t window;      // key j is seen from position i iff j > i - window; 0: all
    float softcap;       // scores become softcap * tanh(scores / softcap); 0: as they are
    const float* sinks;  // [heads] logits that take part in the softmax and carry no value, or null
};

struct Scratch {
    std::vector<float> q, keys, scores, values, out, top, total;
    std::vector<const void*> rows;  // the queries
    void fit(int m, int dim, int value_dim) {
        q.resize((size_t)m * dim);
        keys.resize((size_t)KEY_TILE * dim);
        values.resize((size_t)KEY_TILE * value_dim);
        scores.resize((size_t)m * KEY_TILE);
        out.resize((size_t)m * value_dim);
        top.resize(m);
        rows.resize(m);
        total.resize(m);
    }
};

// Asks for one key or value ahead of its use. Blocks lie anywhere in the cache, so the processor's own
// prefetching sees no pattern longer than a block, and most of a step's attention was waiting.
template <class T>
static inline void fetch(const T* p, int dim) {
    for (int d = 0; d < dim; d += 64 / (int)sizeof(T)) __builtin_prefetch(p + d);
}

// Cells of up to KEY_TILE positions from `first` on, their keys and values asked for.
template <class T>
static inline int find_cells(int64_t* cell, int first, int end, const int32_t* table, int block_size,
                             const T* keys, int dim, const T* values, int vdim) {
    const int n = std::max(0, std::min(KEY_TILE, end - first));
    int block = first / block_size, place = first % block_size;
    for (int j = 0; j < n; j++) {
        cell[j] = (int64_t)table[block] * block_size + place;
        if (++place == block_size) place = 0, block++;
    }
    for (int j = 0; j < n; j++) fetch(keys + cell[j] * dim, dim);
    for (int j = 0; j < n; j++) fetch(values + cell[j] * vdim, vdim);
    return n;
}

// The tile's keys turned around into s.keys: word w of key j at [w][j]. `words`: of 32 bits each.
static inline void transpose_keys(Scratch& s, const uint32_t* const* keys, int words) {
    uint32_t* out = (uint32_t*)s.keys.data();
    int w = 0;
    for (; w + 16 <= words; w += 16)
        for (int j = 0; j < KEY_TILE; j += 16)
            transpose16(keys + j, w, out + w * KEY_TILE + j, KEY_TILE);
    for (; w < words; w++)
        for (int j = 0; j < KEY_TILE; j++) out[w * KEY_TILE + j] = keys[j][w];
}

#if defined(__AVX512BF16__)
// As below, for a tile of pairs of bfloat16.
template <int R>
static inline void score_pairs(Scratch& s, const bf16* const* queries, int row, int dim, float scale) {
    __m512 a[R][4];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 4; c++) a[r][c] = _mm512_setzero_ps();
    const float* k = s.keys.data();
    for (int d = 0; d < dim; d += 2, k += KEY_TILE) {
        const __m512bh k0 = (__m512bh)_mm512_loadu_ps(k), k1 = (__m512bh)_mm512_loadu_ps(k + 16);
        const __m512bh k2 = (__m512bh)_mm512_loadu_ps(k + 32), k3 = (__m512bh)_mm512_loadu_ps(k + 48);
        for (int r = 0; r < R; r++) {
            int32_t pair;
            std::memcpy(&pair, queries[row + r] + d, sizeof pair);
            const __m512bh w = (__m512bh)_mm512_set1_epi32(pair);
            a[r][0] = _mm512_dpbf16_ps(a[r][0], w, k0);
            a[r][1] = _mm512_dpbf16_ps(a[r][1], w, k1);
            a[r][2] = _mm512_dpbf16_ps(a[r][2], w, k2);
            a[r][3] = _mm512_dpbf16_ps(a[r][3], w, k3);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 4; c++)
            store(&s.scores[(size_t)(row + r) * KEY_TILE + c * 16], (v16)a[r][c] * scale);
}
#endif

// Scores of R rows against a tile of transposed keys; the rows share each reading of a key.
template <int R>
static inline void score_rows(Scratch& s, int row, int dim) {
    v16 a[R][4] = {};
    const float* k = s.keys.data();
    const float* q = &s.q[(size_t)row * dim];
    for (int d = 0; d < dim; d++, k += KEY_TILE) {
        const v16 k0 = load(k), k1 = load(k + 16), k2 = load(k + 32), k3 = load(k + 48);
        for (int r = 0; r < R; r++) {
            const v16 w = splat(q[(size_t)r * dim + d]);
            a[r][0] += w * k0;
            a[r][1] += w * k1;
            a[r][2] += w * k2;
            a[r][3] += w * k3;
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 4; c++) store(&s.scores[(size_t)(row + r) * KEY_TILE + c * 16], a[r][c]);
}

// Scores of all rows of a wide tile against keys that are float32.
static void score_wide(Scratch& s, const float* const* keys, const float* const*, int m, int dim,
                       float) {
    transpose_keys(s, (const uint32_t* const*)keys, dim);
    int i = 0;
    for (; i + 4 <= m; i += 4) score_rows<4>(s, i, dim);
    for (; i < m; i++) score_rows<1>(s, i, dim);
}

// The same for bfloat16: products of pairs where the processor has them.
static void score_wide(Scratch& s, const bf16* const* keys, const bf16* const* queries, int m,
                       int dim, float scale) {
    int i = 0;
#if defined(__AVX512BF16__)
    if (dim % 2 == 0) {
        transpose_keys(s, (const uint32_t* const*)keys, dim / 2);
        for (; i + 4 <= m; i += 4) score_pairs<4>(s, queries, i, dim, scale);
        for (; i < m; i++) score_pairs<1>(s, queries, i, dim, scale);
        return;
    }
#endif
    for (int j = 0; j < KEY_TILE; j++)
        for (int d = 0; d < dim; d++) s.keys[(size_t)d * KEY_TILE + j] = get(keys[j] + d);
    for (; i + 4 <= m; i += 4) score_rows<4>(s, i, dim);
    for (; i < m; i++) score_rows<1>(s, i, dim);
}

// out[row + r] += weights[row + r] . values, for n keys of the tile; the rows share each reading of
// a value. `at(j)` is where value j stands. Hidden keys have weight 0.
template <int R, class At>
static inline void value_rows(Scratch& s, int row, int n, int dim, At at) {
    const float* p = &s.scores[(size_t)row * KEY_TILE];
    float* out = &s.out[(size_t)row * dim];
    int d = 0;
    for (; d + 64 <= dim; d += 64) {
        v16 a[R][4];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < 4; c++) a[r][c] = load(out + (size_t)r * dim + d + c * 16);
        for (int j = 0; j < n; j++) {
            const auto* v = at(j) + d;
            const v16 v0 = load(v), v1 = load(v + 16), v2 = load(v + 32), v3 = load(v + 48);
            for (int r = 0; r < R; r++) {
                const v16 w = splat(p[(size_t)r * KEY_TILE + j]);
                a[r][0] += w * v0;
                a[r][1] += w * v1;
                a[r][2] += w * v2;
                a[r][3] += w * v3;
            }
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < 4; c++) store(out + (size_t)r * dim + d + c * 16, a[r][c]);
    }
    for (; d < dim; d++)
        for (int r = 0; r < R; r++)
            for (int j = 0; j < n; j++)
                out[(size_t)r * dim + d] += p[(size_t)r * KEY_TILE + j] * get(at(j) + d);
}

template <class At>
static inline void all_value_rows(Scratch& s, int m, int n, int dim, At at) {
    int i = 0;
    for (; i + 4 <= m; i += 4) value_rows<4>(s, i, n, dim, at);
    if (i + 3 == m) {
        value_rows<3>(s, i, n, dim, at);
        return;
    }
    for (; i < m; i++) value_rows<1>(s, i, n, dim, at);
}

// Turns the scores of row i against keys [lo, hi) of a tile into weights under the running maximum.
static inline void soften(Scratch& s, int i, int lo, int hi, float softcap, int value_dim) {
    float* p = &s.scores[(size_t)i * KEY_TILE];
    if (softcap != 0.0f)
        for (int j = lo; j < hi; j++) p[j] = softcap * std::tanh(p[j] / softcap);
    for (int j = 0; j < lo; j++) p[j] = -INFINITY;
    for (int j = std::max(lo, hi); j < KEY_TILE; j++) p[j] = -INFINITY;
    v16 tops = splat(s.top[i]);
    for (int j = 0; j < KEY_TILE; j += 16) {
        const v16 score = load(p + j);
        tops = (score > tops) | (score != score) ? score : tops;  // a NaN stays
    }
    const float top = largest(tops);
    if (top == -INFINITY) {  // nothing seen yet: no weights, and no -inf - -inf
        std::fill(p, p + KEY_TILE, 0.0f);
        return;
    }
    v16 added{};
    for (int j = 0; j < KEY_TILE; j += 16) {
        const v16 e = exp16(load(p + j) - top);
        store(p + j, e);
        added += e;
    }
    const float keep = s.top[i] == -INFINITY ? 0.0f : std::exp(s.top[i] - top);
    s.top[i] = top;
    s.total[i] = s.total[i] * keep + sum(added);
    if (keep != 1.0f) {
        float* out = &s.out[(size_t)i * value_dim];
        for (int d = 0; d < value_dim; d++) out[d] *= keep;
    }
}

template <class T>
static void attention_tile(const AttentionLayer& layer, const AttentionPlan& plan,
                           const AttentionTile& tile, int kv, const T* q, int64_t q_stride, T* out,
                           Scratch& s) {
    const int group = layer.heads / layer.kv_heads, m = tile.count * group;
    const int dim = layer.dim, vdim = layer.value_dim;
    const bool wide = m >= WIDE;
    s.fit(m, dim, vdim);
    const auto query = [&](int i) {
        return q + (int64_t)(tile.row + i / group) * q_stride +
               (int64_t)(kv * group + i % group) * dim;
    };
    const T** rows = (const T**)s.rows.data();
    for (int i = 0; i < m; i++) {  // row i: query i / group, head i % group
        const int head = kv * group + i % group;
        rows[i] = query(i);
        if (wide) widen(&s.q[(size_t)i * dim], query(i), layer.scaling, dim);
        s.top[i] = layer.sinks ? layer.sinks[head] : -INFINITY;
        s.total[i] = layer.sinks ? 1.0f : 0.0f;
    }
    std::fill(s.out.begin(), s.out.begin() + (size_t)m * vdim, 0.0f);
    const int32_t* table = plan.tables + (int64_t)tile.sequence * plan.table_width;
    const T* keys = (const T*)layer.keys + (int64_t)kv * layer.cells * dim;
    const T* values = (const T*)layer.values + (int64_t)kv * layer.cells * vdim;
    const int longest = tile.length + tile.count - 1;
    const int first = layer.window ? std::max(0, tile.length - layer.window) : 0;
    int64_t cells[2][KEY_TILE];
    int64_t *cell = cells[0], *next = cells[1];
    const auto look_ahead = [&](int64_t* to, int from) {
        return find_cells(to, from, longest, table, plan.block_size, keys, dim, values, vdim);
    };
    int ahead = look_ahead(next, first);
    for (int k0 = first; k0 < longest; k0 += KEY_TILE) {
        const int n = ahead;
        std::swap(cell, next);
        ahead = look_ahead(next, k0 + KEY_TILE);
        if (wide) {
            const T* tile_keys[KEY_TILE];
            for (int j = 0; j < KEY_TILE; j++) tile_keys[j] = keys + cell[std::min(j, n - 1)] * dim;
            score_wide(s, tile_keys, rows, m, dim, layer.scaling);
            for (int j = 0; j < n; j++)
                widen(&s.values[(size_t)j * vdim], values + cell[j] * vdim, 1.0f, vdim);
        } else {
            for (int j = 0; j < n; j += 4) {
                const T* four[4];
                for (int c = 0; c < 4; c++) four[c] = keys + cell[std::min(j + c, n - 1)] * dim;
                for (int i = 0; i < m; i++)
                    dot4(rows[i], four, dim, layer.scaling, &s.scores[(size_t)i * KEY_TILE + j]);
            }
        }
        for (int i = 0; i < m; i++) {
            const int length = tile.length + i / group;
            const int lo = layer.window ? std::max(0, length - layer.window - k0) : 0;
            soften(s, i, std::min(lo, n), std::min(n, length - k0), layer.softcap, vdim);
        }
        if (wide)
            all_value_rows(s, m, n, vdim, [&](int j) { return &s.values[(size_t)j * vdim]; });
        else
            all_value_rows(s, m, n, vdim, [&](int j) { return values + cell[j] * vdim; });
    }
    for (int i = 0; i < m; i++) {
        T* to = out + ((int64_t)(tile.row + i / group) * layer.heads + kv * group + i % group) * vdim;
        const float scale = 1.0f / s.total[i], *acc = &s.out[(size_t)i * vdim];
        int d = 0;
        for (; d + 16 <= vdim; d += 16) store(to + d, load(acc + d) * scale);
        for (; d < vdim; d++) put(to + d, acc[d] * scale);
    }
}

template <class T>
static void attention(const AttentionLayer& layer, const AttentionPlan& plan, const T* q,
                      int64_t q_stride, T* out) {
    const int tasks = plan.num_tiles * layer.kv_heads;
    int64_t work = 0;  // multiplications, about
    for (int i = 0; i < plan.num_tiles; i++) {
        const int64_t seen = plan.tiles[i].length;
        const int64_t keys = layer.window ? std::min<int64_t>(seen, layer.window) : seen;
        work += plan.tiles[i].count * keys * layer.heads * (layer.dim + layer.value_dim);
    }
#pragma omp parallel if (tasks > 1 && work > WORTH_THREADS)
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < tasks; task++)
            attention_tile(layer, plan, plan.tiles[task / layer.kv_heads], task % layer.kv_heads, q,
                           q_stride, out, scratch);
    }
}
