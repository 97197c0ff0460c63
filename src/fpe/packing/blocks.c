/* Products of dense blocks with samples, for float32 on a CPU: inputs are picked, multiplied, and added to the
   bias in one pass.

   A block has `inputs` rows of `neurons` weights, input by input; row k is for the input columns[k] of a
   sample. GNU C: vectors of 16 floats, which compilers map to the registers that there are. */

#include <stdint.h>
#include <string.h>

#pragma GCC optimize("no-tree-vectorize")

#define WIDE 16    /* neurons of a tile for many samples */
#define SAMPLES 96 /* samples whose inputs stay in the second cache, */
#define FEW 12     /* or in the first one, if all weights stay there too */
#define SMALL 4096 /* such weights */
#define APART 64   /* neurons of a block, whose rows are so far apart that a tile of them is copied */
#define INPUTS 256 /* inputs whose weights of a tile stay in the first cache */

typedef float vector16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float vector8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float vector4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float vector2 __attribute__((vector_size(8), aligned(4), may_alias));
typedef float vector1;

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

PRODUCT(1, 4, 16)
PRODUCT(1, 2, 16)
#define PRODUCTS(N) PRODUCT(1, 1, N) PRODUCT(2, 1, N) PRODUCT(4, 1, N) PRODUCT(6, 1, N)
PRODUCTS(16)
PRODUCTS(8)
PRODUCTS(4)
PRODUCTS(2)
PRODUCTS(1)

/* How many neurons are next, and their products for one, two, four and six samples. */
typedef struct {
    int neurons;
    product *by[4];
} Tile;

#define TILE(N) {N, {product_1_1_##N, product_2_1_##N, product_4_1_##N, product_6_1_##N}}
static const Tile tiles[] = {TILE(16), TILE(8), TILE(4), TILE(2), TILE(1)};

/* Multiply `samples` rows of x, of `width` inputs, by the blocks of a batch, and write into rows of y, of
   `outputs` numbers, from its first neuron on; with `add`, add to what is there. */
void fpe_blocks(const float *x, const float *weights, const int32_t *columns, const float *bias, float *y,
                int64_t samples, int64_t width, int64_t outputs, int64_t blocks, int64_t inputs,
                int64_t neurons, int add, int threads) {
    int64_t most = blocks * inputs * neurons <= SMALL ? FEW : SAMPLES;
    for (int64_t begin = 0; begin < samples; begin += most) {
        int64_t rows = samples - begin < most ? samples - begin : most;
        int64_t size = rows == 1 ? 64 : rows < 4 ? 32 : WIDE;
        int64_t each = (neurons + size - 1) / size;
        _Pragma("omp parallel for schedule(static) num_threads(threads)")
        for (int64_t job = 0; job < blocks * each; job++) {
            int64_t block = job / each, first = job % each * size;
            int64_t end = first + size < neurons ? first + size : neurons;
            float packed[INPUTS * WIDE];
            for (int64_t k = 0; k < inputs; k += INPUTS) {
                int64_t some = inputs - k < INPUTS ? inputs - k : INPUTS, stride = neurons;
                const float *w = weights + (block * inputs + k) * neurons;
                const int32_t *own = columns + block * inputs + k;
                int more = add || k > 0;
                for (int64_t n = first; n < end;) {
                    const float *here = w + n;
                    float *out = y + begin * outputs + block * neurons + n;
                    const float *start = bias ? bias + block * neurons + n : 0;
                    if (rows == 1 && end - n >= 32) {
                        int many = end - n >= 64;
                        (many ? product_1_4_16 : product_1_2_16)(x + begin * width, width, here, stride, own, some,
                                                                 start, out, outputs, more);
                        n += many ? 64 : 32;
                        continue;
                    }
                    const Tile *tile = tiles;
                    while (tile->neurons > end - n) tile++;
                    int64_t step = stride;
                    if (rows >= FEW && neurons >= APART) {
                        for (int64_t i = 0; i < some; i++)
                            memcpy(packed + i * tile->neurons, here + i * stride, 4 * tile->neurons);
                        here = packed, step = tile->neurons;
                    }
                    for (int64_t s = 0; s < rows;) {
                        int64_t left = rows - s;
                        int which = left >= 6 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
                        tile->by[which](x + (begin + s) * width, width, here, step, own, some, start,
                                        out + s * outputs, outputs, more);
                        s += (int[]){1, 2, 4, 6}[which];
                    }
                    n += tile->neurons;
                }
            }
        }
    }
}
