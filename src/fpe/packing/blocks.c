/* Layers of dense blocks, one after another, for float32 on a CPU: inputs are picked, multiplied and added to
   the bias in one pass, and some samples go through all layers while they are in a cache.

   A part of a block has `inputs` rows of `neurons` weights, input by input; row k is for the input columns[k]
   of a sample. GNU C: vectors of as many floats as a register has. */

#include <stdint.h>
#include <string.h>

#pragma GCC optimize("no-tree-vectorize")

#if defined(__AVX512F__)
#define LANES 16 /* floats of a vector; wider ones than a register would be kept in memory */
#define MOST 8   /* samples of a tile: their sums stay in registers, of which there are 32 here, else 16 */
#elif defined(__AVX__)
#define LANES 8
#define MOST 6
#else
#define LANES 4
#define MOST 6
#endif
#define WIDE (2 * LANES) /* neurons of a tile for many samples */
#define FEW 12     /* samples for which the weights of a tile are copied side by side */
#define INPUTS 256 /* inputs whose weights of a tile stay in the first cache */

#define VECTOR(kind, N) kind __attribute__((vector_size(4 * N), aligned(4), may_alias))
typedef VECTOR(float, 16) vector16;
typedef VECTOR(float, 8) vector8;
typedef VECTOR(float, 4) vector4;
typedef VECTOR(float, 2) vector2;
typedef float vector1;
typedef VECTOR(float, LANES) vector;
typedef VECTOR(int32_t, LANES) bits;

/* A program has these words for each group, which is adjacent blocks of a layer with equally many neurons, and
   then those of its parts: where its first neuron is among the layer's outputs; whether negative outputs of
   the layer become zero, whether it ends here, and which buffer it writes into. A part has inputs of the first
   BLOCKS blocks; all have some of the first part. The words of weights, bias and columns tell how many numbers
   they are behind the beginning of the values or columns, below zero for none. */
enum { PARTS, BIAS, NEURONS, FIRST, OUTPUTS, RELU, ENDS, TO, GROUP };
enum { WEIGHTS, COLUMNS, BLOCKS, IN_EACH, PART };

/* Where values and columns begin; addresses, as one that is 0 makes words of addresses. */
typedef struct {
    intptr_t values, columns;
} Base;

static const void *at(intptr_t base, int64_t word) { return word < 0 ? 0 : (const void *)(base + 4 * word); }

typedef void product(const float *x, int64_t width, const float *w, int64_t stride, const int32_t *columns,
                     int64_t inputs, const float *bias, float *y, int64_t outputs, int add);

/* The sums of S samples for V vectors of N neurons; they begin with y, the bias or zero. */
#define PRODUCT(S, V, N)                                                                                     \
    static void product_##S##_##V##_##N(const float *x, int64_t width, const float *w, int64_t stride,       \
                                        const int32_t *columns, int64_t inputs, const float *bias, float *y, \
                                        int64_t outputs, int add) {                                          \
        vector##N sums[S][V];                                                                                \
        for (int s = 0; s < S; s++)                                                                          \
            for (int v = 0; v < V; v++)                                                                      \
                sums[s][v] = add ? ((const vector##N *)(y + s * outputs))[v]                                 \
                             : bias ? ((const vector##N *)bias)[v] : (vector##N){0};                         \
        for (int64_t k = 0; k < inputs; k++) {                                                               \
            const vector##N *row = (const vector##N *)(w + k * stride);                                      \
            const float *from = x + columns[k];                                                              \
            for (int s = 0; s < S; s++)                                                                      \
                for (int v = 0; v < V; v++) sums[s][v] += from[s * width] * row[v];                          \
        }                                                                                                    \
        for (int s = 0; s < S; s++)                                                                          \
            for (int v = 0; v < V; v++) ((vector##N *)(y + s * outputs))[v] = sums[s][v];                    \
    }

#define PRODUCTS(V, N)                                                                                       \
    PRODUCT(1, V, N) PRODUCT(2, V, N) PRODUCT(4, V, N) PRODUCT(6, V, N) PRODUCT(8, V, N)
#if LANES == 16
PRODUCT(1, 4, 16)
PRODUCTS(2, 16)
PRODUCTS(1, 16)
#endif
#if LANES == 8
PRODUCT(1, 4, 8)
PRODUCTS(2, 8)
#endif
#if LANES >= 8
PRODUCTS(1, 8)
#else
PRODUCT(1, 4, 4)
PRODUCTS(2, 4)
#endif
PRODUCTS(1, 4)
PRODUCTS(1, 2)
PRODUCTS(1, 1)

/* How many neurons are next, and their products for one, two, four, six and eight samples. */
typedef struct {
    int neurons;
    product *by[5];
} Tile;

#define TILE(V, N)                                                                                           \
    {V * N,                                                                                                  \
     {product_1_##V##_##N, product_2_##V##_##N, product_4_##V##_##N, product_6_##V##_##N, product_8_##V##_##N}}
static const Tile tiles[] = {
#if LANES == 16
    TILE(2, 16), TILE(1, 16),
#elif LANES == 8
    TILE(2, 8),
#else
    TILE(2, 4),
#endif
#if LANES >= 8
    TILE(1, 8),
#endif
    TILE(1, 4),  TILE(1, 2),  TILE(1, 1)};
#if LANES == 16
static const Tile one_sample = {64, {product_1_4_16}};
#elif LANES == 8
static const Tile one_sample = {32, {product_1_4_8}};
#else
static const Tile one_sample = {16, {product_1_4_4}};
#endif

/* Some samples, the layer's outputs of them, and how far apart they are. */
typedef struct {
    const float *x;
    float *y;
    int64_t samples, width, outputs;
} Rows;

static void multiply_tile(const Tile *tile, Rows r, const float *w, int64_t stride, const int32_t *columns,
                          int64_t inputs, const float *bias, int add) {
    for (int64_t s = 0; s < r.samples;) {
        int64_t left = r.samples - s < MOST ? r.samples - s : MOST;
        int which = left / 2;
        tile->by[which](r.x + s * r.width, r.width, w, stride, columns, inputs, bias, r.y + s * r.outputs,
                        r.outputs, add);
        s += which ? 2 * which : 1;
    }
}

/* Multiply by the weights of a tile of a block, from its neuron n on. */
static void multiply_parts(const Tile *tile, Base base, Rows r, const int64_t *group, int64_t block, int64_t n,
                           const float *bias) {
    float weights[INPUTS * WIDE];
    int32_t places[INPUTS];
    int64_t held = 0;
    int add = 0;
    const int64_t *part = group + GROUP;
    for (int64_t p = 0; p < group[PARTS] && block < part[BLOCKS]; p++, part += PART) {
        int64_t inputs = part[IN_EACH], stride = group[NEURONS];
        const float *w = (const float *)at(base.values, part[WEIGHTS]) + block * inputs * stride + n;
        const int32_t *columns = at(base.columns, part[COLUMNS]);
        if (columns) columns += block * inputs;
        if (r.samples < FEW) {
            for (int64_t k = 0, some; k < inputs; k += some, add = 1) {
                some = inputs - k < INPUTS || columns ? inputs - k : INPUTS;
                for (int64_t i = 0; i < some && !columns; i++) places[i] = k + i;
                multiply_tile(tile, r, w + k * stride, stride, columns ? columns : places, some, bias, add);
            }
            continue;
        }
        for (int64_t k = 0; k < inputs; k++) {
            if (held == INPUTS) {
                multiply_tile(tile, r, weights, tile->neurons, places, held, bias, add);
                held = 0, add = 1;
            }
            memcpy(weights + held * tile->neurons, w + k * stride, 4 * tile->neurons);
            places[held++] = columns ? columns[k] : k;
        }
    }
    if (held || !add) multiply_tile(tile, r, weights, tile->neurons, places, held, bias, add);
}

/* Write the products of a group of blocks, plus their bias. */
static void multiply_group(Base base, const int64_t *group, Rows r, int threads) {
    const float *bias = at(base.values, group[BIAS]);
    int64_t neurons = group[NEURONS], size = r.samples == 1 ? 2 * WIDE : WIDE;
    int64_t each = (neurons + size - 1) / size, jobs = (group + GROUP)[BLOCKS] * each;
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t job = 0; job < jobs; job++) {
        int64_t block = job / each, first = job % each * size;
        int64_t end = first + size < neurons ? first + size : neurons;
        for (int64_t n = first; n < end;) {
            const Tile *tile = end - n == 2 * WIDE ? &one_sample : tiles;
            while (tile->neurons > end - n) tile++;
            int64_t place = group[FIRST] + block * neurons + n;
            Rows own = r;
            own.y += place;
            multiply_parts(tile, base, own, group, block, n, bias ? bias + place : 0);
            n += tile->neurons;
        }
    }
}

/* Replace negative numbers by zero, and nothing that is no number. */
static void rectify(float *y, int64_t size) {
    for (; size >= LANES; size -= LANES, y += LANES) *(bits *)y &= ~(*(vector *)y <= 0);
    for (int64_t i = 0; i < size; i++) y[i] = y[i] <= 0 ? 0 : y[i];
}

/* Send some samples through the groups of all layers. A layer writes into one of two buffers or into `y`. */
static void multiply_layers(Base base, const int64_t *group, int64_t groups, Rows r, float *buffers,
                            int64_t apart, int threads) {
    float *to[] = {buffers, buffers + apart, r.y};
    for (int64_t g = 0; g < groups; g++) {
        r.y = to[group[TO]], r.outputs = group[OUTPUTS];
        multiply_group(base, group, r, threads);
        if (group[ENDS]) {
            if (group[RELU]) rectify(r.y, r.samples * r.outputs);
            r.x = r.y, r.width = r.outputs;
        }
        group += GROUP + PART * group[PARTS];
    }
}

/* Apply layers to each `step`-th chunk of samples, from one on; `samples` has the layer's last outputs. */
static void multiply_chunks(Base base, const int64_t *program, int64_t groups, Rows samples, float *buffers,
                            int64_t chunk, int64_t apart, int64_t first, int64_t step, int threads) {
    for (int64_t begin = first * chunk; begin < samples.samples; begin += step * chunk) {
        Rows own = samples;
        own.samples = samples.samples - begin < chunk ? samples.samples - begin : chunk;
        own.x += begin * samples.width, own.y += begin * samples.outputs;
        multiply_layers(base, program, groups, own, buffers, apart, threads);
    }
}

/* Apply layers to samples of `width` inputs, which are rows of x; write rows of `outputs` numbers into y.

   Each time, `chunk` samples go through all layers. Threads share these out if there are `buffers` for each,
   two of `apart` floats; otherwise they share out the neurons, and use the same two buffers. */
void fpe_blocks(intptr_t values, intptr_t columns, const int64_t *program, int64_t groups, const float *x,
                float *y, float *buffers, int64_t samples, int64_t width, int64_t outputs, int64_t chunk,
                int64_t apart, int by_samples, int threads) {
    Base base = {values, columns};
    Rows all = {x, y, samples, width, outputs};
    if (!by_samples) { /* not as a team of one, within which threads would be started each time */
        multiply_chunks(base, program, groups, all, buffers, chunk, apart, 0, 1, threads);
        return;
    }
    _Pragma("omp parallel for schedule(static) num_threads(threads)")
    for (int64_t own = 0; own < threads; own++)
        multiply_chunks(base, program, groups, all, buffers + 2 * apart * own, chunk, apart, own, threads, 1);
}
