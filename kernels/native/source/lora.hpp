// The low-rank updates of a mixed batch, read straight from the rank-row pool:
//     y[row, slice z] += sum_r weight * scale[r, z] * (x[row] . A[r, z]) * B^T[r, slice z]
// Rows whose scale is 0 (modules an adapter does not have, padding of its rank) are never read.
#pragma once

#include "vectors.hpp"

constexpr int LORA_TILE = 8;         // rows that share one reading of A and B
constexpr int LORA_MAX_ROWS = 1024;  // rank rows of one request

struct LoraPart {
    int32_t row0, rows;
    float weight;
};

struct LoraTile {
    int32_t row, count, part_begin, part_end;
};

struct LoraPlan {
    int32_t num_tiles;
    const LoraTile* tiles;
    const LoraPart* parts;
};

struct LoraSite {
    int32_t in, out, slices;
    const int32_t* bounds;  // [slices + 1]
    const void *a, *bt;     // [P, slices, in], [P, out]
    const float* scale;     // [P, slices]
};

template <class T>
static void lora_tile(const LoraSite& site, const LoraPlan& plan, const LoraTile& tile, int z,
                      const T* x, T* y) {
    float h[LORA_MAX_ROWS][LORA_TILE];
    int32_t pool_row[LORA_MAX_ROWS];
    int used = 0;
    for (int p = tile.part_begin; p < tile.part_end; p++) {
        const LoraPart& part = plan.parts[p];
        for (int r = part.row0; r < part.row0 + part.rows; r++) {
            float scale = site.scale[(int64_t)r * site.slices + z] * part.weight;
            if (scale == 0.0f) continue;
            const T* a = (const T*)site.a + ((int64_t)r * site.slices + z) * site.in;
            for (int t = 0; t < tile.count; t++)
                h[used][t] = scale * dot(x + (int64_t)(tile.row + t) * site.in, a, site.in);
            pool_row[used++] = r;
        }
    }
    const T* bt = (const T*)site.bt;
    int c = site.bounds[z], end = site.bounds[z + 1];
    for (; c + 64 <= end; c += 64) {
        for (int t = 0; t < tile.count; t++) {
            v16 s0{}, s1{}, s2{}, s3{};
            for (int r = 0; r < used; r++) {
                const T* b = bt + (int64_t)pool_row[r] * site.out + c;
                v16 w = splat(h[r][t]);
                s0 += w * load(b);
                s1 += w * load(b + 16);
                s2 += w * load(b + 32);
                s3 += w * load(b + 48);
            }
            T* to = y + (int64_t)(tile.row + t) * site.out + c;
            store(to, load(to) + s0);
            store(to + 16, load(to + 16) + s1);
            store(to + 32, load(to + 32) + s2);
            store(to + 48, load(to + 48) + s3);
        }
    }
    for (; c < end; c++) {
        for (int t = 0; t < tile.count; t++) {
            float s = 0;
            for (int r = 0; r < used; r++) s += h[r][t] * get(bt + (int64_t)pool_row[r] * site.out + c);
            T* to = y + (int64_t)(tile.row + t) * site.out + c;
            put(to, get(to) + s);
        }
    }
}

template <class T>
static void lora(const LoraSite& site, const LoraPlan& plan, const T* x, T* y) {
    const int tasks = plan.num_tiles * site.slices;
    int64_t work = 0;  // multiplications, about
    for (int i = 0; i < plan.num_tiles; i++) {
        const LoraTile& tile = plan.tiles[i];
        for (int p = tile.part_begin; p < tile.part_end; p++)
            work += (int64_t)tile.count * plan.parts[p].rows * (site.slices * site.in + site.out);
    }
#pragma omp parallel for schedule(dynamic, 1) if (work > WORTH_THREADS)
    for (int task = 0; task < tasks; task++)
        lora_tile(site, plan, plan.tiles[task / site.slices], task % site.slices, x, y);
}
