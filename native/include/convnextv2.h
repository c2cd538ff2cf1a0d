/* An exported ConvNeXt V2 classifier for C, and through it for Swift, Objective-C and other languages.
 *
 * Every function is safe from any thread; MLX computes for one call at a time. No function throws or ends the process.
 */
#ifndef CONVNEXTV2_H
#define CONVNEXTV2_H

#include "convnextv2_image.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct convnextv2_classifier convnextv2_classifier;

typedef struct convnextv2_prediction {
  size_t index;      /* of the label */
  float score;       /* its probability, 0 to 1 */
  const char* label; /* in UTF-8; valid until the classifier is closed */
} convnextv2_prediction;

/* Where an app keeps MLX's GPU kernels, the file mlx.metallib, when not beside libmlx.dylib: Contents/Resources of a
 * signed app. Called before anything else here; without Metal it has no effect. */
CONVNEXTV2_API convnextv2_status convnextv2_set_metallib(const char* file);

/* Open a folder that `python -m mlx_convnextv2.export` wrote, and run the graph once so that the first image is fast.
 *
 * The graph asks MLX for a stream by number, which the first user of MLX in a process gets. A process that uses MLX for
 * something else too opens its classifier first, or gets CONVNEXTV2_STREAM_TAKEN; after that both may go on. */
CONVNEXTV2_API convnextv2_status convnextv2_open(const char* folder, convnextv2_classifier** classifier);

/* Give back its memory, once no other call uses it. NULL is allowed. */
CONVNEXTV2_API void convnextv2_close(convnextv2_classifier* classifier);

/* The labels of an image, the most probable first: at most `capacity`, how many there are into `count`. */
CONVNEXTV2_API convnextv2_status convnextv2_classify(const convnextv2_classifier* classifier,
                                                     const convnextv2_image* image, convnextv2_prediction* predictions,
                                                     size_t capacity, size_t* count);

/* The graph itself. rgb: `batch` prepared images, (batch, height, width, 3); probabilities: batch * label_count floats;
 * embeddings: batch * embedding_size floats, or NULL. A batch that was not exported is CONVNEXTV2_WRONG_SHAPE. */
CONVNEXTV2_API convnextv2_status convnextv2_run(const convnextv2_classifier* classifier, const uint8_t* rgb,
                                                size_t batch, size_t height, size_t width, float* probabilities,
                                                float* embeddings);

/* How images are prepared for convnextv2_run(). Of NULL, this is NULL, and what follows 0 or NULL. */
CONVNEXTV2_API const convnextv2_preparation* convnextv2_preparation_of(const convnextv2_classifier* classifier);

CONVNEXTV2_API size_t convnextv2_label_count(const convnextv2_classifier* classifier);

/* NULL where there is no such label; valid until the classifier is closed. */
CONVNEXTV2_API const char* convnextv2_label(const convnextv2_classifier* classifier, size_t index);

/* 0 where the graph was exported without --features. */
CONVNEXTV2_API size_t convnextv2_embedding_size(const convnextv2_classifier* classifier);

/* The version of MLX that this library runs, such as "0.32.4". */
CONVNEXTV2_API const char* convnextv2_mlx_version(void);

#ifdef __cplusplus
}
#endif

#endif
