/* The C API from C, as a test drives it: prints the status and the sentence of each call that its arguments name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convnextv2.h"

static void report(const char* call, convnextv2_status status) {
  printf("%s %d %s\n", call, (int)status, status == CONVNEXTV2_OK ? "" : convnextv2_message());
}

static void run(const convnextv2_classifier* classifier, size_t batch, size_t height, size_t width) {
  const size_t classes = convnextv2_label_count(classifier), features = convnextv2_embedding_size(classifier);
  uint8_t* pixels = calloc(batch * height * width + 1, 3);
  float* probabilities = calloc(batch * classes + 1, sizeof *probabilities);
  float* embeddings = calloc(batch * features + 1, sizeof *embeddings);
  const convnextv2_status status =
      convnextv2_run(classifier, pixels, batch, height, width, probabilities, features ? embeddings : NULL);
  report("run", status);
  if (status == CONVNEXTV2_OK) {
    for (size_t i = 0; i < batch; ++i) printf("%.9g ", (double)probabilities[i * classes]);
    for (size_t i = 0; i < features; ++i) printf("%.9g ", (double)embeddings[i]);
    printf("\n");
  }
  free(pixels);
  free(probabilities);
  free(embeddings);
}

/* Everything that a caller can get wrong; nothing of it may crash. */
static void mistakes(const convnextv2_classifier* classifier) {
  uint8_t pixels[4 * 4 * 3] = {0};
  uint8_t out[3];
  float scores[1];
  size_t count = 7;
  convnextv2_prediction one;
  convnextv2_image image = {pixels, 4, 4, 12, 3};
  report("metallib-nothing", convnextv2_set_metallib(NULL));
  report("metallib-missing", convnextv2_set_metallib("/nowhere/mlx.metallib"));
  report("open-nothing", convnextv2_open(NULL, NULL));
  report("classify-nothing", convnextv2_classify(NULL, NULL, NULL, 0, &count));
  report("classify-no-count", convnextv2_classify(classifier, &image, &one, 1, NULL));
  report("classify-no-room", convnextv2_classify(classifier, &image, NULL, 1, &count));
  report("run-nothing", convnextv2_run(classifier, NULL, 1, 32, 32, scores, NULL));
  report("run-no-embeddings", convnextv2_run(classifier, pixels, 1, 32, 32, scores, scores));
  report("run-overflow", convnextv2_run(classifier, pixels, (size_t)-1, 32, 32, scores, NULL));
  report("prepare-nothing", convnextv2_prepare(NULL, NULL, NULL));
  image.row_bytes = 11;
  report("short-rows", convnextv2_classify(classifier, &image, &one, 1, &count));
  image.row_bytes = 12, image.pixel_bytes = 2;
  report("two-bytes", convnextv2_classify(classifier, &image, &one, 1, &count));
  image.pixel_bytes = 3, image.width = 0;
  report("no-width", convnextv2_classify(classifier, &image, &one, 1, &count));
  image.width = 4, image.pixels = NULL;
  report("no-pixels", convnextv2_classify(classifier, &image, &one, 1, &count));
  image.pixels = pixels;
  convnextv2_preparation how = *convnextv2_preparation_of(classifier);
  how.filter = 9;
  report("no-filter", convnextv2_prepare(&image, &how, out));
  how.filter = CONVNEXTV2_BOX, how.short_side = 1, how.crop_width = how.crop_height = 2;
  report("large-crop", convnextv2_prepare(&image, &how, out));
  how.crop_width = how.crop_height = 262144;
  report("huge-crop", convnextv2_prepare(&image, &how, out));
  how.crop_width = 0;
  report("no-crop", convnextv2_prepare(&image, &how, out));
  image.width = 1, image.height = 100000, image.row_bytes = 0, image.pixel_bytes = 3;
  report("no-rows", convnextv2_prepare(&image, &how, out));
  const int none = convnextv2_label(classifier, convnextv2_label_count(classifier)) == NULL &&
                   convnextv2_label(NULL, 0) == NULL && convnextv2_label_count(NULL) == 0 &&
                   convnextv2_embedding_size(NULL) == 0 && convnextv2_preparation_of(NULL) == NULL;
  printf("label %s\n", none ? "none" : "something");
  convnextv2_close(NULL);
}

int main(int count, char** words) {
  if (count < 2) return 2;
  convnextv2_classifier* classifier = NULL;
  const convnextv2_status status = convnextv2_open(words[1], &classifier);
  report("open", status);
  if (status != CONVNEXTV2_OK) return classifier == NULL ? 0 : 3;
  if (count == 5) {
    run(classifier, strtoul(words[2], NULL, 10), strtoul(words[3], NULL, 10), strtoul(words[4], NULL, 10));
  }
  if (count == 3 && strcmp(words[2], "mistakes") == 0) mistakes(classifier);
  convnextv2_close(classifier);
  return 0;
}
