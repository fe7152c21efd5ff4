/* How a KV block lies in memory: K as [KV_HEADS][16 * HEAD_DIM] elements, then V likewise, each tile (16 positions of
 * one head) in the order that attention's vectors want. Two elements share a word, which two shifts widen to f32:
 *   K tile: word [column / 2][position], its halves the even and the odd column;
 *   V tile: word [position][column / 32][column % 16], its halves columns that are 16 apart.
 * Only the CPU kernels look into the cache; a tile has the same size as in any other order. */
#pragma once
#include "prelude.h"

INLINE int64_t k_index(int64_t position, int64_t column)
{
    return (column / 2 * KV_BLOCK + position) * 2 + column % 2;
}

INLINE int64_t v_index(int64_t position, int64_t column, int64_t head_dim)
{
    return position * head_dim + column / 32 * 32 + column % 16 * 2 + column / 16 % 2;
}
