/* Products of a sparse weight with samples, for float32 on a CPU.

   The weight is stored row by row: row r has the values and columns of the places starts[r] to starts[r + 1].
   GNU C: vectors of as many floats as a register has. */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16 /* floats of a vector; wider ones than a register would be kept in memory */
#define GROUPS 4 /* vectors of samples whose sums stay in registers */
#else
#ifdef __AVX__
#define LANES 8
#else
#define LANES 4
#endif
#define GROUPS 8
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* The inputs of four places. Their columns are loaded at once: a processor loads only so often in a cycle. */
static inline four inputs_16(const float *x, const uint16_t *columns) {
    uint64_t c;
    memcpy(&c, columns, sizeof c);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (four){x[c >> 48], x[c >> 32 & 65535], x[c >> 16 & 65535], x[c & 65535]};
#else
    return (four){x[c & 65535], x[c >> 16 & 65535], x[c >> 32 & 65535], x[c >> 48]};
#endif
}

static inline four inputs_32(const float *x, const int32_t *columns) {
    return (four){x[columns[0]], x[columns[1]], x[columns[2]], x[columns[3]]};
}

/* y[row] = bias[row] + sum of values * x[column], for one sample. */
#define ONE(name, index, inputs)                                                                             \
    void name(const float *values, const index *columns, const int32_t *starts, const float *bias,           \
              const float *x, float *y, int64_t rows, int threads) {                                         \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                                    \
        for (int64_t row = 0; row < rows; row++) {                                                           \
            four sums[4] = {{0}};                                                                            \
            float sum = bias ? bias[row] : 0;                                                                \
            int64_t place = starts[row], end = starts[row + 1];                                              \
            for (; place + 16 <= end; place += 16)                                                           \
                for (int i = 0; i < 4; i++)                                                                  \
                    sums[i] += *(const four *)(values + place + 4 * i) * inputs(x, columns + place + 4 * i); \
            for (; place + 4 <= end; place += 4)                                                             \
                sums[0] += *(const four *)(values + place) * inputs(x, columns + place);                     \
            for (; place < end; place++) sum += values[place] * x[columns[place]];                           \
            sums[0] += sums[1] + sums[2] + sums[3];                                                          \
            y[row] = sum + (sums[0][0] + sums[0][1]) + (sums[0][2] + sums[0][3]);                            \
        }                                                                                                    \
    }

/* One row for G vectors of samples; x and y are transposed: `samples` floats for each input, and each row. */
#define ROW(G)                                                                                               \
    {                                                                                                        \
        lanes sums[G];                                                                                       \
        for (int g = 0; g < G; g++) sums[g] = (lanes){0} + first;                                            \
        for (int64_t place = starts[row]; place < starts[row + 1]; place++) {                                \
            const lanes *from = (const lanes *)(x + (int64_t)columns[place] * samples + sample);             \
            for (int g = 0; g < G; g++) sums[g] += values[place] * from[g];                                  \
        }                                                                                                    \
        lanes *to = (lanes *)(y + row * samples + sample);                                                   \
        for (int g = 0; g < G; g++) to[g] = sums[g];                                                         \
        sample += G * LANES;                                                                                 \
    }

/* The same for many samples, whose number is a multiple of 16. */
#define MANY(name, index)                                                                                    \
    void name(const float *values, const index *columns, const int32_t *starts, const float *bias,           \
              const float *x, float *y, int64_t rows, int64_t samples, int threads) {                        \
        for (int64_t tile = 0; tile < samples; tile += GROUPS * LANES) {                                     \
            int64_t tile_end = tile + GROUPS * LANES < samples ? tile + GROUPS * LANES : samples;            \
            _Pragma("omp parallel for schedule(static) num_threads(threads)")                                \
            for (int64_t row = 0; row < rows; row++) {                                                       \
                float first = bias ? bias[row] : 0;                                                          \
                int64_t sample = tile;                                                                       \
                while (sample + GROUPS * LANES <= tile_end) ROW(GROUPS)                                      \
                while (sample + 2 * LANES <= tile_end) ROW(2)                                                \
                while (sample < tile_end) ROW(1)                                                             \
            }                                                                                                \
        }                                                                                                    \
    }

ONE(fpe_one_16, uint16_t, inputs_16)
ONE(fpe_one_32, int32_t, inputs_32)
MANY(fpe_many_16, uint16_t)
MANY(fpe_many_32, int32_t)
