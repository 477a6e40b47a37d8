// y = x W^T with 8-bit weights: one scale per output, and one per row of x that is found on the fly.
//
// Sums of products of integers are exact, so a row's result depends on nothing but the row: neither
// on its neighbours nor on the order of the sums. A scale for the whole of x would break that.
#pragma once

#include <cmath>
#include <vector>

#include "vectors.hpp"

constexpr int PANEL = 32;       // outputs that are computed together: two registers
constexpr int INT8_TILE = 12;   // rows that share one reading of a panel
constexpr int QUAD = 4;         // products that one instruction adds up per output
constexpr int ZERO = 128;       // x is kept as an unsigned byte, 128 above its value

struct Int8Weights {
    int32_t inputs, outputs;
    const int8_t* weight;  // [ceil(outputs / PANEL)][ceil(inputs / QUAD)][PANEL][QUAD], zeros added
    const float* scale;    // [outputs, rounded up to PANEL]
    const int32_t* sums;   // [the same]: ZERO times the sum of an output's weights
    const void* bias;      // [outputs] in the storage format, or null
};

// One row as bytes and its scale. NaN or Inf in a row makes its scale NaN, hence all its results.
template <class T>
static float quantize_row(const T* x, uint8_t* out, int n, int padded) {
    v16 high{}, poison{};
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v = load(x + i), size = v < 0.0f ? -v : v;
        high = size > high ? size : high;
        poison += v * 0.0f;
    }
    float largest = 0, spoiled = sum(poison);
    for (int lane = 0; lane < 16; lane++) largest = std::fmax(largest, high[lane]);
    for (; i < n; i++) {
        largest = std::fmax(largest, std::fabs(get(x + i)));
        spoiled += get(x + i) * 0.0f;
    }
    float inverse = largest > 0 && spoiled == 0 ? 127.0f / largest : 0.0f;
    const v16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
    typedef uint8_t b16 __attribute__((vector_size(16)));
    for (i = 0; inverse > 0 && i + 16 <= n; i += 16) {
        v16 rounded = (load(x + i) * inverse + magic) - magic;
        b16 bytes = __builtin_convertvector(__builtin_convertvector(rounded, i16) + ZERO, b16);
        std::memcpy(out + i, &bytes, sizeof bytes);
    }
    for (; inverse > 0 && i < n; i++) out[i] = (uint8_t)(std::nearbyint(get(x + i) * inverse) + ZERO);
    for (; i < padded; i++) out[i] = ZERO;
    return spoiled == 0 ? largest / 127.0f : spoiled;
}

// Sums of products for M rows and one panel. x: [M][padded inputs].
template <int M>
static inline void multiply_panel(const uint8_t* x, const int8_t* panel, int quads,
                                  int32_t (*sums)[PANEL]) {
#if defined(__AVX512VNNI__)
    __m512i low[M], high[M];
    for (int m = 0; m < M; m++) low[m] = high[m] = _mm512_setzero_si512();
    for (int q = 0; q < quads; q++) {
        __m512i first = _mm512_loadu_si512(panel + (int64_t)q * PANEL * QUAD);
        __m512i second = _mm512_loadu_si512(panel + (int64_t)q * PANEL * QUAD + 64);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            int32_t four;
            std::memcpy(&four, x + ((int64_t)m * quads + q) * QUAD, sizeof four);
            __m512i row = _mm512_set1_epi32(four);
            low[m] = _mm512_dpbusd_epi32(low[m], row, first);
            high[m] = _mm512_dpbusd_epi32(high[m], row, second);
        }
    }
    for (int m = 0; m < M; m++) {
        _mm512_storeu_si512(sums[m], low[m]);
        _mm512_storeu_si512(sums[m] + 16, high[m]);
    }
#else
    for (int m = 0; m < M; m++)
        for (int j = 0; j < PANEL; j++) sums[m][j] = 0;
    for (int q = 0; q < quads; q++)
        for (int m = 0; m < M; m++)
            for (int j = 0; j < PANEL; j++)
                for (int k = 0; k < QUAD; k++)
                    sums[m][j] += (int32_t)x[((int64_t)m * quads + q) * QUAD + k] *
                                  (int32_t)panel[((int64_t)q * PANEL + j) * QUAD + k];
#endif
}

static inline void multiply_rows(int count, const uint8_t* x, const int8_t* panel, int quads,
                                 int32_t (*sums)[PANEL]) {
#define ROWS(M) case M: return multiply_panel<M>(x, panel, quads, sums);
    switch (count) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
#undef ROWS
}

// x: [rows, inputs]; y: [rows, outputs].
template <class T>
static void int8_linear(const Int8Weights& w, const T* x, T* y, int64_t rows) {
    const int quads = (w.inputs + QUAD - 1) / QUAD, padded = quads * QUAD;
    const int panels = (w.outputs + PANEL - 1) / PANEL;
    static thread_local std::vector<uint8_t> bytes;
    static thread_local std::vector<float> scales;
    bytes.resize((size_t)rows * padded);
    scales.resize((size_t)rows);
    uint8_t* const quantized = bytes.data();
    float* const row_scale = scales.data();
    const int64_t tiles = (rows + INT8_TILE - 1) / INT8_TILE;
    const T* bias = (const T*)w.bias;
#pragma omp parallel if (rows * w.inputs * w.outputs > WORTH_THREADS)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            row_scale[r] = quantize_row(x + r * w.inputs, quantized + r * padded, w.inputs, padded);
#pragma omp for schedule(static)
        for (int p = 0; p < panels; p++) {
            const int8_t* panel = w.weight + (int64_t)p * padded * PANEL;
            const int first = p * PANEL;
            const int width = w.outputs - first < PANEL ? w.outputs - first : PANEL;
            alignas(64) int32_t sums[INT8_TILE][PANEL];
            for (int64_t t = 0; t < tiles; t++) {
                // Tiles of nearly equal height: a lone last row would cost a tile of its own.
                const int64_t begin = rows * t / tiles, end = rows * (t + 1) / tiles;
                multiply_rows((int)(end - begin), quantized + begin * padded, panel, quads, sums);
                for (int64_t r = begin; r < end; r++) {
                    float values[PANEL];
                    for (int j = 0; j < PANEL; j++)
                        values[j] = (float)(sums[r - begin][j] - w.sums[first + j]) *
                                    (w.scale[first + j] * row_scale[r]);
                    T* out = y + r * w.outputs + first;
                    if (bias)
                        for (int j = 0; j < width; j++) values[j] += get(bias + first + j);
                    if (width == PANEL) {
                        store(out, load(values));
                        store(out + 16, load(values + 16));
                    } else {
                        for (int j = 0; j < width; j++) put(out + j, values[j]);
                    }
                }
            }
        }
    }
}
