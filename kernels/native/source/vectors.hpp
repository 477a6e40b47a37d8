// Sixteen floats at a time, and the two storage formats. GCC and Clang lower these vectors to whatever
// the machine has: one AVX-512 register, two AVX registers, four NEON registers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Multiplications from which a second thread pays for being woken, some ten microseconds' worth.
constexpr int64_t WORTH_THREADS = 200000;

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));

struct bf16 {
    uint16_t bits;
};

static inline v16 splat(float x) { return v16{} + x; }

static inline v16 load(const float* p) {
    v16 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline v16 load(const bf16* p) {
#if defined(__AVX512F__)
    // What the compiler makes of the lines below takes the vector apart and joins it again.
    __m512i lanes = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return (v16)_mm512_slli_epi32(lanes, 16);
#endif
    h16 h;
    std::memcpy(&h, p, sizeof h);
    u16 wide = __builtin_convertvector(h, u16) << 16;
    return (v16)wide;
}

static inline void store(float* p, v16 v) { std::memcpy(p, &v, sizeof v); }

// Round to nearest even; a NaN stays a NaN.
static inline void store(bf16* p, v16 v) {
    u16 u = (u16)v;
    u16 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    u16 nan = (u >> 16) | 0x40;
    i16 is_nan = v != v;
    u16 mask = (u16)is_nan;
    h16 h = __builtin_convertvector((nan & mask) | (rounded & ~mask), h16);
    std::memcpy(p, &h, sizeof h);
}

static inline float get(const float* p) { return *p; }

static inline float get(const bf16* p) {
    uint32_t u = (uint32_t)p->bits << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

static inline void put(float* p, float x) { *p = x; }

static inline void put(bf16* p, float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    p->bits = x != x ? (uint16_t)((u >> 16) | 0x40)
                     : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// x as it would be after a trip through storage.
static inline v16 as_stored(v16 x, const float*) { return x; }
static inline v16 as_stored(v16 x, const bf16*) {
    bf16 b[16];
    store(b, x);
    return load(b);
}
static inline float as_stored(float x, const float*) { return x; }
static inline float as_stored(float x, const bf16*) {
    bf16 b;
    put(&b, x);
    return get(&b);
}

// Words [at, at + 16) of sixteen rows, turned around: out[w * stride + r] = rows[r][at + w].
static inline void transpose16(const uint32_t* const* rows, int at, uint32_t* out, int stride) {
#if defined(__AVX512F__)
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(rows[i] + at);
    for (int i = 0; i < 16; i += 2) {  // pairs of rows
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // a[4g + c], lane l: rows 4g to 4g + 3 of word 4l + c
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        const __m512i even0 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
        const __m512i even1 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        const __m512i odd0 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        const __m512i odd1 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(out + (c)*stride, _mm512_shuffle_i32x4(even0, even1, 0x88));
        _mm512_storeu_si512(out + (c + 4) * stride, _mm512_shuffle_i32x4(odd0, odd1, 0x88));
        _mm512_storeu_si512(out + (c + 8) * stride, _mm512_shuffle_i32x4(even0, even1, 0xdd));
        _mm512_storeu_si512(out + (c + 12) * stride, _mm512_shuffle_i32x4(odd0, odd1, 0xdd));
    }
#else
    for (int w = 0; w < 16; w++)
        for (int r = 0; r < 16; r++) out[w * stride + r] = rows[r][at + w];
#endif
}

static inline float sum(v16 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float total = 0;
    for (int i = 0; i < 16; i++) total += v[i];
    return total;
#endif
}

// The largest lane; NaN if there is one.
static inline float largest(v16 v) {
#if defined(__AVX512F__)
    if (_mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q)) return NAN;
    return _mm512_reduce_max_ps((__m512)v);
#else
    float top = v[0];
    for (int i = 1; i < 16; i++) top = v[i] > top || v[i] != v[i] ? v[i] : top;
    return top;
#endif
}

// exp for each lane. Range reduction by ln 2 in two parts, then the polynomial of Cephes' expf
// (Moshier, netlib.org/cephes): relative error below 2e-7. A NaN stays a NaN; below -87 it is 0.
static inline v16 exp16(v16 x) {
    const v16 lowest = splat(-87.0f), highest = splat(88.0f);
    v16 c = x < lowest ? lowest : x;
    c = c > highest ? highest : c;
    v16 scaled = c * 1.44269504088896341f;
    v16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    v16 n = (scaled + magic) - magic;
    v16 r = c - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    v16 y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    i16 power = (__builtin_convertvector(n, i16) + 127) << 23;
    v16 result = y * (v16)power;
    return x < lowest ? splat(0.0f) : result;
}

// sum_i a[i] * b[i] in float32. Four running sums, so that the additions overlap.
template <class A, class B>
static inline float dot(const A* a, const B* b, int n) {
    v16 s0{}, s1{}, s2{}, s3{};
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + 16) * load(b + i + 16);
        s2 += load(a + i + 32) * load(b + i + 32);
        s3 += load(a + i + 48) * load(b + i + 48);
    }
    for (; i + 16 <= n; i += 16) s0 += load(a + i) * load(b + i);
    float total = sum((s0 + s1) + (s2 + s3));
    for (; i < n; i++) total += get(a + i) * get(b + i);
    return total;
}

#if defined(__AVX512BF16__)
// Products of bfloat16 are exact in float32; the instruction adds two of them per lane.
static inline float dot(const bf16* a, const bf16* b, int n) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    int i = 0;
    for (; i + 64 <= n; i += 64) {
        s0 = _mm512_dpbf16_ps(s0, (__m512bh)_mm512_loadu_si512(a + i),
                              (__m512bh)_mm512_loadu_si512(b + i));
        s1 = _mm512_dpbf16_ps(s1, (__m512bh)_mm512_loadu_si512(a + i + 32),
                              (__m512bh)_mm512_loadu_si512(b + i + 32));
    }
    float total = _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
    for (; i < n; i++) total += get(a + i) * get(b + i);
    return total;
}
#endif

// Dot products with four vectors at once: their lanes are summed together.
template <class T>
static inline void dot4(const T* q, const T* const* keys, int n, float scale, float* out) {
#if defined(__AVX512BF16__)
    if (sizeof(T) == 2 && n % 32 == 0) {
        __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
        for (int i = 0; i < n; i += 32) {
            const __m512bh w = (__m512bh)_mm512_loadu_si512(q + i);
            a = _mm512_dpbf16_ps(a, w, (__m512bh)_mm512_loadu_si512(keys[0] + i));
            b = _mm512_dpbf16_ps(b, w, (__m512bh)_mm512_loadu_si512(keys[1] + i));
            c = _mm512_dpbf16_ps(c, w, (__m512bh)_mm512_loadu_si512(keys[2] + i));
            d = _mm512_dpbf16_ps(d, w, (__m512bh)_mm512_loadu_si512(keys[3] + i));
        }
        const __m512d ab = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const __m512d cd = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const __m512 sums = _mm512_add_ps((__m512)_mm512_unpacklo_pd(ab, cd),
                                          (__m512)_mm512_unpackhi_pd(ab, cd));
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums),
                                          _mm512_extractf32x8_ps(sums, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        _mm_storeu_ps(out, _mm_mul_ps(four, _mm_set1_ps(scale)));
        return;
    }
#endif
    for (int j = 0; j < 4; j++) out[j] = scale * dot(q, keys[j], n);
}

// y[i] += p * x[i]
template <class X>
static inline void add_scaled(float* y, float p, const X* x, int n) {
    int i = 0;
    v16 w = splat(p);
    for (; i + 16 <= n; i += 16) store(y + i, load(y + i) + w * load(x + i));
    for (; i < n; i++) y[i] += p * get(x + i);
}

template <class X>
static inline void widen(float* y, const X* x, float scale, int n) {
    int i = 0;
    for (; i + 16 <= n; i += 16) store(y + i, load(x + i) * scale);
    for (; i < n; i++) y[i] = get(x + i) * scale;
}
