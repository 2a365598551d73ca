// Causal attention of fp32 heads, forward and backward, within lower bounds; see flash.py. vectors.h stands before it.
//
// Scores are made for BLOCK queries x BLOCK keys at a time, keys in rows: then the largest score, the sum and the
// bounds of a query are a column's, LANES queries a register, and no row is ever summed up within a register.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VECTORS (BLOCK / LANES)

typedef int64_t i64;

// Where heads lie: a tensor (B, H, T, D) whose last dimension is contiguous.
typedef struct { float *start; i64 b, h, t; } Heads;

static inline float *at(const Heads *x, i64 b, i64 h, i64 t) { return x->start + b * x->b + h * x->h + t * x->t; }

static inline Vector exponential(Vector x) {
    x = larger(all(-87.0f), x);  // in this order a NaN stays one
    Vector n = rounded(times(x, all(1.44269504f)));
    Vector r = minus_times(minus_times(x, n, all(0.693359375f)), n, all(-2.12194440e-4f));
    Vector y = all(1.0f / 5040);
    const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
#pragma GCC unroll 7
    for (int i = 0; i < 7; i++) y = times_plus(y, r, all(terms[i]));
    return times_power_of_two(y, n);
}

// c[rows x LANES columns] (+)= a[rows x depth] * b[depth x LANES columns]; `rows` and `columns` are constants.
static inline __attribute__((always_inline)) void tile(
    const int rows, const int columns, i64 depth, const float *a, i64 a_row, i64 a_deep, const float *b, i64 b_deep,
    float *c, i64 c_row, int adds) {
    Vector sums[8][COLUMNS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++)
            sums[i][j] = adds ? load(c + i * c_row + j * LANES) : all(0.0f);
    for (i64 k = 0; k < depth; k++) {
        Vector row[COLUMNS];
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) row[j] = load(b + k * b_deep + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            Vector one = all(a[i * a_row + k * a_deep]);
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) sums[i][j] = times_plus(one, row[j], sums[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) store(c + i * c_row + j * LANES, sums[i][j]);
}

static inline __attribute__((always_inline)) void strip(
    const int columns, i64 rows, i64 depth, const float *a, i64 a_row, i64 a_deep, const float *b, i64 b_deep,
    float *c, i64 c_row, int adds) {
    i64 i = 0;
    for (; i + 6 <= rows; i += 6)
        tile(6, columns, depth, a + i * a_row, a_row, a_deep, b, b_deep, c + i * c_row, c_row, adds);
    for (; i + 4 <= rows; i += 4)
        tile(4, columns, depth, a + i * a_row, a_row, a_deep, b, b_deep, c + i * c_row, c_row, adds);
    for (; i < rows; i++)
        tile(1, columns, depth, a + i * a_row, a_row, a_deep, b, b_deep, c + i * c_row, c_row, adds);
}

// c[rows x width] (+)= a[rows x depth] * b[depth x width]; `width` is a multiple of LANES, `a` may lie in any way.
static void multiply(i64 rows, i64 width, i64 depth, const float *a, i64 a_row, i64 a_deep, const float *b,
                     i64 b_deep, float *c, i64 c_row, int adds) {
    i64 j = 0;
    for (; j + COLUMNS * LANES <= width; j += COLUMNS * LANES)
        strip(COLUMNS, rows, depth, a, a_row, a_deep, b + j, b_deep, c + j, c_row, adds);
    for (; j < width; j += LANES) strip(1, rows, depth, a, a_row, a_deep, b + j, b_deep, c + j, c_row, adds);
}

// The transpose of `rows` <= BLOCK rows, times `scale`: (depth, BLOCK), zero behind `rows`.
static void transpose(i64 rows, i64 depth, const float *x, i64 x_row, float scale, float *out) {
    if (rows < BLOCK) memset(out, 0, sizeof(float) * depth * BLOCK);
    for (i64 first = 0; first < rows; first += 16)  // rows come from far away: sixteen at once
        for (i64 d = 0; d < depth; d++)
            for (i64 r = first; r < rows && r < first + 16; r++) out[d * BLOCK + r] = x[r * x_row + d] * scale;
}

// The first key that each of `rows` queries from `query` on may look at, and the lowest of them.
static i64 bounds(const int32_t *lows, i64 query, i64 rows, int32_t *firsts) {
    i64 lowest = query;
    for (i64 r = 0; r < BLOCK; r++) {
        firsts[r] = lows && r < rows ? lows[query + r] : (lows ? (int32_t)query : 0);
        if (r < rows && firsts[r] < lowest) lowest = firsts[r];
    }
    return lowest;
}

// Which of the queries from `query` + LANES * v on may look at `key`.
OP Mask seen(i64 key, i64 query, int v, const int32_t *firsts) {
    Integers keys = all_integers((int32_t)key);
    return are_ordered(load_integers(firsts + v * LANES), keys, counted_from((int32_t)(query + v * LANES)));
}

// Whether every query from `query` on may look at every key of a block.
static int all_seen(i64 first, i64 keys, i64 query, i64 rows, const int32_t *firsts) {
    if (first + keys - 1 > query) return 0;
    for (i64 r = 0; r < rows; r++)
        if (firsts[r] > first) return 0;
    return 1;
}

// Scores of a block of keys become exp(score - highest). `sums` are kept relative to `highest`; what is not kept here
// has to be multiplied by `scales` for it.
static void weigh(float *scores, i64 keys, i64 first, i64 query, int masked, const int32_t *firsts, float *highest,
                  float *sums, float *scales) {
    const Vector lowest = all(-1e30f);
    for (int v = 0; v < VECTORS; v++) {
        float *column = scores + v * LANES;
        Vector before = load(highest + v * LANES), top = before;
        for (i64 k = 0; k < keys; k++) {
            Vector s = load(column + k * BLOCK);
            if (masked) {
                s = choose(seen(first + k, query, v, firsts), s, lowest);
                store(column + k * BLOCK, s);
            }
            top = larger(top, s);
        }
        Vector scale = exponential(subtract(before, top));
        Vector sum = times(load(sums + v * LANES), scale);
        for (i64 k = 0; k < keys; k++) {
            Vector s = load(column + k * BLOCK);
            Vector p = exponential(subtract(s, top));
            if (masked) p = or_zero(is_above(s, lowest), p);
            sum = add(sum, p);
            store(column + k * BLOCK, p);
        }
        store(highest + v * LANES, top);
        store(sums + v * LANES, sum);
        store(scales + v * LANES, scale);
    }
}

static float *scratch(i64 floats) {
    void *memory = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!memory) abort();  // 100 KB
    return (float *)memory;
}

// out and log_sums (B, H, T) of attention. `sizes`: B, H, heads of keys, T, D. `strides`: b, h, t of q, k, v, out.
extern "C" void attend(float *q_, float *k_, float *v_, const int32_t *lows, float *out_, float *log_sums, const i64 *sizes,
            const i64 *strides, float scale, int threads) {
    const i64 B = sizes[0], H = sizes[1], G = H / sizes[2], T = sizes[3], D = sizes[4], blocks = (T + BLOCK - 1) / BLOCK;
    const Heads q = {q_, strides[0], strides[1], strides[2]}, k = {k_, strides[3], strides[4], strides[5]},
                v = {v_, strides[6], strides[7], strides[8]}, out = {out_, strides[9], strides[10], strides[11]};
#pragma omp parallel num_threads(threads)
    {
        float *queries = scratch(D * BLOCK), *scores = scratch(BLOCK * BLOCK), *sum_out = scratch(BLOCK * D);
        float highest[BLOCK], sums[BLOCK], scales[BLOCK];
        int32_t firsts[BLOCK];
#pragma omp for schedule(dynamic)
        for (i64 task = 0; task < B * H * blocks; task++) {
            const i64 query = (blocks - 1 - task % blocks) * BLOCK, h = task / blocks % H, b = task / blocks / H;
            const i64 rows = T - query < BLOCK ? T - query : BLOCK;
            const i64 lowest = bounds(lows ? lows + b * T : NULL, query, rows, firsts);
            transpose(rows, D, at(&q, b, h, query), q.t, scale, queries);
            memset(sum_out, 0, sizeof(float) * BLOCK * D);
            for (int r = 0; r < BLOCK; r++) highest[r] = -1e30f, sums[r] = 0.0f;
            for (i64 first = lows ? lowest : 0; first < query + rows; first += BLOCK) {
                const i64 keys = query + rows - first < BLOCK ? query + rows - first : BLOCK;
                const int masked = !all_seen(first, keys, query, rows, firsts);
                multiply(keys, BLOCK, D, at(&k, b, h / G, first), k.t, 1, queries, BLOCK, scores, BLOCK, 0);
                weigh(scores, keys, first, query, masked, firsts, highest, sums, scales);
                for (i64 r = 0; r < rows; r++)
                    for (i64 d = 0; d < D; d += LANES)
                        store(sum_out + r * D + d, times(all(scales[r]), load(sum_out + r * D + d)));
                multiply(rows, D, keys, scores, 1, BLOCK, at(&v, b, h / G, first), v.t, sum_out, D, 1);
            }
            for (i64 r = 0; r < rows; r++) {
                float *out_row = at(&out, b, h, query + r);
                for (i64 d = 0; d < D; d += LANES)
                    store(out_row + d, times(all(1.0f / sums[r]), load(sum_out + r * D + d)));
                log_sums[(b * H + h) * T + query + r] = highest[r] + logf(sums[r]);
            }
        }
        free(queries), free(scores), free(sum_out);
    }
}

// The gradients of q, k and v; those of k and v must be zero before. `strides` of q, k, v, out, its gradient, and the
// three gradients.
extern "C" void attend_backward(float *q_, float *k_, float *v_, const int32_t *lows, float *out_, const float *log_sums,
                     float *gradient_, float *dq_, float *dk_, float *dv_, const i64 *sizes, const i64 *strides,
                     float scale, int threads) {
    const i64 B = sizes[0], H = sizes[1], K = sizes[2], G = H / K, T = sizes[3], D = sizes[4];
    const i64 *s = strides;
    const Heads q = {q_, s[0], s[1], s[2]}, k = {k_, s[3], s[4], s[5]}, v = {v_, s[6], s[7], s[8]},
                out = {out_, s[9], s[10], s[11]}, gradient = {gradient_, s[12], s[13], s[14]},
                dq = {dq_, s[15], s[16], s[17]}, dk = {dk_, s[18], s[19], s[20]}, dv = {dv_, s[21], s[22], s[23]};
#pragma omp parallel num_threads(threads)
    {
        float *queries = scratch(D * BLOCK), *gradients = scratch(D * BLOCK), *weights = scratch(BLOCK * BLOCK),
              *changes = scratch(BLOCK * BLOCK), *sum_q = scratch(BLOCK * D);
        float means[BLOCK], logs[BLOCK];
        int32_t firsts[BLOCK];
#pragma omp for schedule(dynamic)
        for (i64 task = 0; task < B * K; task++)
            for (i64 h = task % K * G; h < (task % K + 1) * G; h++)
                for (i64 query = 0; query < T; query += BLOCK) {
                    const i64 b = task / K, rows = T - query < BLOCK ? T - query : BLOCK;
                    const i64 lowest = bounds(lows ? lows + b * T : NULL, query, rows, firsts);
                    const float *q_rows = at(&q, b, h, query), *g_rows = at(&gradient, b, h, query),
                                *out_rows = at(&out, b, h, query);
                    transpose(rows, D, q_rows, q.t, scale, queries);
                    transpose(rows, D, g_rows, gradient.t, 1.0f, gradients);
                    memset(sum_q, 0, sizeof(float) * BLOCK * D);
                    for (i64 r = 0; r < BLOCK; r++) {
                        means[r] = 0.0f, logs[r] = r < rows ? log_sums[(b * H + h) * T + query + r] : 0.0f;
                        if (r >= rows) continue;
                        Vector mean = all(0.0f);
                        for (i64 d = 0; d < D; d += LANES)
                            mean = times_plus(load(g_rows + r * gradient.t + d), load(out_rows + r * out.t + d), mean);
                        means[r] = sum_of(mean);
                    }
                    for (i64 first = lows ? lowest : 0; first < query + rows; first += BLOCK) {
                        const i64 keys = query + rows - first < BLOCK ? query + rows - first : BLOCK;
                        const int masked = !all_seen(first, keys, query, rows, firsts);
                        const float *k_rows = at(&k, b, h / G, first), *v_rows = at(&v, b, h / G, first);
                        multiply(keys, BLOCK, D, k_rows, k.t, 1, queries, BLOCK, weights, BLOCK, 0);
                        multiply(keys, BLOCK, D, v_rows, v.t, 1, gradients, BLOCK, changes, BLOCK, 0);
                        for (i64 j = 0; j < keys; j++)
                            for (int u = 0; u < VECTORS; u++) {
                                float *w = weights + j * BLOCK + u * LANES, *c = changes + j * BLOCK + u * LANES;
                                Vector p = exponential(subtract(load(w), load(logs + u * LANES)));
                                if (masked) p = or_zero(seen(first + j, query, u, firsts), p);
                                store(w, p);
                                Vector change = subtract(load(c), load(means + u * LANES));
                                store(c, times(times(p, change), all(scale)));
                            }
                        multiply(keys, D, rows, weights, BLOCK, 1, g_rows, gradient.t, at(&dv, b, h / G, first), dv.t, 1);
                        multiply(keys, D, rows, changes, BLOCK, 1, q_rows, q.t, at(&dk, b, h / G, first), dk.t, 1);
                        multiply(rows, D, keys, changes, 1, BLOCK, k_rows, k.t, sum_q, D, 1);
                    }
                    for (i64 r = 0; r < rows; r++) memcpy(at(&dq, b, h, query + r), sum_q + r * D, sizeof(float) * D);
                }
        free(queries), free(gradients), free(weights), free(changes), free(sum_q);
    }
}
