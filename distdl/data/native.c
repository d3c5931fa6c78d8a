/* The two inner loops of reading, which native.py compiles: the order of order.py, and a gather of rows of constant size.
   Each gives the bits of its NumPy form. */
#include <stdint.h>
#include <string.h>

#define LANES 64   /* positions that are encrypted at a time: both halves stay in registers and the L1 cache */
#define AHEAD_BYTES 16384  /* of rows that are asked for before they are copied: memory answers in the meantime */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

/* order.py, _mix */
static inline uint32_t mix(uint32_t value, uint32_t key) {
    value = (value ^ key) * 0x9E3779B1u;
    value ^= value >> 15;
    value *= 0x85EBCA6Bu;
    value ^= value >> 13;
    value *= 0xC2B2AE35u;
    return value ^ (value >> 16);
}

/* order.py, Order._encrypt, of LANES values; left halves below 2^32 */
WIDE static void encrypt(uint32_t *restrict left, uint32_t *restrict right, uint32_t size, int bits, const uint32_t *keys,
                         int rounds) {
    const uint32_t mask = (uint32_t)((1ull << bits) - 1);
    for (int r = 0; r < rounds; r += 2) {
        for (int j = 0; j < LANES; j++) {
            const uint64_t moved = (uint64_t)left[j] + (((uint64_t)mix(right[j], keys[r]) * size) >> 32);
            left[j] = (uint32_t)(moved >= size ? moved - size : moved);
        }
        for (int j = 0; j < LANES; j++) right[j] = (right[j] + (mix(left[j], keys[r + 1]) >> (32 - bits))) & mask;
    }
}

/* order.py, Order._walk: each of n positions becomes its row. `size`: left halves there are, below 2^32. */
void distdl_order(int64_t *values, int64_t n, uint64_t rows, uint32_t size, int bits, const uint32_t *keys, int rounds) {
    uint32_t left[LANES], right[LANES];
    const uint64_t mask = (1ull << bits) - 1;
    for (int64_t start = 0; start < n; start += LANES) {
        const int count = n - start < LANES ? (int)(n - start) : LANES;
        for (int j = 0; j < LANES; j++) {
            const uint64_t value = (uint64_t)values[start + (j < count ? j : 0)];
            left[j] = (uint32_t)(value >> bits);
            right[j] = (uint32_t)(value & mask);
        }
        encrypt(left, right, size, bits, keys, rounds);
        for (int j = 0; j < count; j++) {
            uint64_t value = ((uint64_t)left[j] << bits) | right[j];
            while (value >= rows) {  /* fewer than 2^bits values of all lie outside: rare */
                uint32_t l[LANES] = {0}, r[LANES] = {0};
                l[0] = (uint32_t)(value >> bits);
                r[0] = (uint32_t)(value & mask);
                encrypt(l, r, size, bits, keys, rounds);
                value = ((uint64_t)l[0] << bits) | r[0];
            }
            values[start + j] = (int64_t)value;
        }
    }
}

/* read.py, _FixedColumn.gather: row `ids[i]` lies in record batch ids[i] >> shift, which begins at that entry of `begins`. */
void distdl_gather(uint8_t *restrict out, const uint64_t *begins, const int64_t *ids, int64_t n, int shift, int64_t row_bytes) {
    const int64_t mask = (1ll << shift) - 1;
    const int64_t ahead = AHEAD_BYTES / row_bytes < 2 ? 2 : (AHEAD_BYTES / row_bytes > 64 ? 64 : AHEAD_BYTES / row_bytes);
    const int64_t asked = row_bytes < 2048 ? row_bytes : 2048;  /* of a longer row the hardware fetches the rest */
#define ROW(i) ((const uint8_t *)(uintptr_t)begins[ids[i] >> shift] + (ids[i] & mask) * row_bytes)
    for (int64_t i = 0; i < n; i++) {
        if (i + ahead < n) {
            const uint8_t *next = ROW(i + ahead);
            for (int64_t k = 0; k < asked; k += 64) __builtin_prefetch(next + k);
        }
        memcpy(out + i * row_bytes, ROW(i), (size_t)row_bytes);
    }
}
