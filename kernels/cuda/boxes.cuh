/* boxes.cuh - maps of bf16 matrices for bulk copies that bring boxes of 64 columns, swizzled by 128 bytes.
 * For:    panel.cuh, wide_alone.cuh.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  false where the driver has no such maps. */
#ifndef TPL_KERNELS_CUDA_BOXES_CUH
#define TPL_KERNELS_CUDA_BOXES_CUH

#include <cuda.h>
#include <cudaTypedefs.h>

#include "kernels/cuda/cuda.cuh"

enum { BOX_COLS = 64 };

/* Rows `stride` elements apart; of n such matrices, `step` apart, where n > 0: the map has a third dimension then. */
typedef struct {
    const void *data;
    int64_t cols, rows, stride, n, step;
    int box_rows;
} boxes;

static inline bool boxes_map(boxes b, CUtensorMap *map)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode;
    cudaDriverEntryPointQueryResult found;
    cuuint64_t size[3] = {(cuuint64_t)b.cols, (cuuint64_t)b.rows, (cuuint64_t)b.n};
    cuuint64_t strides[2] = {(cuuint64_t)b.stride * sizeof(cu_bf16),
                             (cuuint64_t)(b.n > 1 ? b.step : b.stride) * sizeof(cu_bf16)};
    cuuint32_t box[3] = {BOX_COLS, (cuuint32_t)b.box_rows, 1}, each[3] = {1, 1, 1};
    if (!encode && (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000,
                                                     cudaEnableDefault, &found) != cudaSuccess ||
                    found != cudaDriverEntryPointSuccess))
        return false;
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, b.n > 0 ? 3 : 2, (void *)b.data, size, strides, box, each,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#endif
